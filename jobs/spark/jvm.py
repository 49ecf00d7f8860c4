"""Spark's JVM, which stands beside the driver's process and may end on its own: for want of memory, mostly."""

from __future__ import annotations

import sys
from typing import Any

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.sql import SparkSession

ENDED = (
    "Spark's JVM has ended, as one does that ran out of memory, or that the system killed for want of it: raise "
    "spark.driver.memory, or make room on the driver's machine, and repeat the command"
)


def quiet_end(context: SparkContext) -> None:
    """Let the JVM's end be told once, and not with a traceback of the server that it sends accumulators to."""
    server = context._accumulatorServer  # noqa: SLF001 - PySpark has no name for it
    show = server.handle_error

    def handle_error(*request: Any) -> None:
        if not isinstance(sys.exc_info()[1], EOFError):
            show(*request)

    server.handle_error = handle_error  # type: ignore[assignment,method-assign]


def has_ended(context: SparkContext) -> bool:
    """Whether the JVM of a context is gone. Asked after an error: one that hangs is waited for."""
    try:
        context._jvm.java.lang.System.nanoTime()  # type: ignore[union-attr]  # noqa: SLF001 - PySpark has no name for it
    except (Py4JError, OSError):
        return True
    return False


def stop(session: SparkSession) -> None:
    """End a session. One whose JVM has ended is forgotten, so that the next gets a JVM of its own."""
    if not has_ended(session.sparkContext):
        session.stop()
        return
    session.sparkContext._jsc = None  # noqa: SLF001 - there is nobody to ask
    session.sparkContext.stop()
    with SparkContext._lock:  # noqa: SLF001 - PySpark has no other way
        SparkContext._gateway = SparkContext._jvm = None  # noqa: SLF001
        SparkSession._instantiatedSession = SparkSession._activeSession = None  # noqa: SLF001
