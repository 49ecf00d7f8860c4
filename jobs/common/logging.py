"""How jobs log: one line a message, with a mark by which a reader of a mixed log finds ours."""

from __future__ import annotations

import logging
import sys

LOG_MARK = "shardmean |"


def set_up_logging() -> None:
    """Log our own messages from INFO up and all others from WARNING up, to standard output."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stdout, format=f"%(asctime)s {LOG_MARK} %(message)s", datefmt="%H:%M:%S"
    )
    # py4j logs the stack traces of lost connections, some under no name of its own; the error that follows says it.
    logging.getLogger().handlers[0].addFilter(lambda record: record.name.split(".")[0] not in ("root", "py4j"))
    logging.getLogger("shardmean").setLevel(logging.INFO)
