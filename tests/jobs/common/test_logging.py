"""What the log of a job shows: our own messages, others' warnings and errors, and none of py4j's stack traces."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import logging
from shardmean.jobs.common.logging import set_up_logging
set_up_logging()
try:
    raise BrokenPipeError("the driver was told to end")
except BrokenPipeError:
    logging.getLogger("py4j.clientserver").exception("Exception occurred while shutting down connection")
logging.getLogger("shardmean.jobs.train.job").info("ours")
logging.getLogger("alembic").info("theirs")
logging.getLogger("alembic").warning("their warning")
logging.error("an error of the root logger")
"""


def test_py4j_shows_no_stack_traces():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split(" | ")[1] for line in lines] == ["ours", "their warning", "an error of the root logger"]
