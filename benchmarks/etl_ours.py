"""Our side of a comparison: the ETL on a Spark session that stands, with what its tasks took by their own account."""

from __future__ import annotations

import os
import resource
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from shardmean.jobs.config.job import VectorizeJob
from shardmean.jobs.spark.task_runner import Operation, SparkRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.errors import ShardmeanError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardmean.model.config.image import ImageConfig

T = TypeVar("T")
R = TypeVar("R")
CORES = 2
SETTINGS = {"spark.master": f"local[{CORES}]"}


@dataclass(frozen=True)
class Account:
    """What one task took, by its own process."""

    pid: int
    num_images: int
    wall_s: float
    cpu_s: float
    peak_mib: float


@dataclass
class TimedRunner:
    """Runs tasks on Spark, and keeps the seconds of each job and the accounts of its tasks."""

    spark: SparkRunner
    jobs_s: list[float] = field(default_factory=list)
    accounts: list[list[Account]] = field(default_factory=list)

    def run(self, operation: Operation[T, R], tasks: Sequence[T]) -> list[R | ShardmeanError]:
        """Run them."""
        timed: Operation[T, tuple[R, Account]] = Operation(
            do=lambda task: _accounted(operation, task),
            size=operation.size,
            num_rejected=lambda report: operation.num_rejected(report[0]),
        )
        started = time.perf_counter()
        reports = self.spark.run(timed, tasks)
        self.jobs_s.append(time.perf_counter() - started)
        self.accounts.append([report[1] for report in reports if not isinstance(report, ShardmeanError)])
        return [report if isinstance(report, ShardmeanError) else report[0] for report in reports]


@dataclass(frozen=True)
class Run:
    """One run of the ETL. `tasks_s` are the seconds of its Spark jobs; the first of them read the images."""

    whole_s: float
    jobs_s: list[float]
    accounts: list[list[Account]]

    @property
    def tasks_s(self) -> float:
        """Seconds of all Spark jobs."""
        return sum(self.jobs_s)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all tasks."""
        return sum(account.cpu_s for job in self.accounts for account in job)

    @property
    def num_read(self) -> int:
        """Images that the first job read."""
        return sum(account.num_images for account in self.accounts[0]) if self.accounts else 0

    @property
    def busy(self) -> float:
        """Share of the cores' time, while images were read, in which a task ran."""
        return sum(account.wall_s for account in self.accounts[0]) / (CORES * self.jobs_s[0])

    @property
    def peak_mib(self) -> float:
        """The most memory that a Python worker held."""
        return max(account.peak_mib for job in self.accounts for account in job)


class Ours:
    """The ETL of one source into one DataSet."""

    def __init__(self, images: Path, dataset: Path, image: ImageConfig) -> None:
        self.dataset = dataset
        self.job = VectorizeJob.model_validate(
            {
                "source": {"uri": str(images)},
                "image": image,
                "dataset_uri": str(dataset),
                "max_rejected_fraction": 1,
                "spark": SETTINGS,
            }
        )
        self._spark = SparkRunner("shardmean vectorize", SETTINGS)

    def __enter__(self) -> Self:
        """Start Spark and its Python workers."""
        self._spark.run(Operation(do=abs, size=abs, num_rejected=abs), range(CORES))
        return self

    def __exit__(self, *error: Any) -> None:
        self._spark.__exit__(*error)

    def afresh(self) -> Run:
        """All of it, where nothing was before."""
        shutil.rmtree(self.dataset, ignore_errors=True)
        return self.again()

    def again(self) -> Run:
        """What is new."""
        runner = TimedRunner(self._spark)
        started = time.perf_counter()
        vectorize(self.job, runner=runner)
        return Run(time.perf_counter() - started, runner.jobs_s, runner.accounts)


def _accounted(operation: Operation[T, R], task: T) -> tuple[R, Account]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    report = operation.do(task)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return report, Account(os.getpid(), operation.size(task), wall_s, cpu_s, peak_mib)
