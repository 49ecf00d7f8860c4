"""What Spark's JVM starts Python workers with: Spark's own daemon, silent where the JVM has hung up.

A driver that is told to end closes the workers' sockets. Whoever is at work then finds nobody to answer, and Spark's
daemon would show the traceback of that.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyspark import daemon

if TYPE_CHECKING:
    import socket

spark_worker = daemon.worker


def worker(sock: socket.socket, authenticated: bool) -> int:
    """Do the tasks that come by a connection, as Spark's own does."""
    try:
        code: int = spark_worker(sock, authenticated)
    except BrokenPipeError:
        os._exit(1)
    return code


if __name__ == "__main__":
    daemon.worker = worker
    daemon.manager()
