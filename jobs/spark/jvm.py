"""Spark's JVM, a process beside the driver that may end before it, mostly for want of memory."""

from __future__ import annotations

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.sql import SparkSession

ENDED = (
    "Spark's JVM has ended: it ran out of memory, or the system killed it for want of memory; raise "
    "spark.driver.memory, or free memory on the driver's machine, and repeat the command"
)


def has_ended(context: SparkContext) -> bool:
    """Whether the JVM of a context is gone. Waits for one that hangs."""
    try:
        context._jvm.java.lang.System.nanoTime()  # type: ignore[union-attr]  # noqa: SLF001 - PySpark has no name for it
    except (Py4JError, OSError):
        return True
    return False


def forget(context: SparkContext) -> None:
    """Make PySpark forget a context whose JVM has ended, so that the next session gets a JVM of its own."""
    context._jsc = None  # noqa: SLF001 - stop() would call it
    context.stop()
    with SparkContext._lock:  # noqa: SLF001 - PySpark has no other way
        SparkContext._gateway = SparkContext._jvm = None  # noqa: SLF001
        SparkSession._instantiatedSession = SparkSession._activeSession = None  # noqa: SLF001
