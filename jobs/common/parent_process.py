"""Ends a job when the Airflow task that submitted it is gone: a worker that was killed would leave its driver behind.

The driver is no child of the task: spark-submit's JVM is in between, which lives on. Where the driver runs on another
machine (cluster mode), it is left alone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time

from shardmean.model.storage.lease import start_of

VARIABLE = "SHARDMEAN_PARENT"
LOOK_S = 1.0
log = logging.getLogger(__name__)


def mark() -> dict[str, str]:
    """What a task gives its job's environment: this process's host, number and start."""
    pid = os.getpid()
    return {VARIABLE: f"{socket.gethostname()} {pid} {start_of(pid)}"}


def end_with_parent() -> None:
    """Send this process SIGTERM as soon as the process that the environment names has ended."""
    host, pid, started = [*os.environ.get(VARIABLE, "").split(" "), "", "", ""][:3]
    if host != socket.gethostname() or not pid.isdigit() or not started:
        return

    def watch() -> None:
        while start_of(int(pid)) == started:
            time.sleep(LOOK_S)
        log.warning("the task that submitted this job has ended: the job ends too")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
