"""How jobs log: one line a message, with a mark that tells our lines from others in a mixed log."""

from __future__ import annotations

import logging
import sys

LOG_MARK = "shardmean |"


def set_up_logging() -> None:
    """Log our own messages from INFO up and all others from WARNING up, to standard output."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stdout, format=f"%(asctime)s {LOG_MARK} %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("shardmean").setLevel(logging.INFO)
    # It logs with a traceback what it raises too.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
