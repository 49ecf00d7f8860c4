"""Barrier jobs: a segment of training as one Spark job whose tasks run side by side, each on a device of its own."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pyspark import BarrierTaskContext
from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

from shardmean.jobs.spark.session import JVM_ENDED, first_cause, freeze_garbage, has_ended, is_local_mode, run_job
from shardmean.jobs.spark.state_broadcast import broadcast_states, no_room, restored_state
from shardmean.model.errors import LostLauncherError, LostWorkerError, RetryableError, UserError
from shardmean.model.training.progress import INTERVAL_S, run_periodically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pyspark import Broadcast, SparkContext
    from pyspark.resource import ResourceProfile
    from pyspark.sql import SparkSession

    from shardmean.model.distributed.rendezvous import Rendezvous
    from shardmean.model.training.messages import Failure, Report, Task, Work

log = logging.getLogger(__name__)
POLL_S = 0.2


class BarrierLauncher:
    """Sends a segment's tasks to Spark as one barrier job: all run side by side, or none does.

    On a cluster whose executors have GPUs each of these tasks asks for one; the ETL's tasks ask for none.
    """

    def __init__(
        self,
        session: SparkSession,
        rendezvous: Rendezvous,
        num_workers: int,
        *,
        device: str = "auto",
        wait_s: float = 30,
    ) -> None:
        """Wait up to `wait_s` seconds for slots for `num_workers` tasks.

        Raises UserError where Spark's local mode has fewer, RetryableError where a cluster has fewer now.
        """
        self.rendezvous = rendezvous
        self._context = session.sparkContext
        self._profile = _training_profile(self._context, device)
        self._group = f"shardmean-{id(self)}"
        self._reason = ""
        self._live: list[Broadcast[Any]] = []
        self._wait_for_slots(num_workers, wait_s)

    def _wait_for_slots(self, num_workers: int, wait_s: float) -> None:
        master, is_local = self._context.master, is_local_mode(self._context)
        deadline = time.monotonic() + (0 if is_local else wait_s)

        def log_progress() -> None:
            log.info("waiting for executors of %s: %d of %d slots are ready", master, self.num_slots(), num_workers)

        # A cluster's executors start one by one, some seconds after the session.
        with run_periodically(INTERVAL_S, log_progress):
            while (slots := self.num_slots()) < num_workers and time.monotonic() < deadline:
                time.sleep(POLL_S)
        if slots >= num_workers:
            return
        found = f"num_workers is {num_workers}, but Spark ({master}) offers {slots} slots at once"
        if is_local:
            raise UserError(f"{found}: lower num_workers, or use local[{num_workers}] as the master")
        raise RetryableError(
            f"{found} after {wait_s:g} s: lower num_workers, add executors (spark.executor.cores, spark.cores.max), "
            "wait until others leave the cluster, or raise wait_for_workers_s"
        )

    def num_slots(self) -> int:
        """Tasks of a training that Spark can run side by side now, as Spark counts them for barrier jobs."""
        scala = self._context._jsc.sc()  # noqa: SLF001 - PySpark has no name for it
        manager = scala.resourceProfileManager()
        profile = manager.defaultResourceProfile()
        if self._profile is not None:
            profile = self._profile._java_resource_profile  # noqa: SLF001 - nor for this
            manager.addResourceProfile(profile)
        return int(scala.maxNumConcurrentTasks(profile))

    def run(self, work: Work, tasks: Sequence[Task]) -> list[Report | Failure]:
        """Run one worker per task.

        Raises LostWorkerError when Spark lost a worker's process or machine, LostLauncherError when its JVM has ended,
        UserError when the workers' states are too large for the driver.
        """
        self._reason = ""
        try:
            return run_job(self._context, partial(self._run, work, tasks), self._group)
        except UserError:
            raise
        except Exception as error:
            if has_ended(self._context):
                raise LostLauncherError(JVM_ENDED) from error
            if self._reason:
                raise RetryableError(self._reason) from error
            mistake = no_room(self._context, str(error))
            raise mistake or LostWorkerError(first_cause(error), _lost_rank(error)) from error

    def _run(self, work: Work, tasks: Sequence[Task]) -> list[Report | Failure]:
        with broadcast_states(self._context, tasks, self._live) as sent:

            def in_task(numbers: Iterable[int]) -> Iterator[Report | Failure]:
                from shardmean.model.training.worker_runtime import attempt

                freeze_garbage()
                for task in (sent[number] for number in numbers):
                    whole = restored_state(_with_own_threads(task))
                    yield attempt(work, whole, partial(task_device, task.config.device))

            numbers = self._context.parallelize(list(range(len(sent))), len(sent))
            if self._profile is not None:
                numbers = numbers.withResources(self._profile)
            return numbers.barrier().mapPartitions(in_task).collect()

    def cancel(self, reason: str) -> None:
        """End the running job; `run` then raises RetryableError with this reason."""
        self._reason = reason
        self._context.cancelJobGroup(self._group)


def _training_profile(context: SparkContext, device: str) -> ResourceProfile | None:
    """A request of one GPU for each task of the training, where executors have GPUs and Spark assigns tasks none."""
    conf = context.getConf()
    has_gpus = conf.contains("spark.executor.resource.gpu.amount") and not is_local_mode(context)
    if device == "cpu" or not has_gpus or conf.contains("spark.task.resource.gpu.amount"):
        return None
    requests = TaskResourceRequests().cpus(int(conf.get("spark.task.cpus", "1") or 1)).resource("gpu", 1)
    return ResourceProfileBuilder().require(requests).build


def _with_own_threads(task: Task) -> Task:
    # OMP_NUM_THREADS does not count a resource profile's cores.
    context = BarrierTaskContext.get()
    if task.config.threads_per_worker is not None or context is None:
        return task
    return replace(task, config=task.config.model_copy(update={"threads_per_worker": context.cpus()}))


def _lost_rank(error: BaseException) -> int | None:
    found = re.search(r"barrier task (?:ShuffleMap|Result)Task\(\d+, (\d+)\)", str(error))
    return int(found[1]) if found else None


def driver_host(session: SparkSession) -> str:
    """The address by which executors reach the driver."""
    return session.sparkContext.getConf().get("spark.driver.host") or "127.0.0.1"


def task_device(wanted: str) -> str:
    """The device of the running Spark task: the GPU that Spark assigned, else one by its rank, else the CPU.

    Raises UserError where a GPU is wanted, or Spark assigned one, and torch finds none.
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
        # On the CPU it could not join its peers, which have GPUs.
        raise UserError(
            f"Spark gave this task the GPU {gpu.addresses[0]}, but torch {torch.__version__} finds none: install a "
            "torch for CUDA and NVIDIA's driver on this machine, or set device=cpu"
        )
    if wanted == "cuda":
        raise UserError("device is cuda, but torch finds no GPU on this machine: set device=auto or cpu")
    return "cpu"
