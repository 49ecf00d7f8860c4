"""Runs ETL tasks on Spark or in this process, with progress."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from pyspark.accumulators import AddingAccumulatorParam

from shardmean.jobs.spark.session import open_session, run_tasks
from shardmean.model.errors import RetryableError, ShardmeanError, UserError
from shardmean.model.training.progress import INTERVAL_S, run_periodically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pyspark.sql import SparkSession

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation(Generic[T, R]):
    """What to do with a task. `size` counts a task's images and `num_rejected` those of a report, for progress."""

    do: Callable[[T], R]
    size: Callable[[T], int]
    num_rejected: Callable[[R], int]

    def try_task(self, task: T) -> R | ShardmeanError:
        """The task's report, or its error as a value: raised through Spark it would lose its kind and message."""
        try:
            return self.do(task)
        except (UserError, RetryableError) as error:
            return error


class Runner(Protocol):
    """Runs tasks, each of which may be run twice, and returns their reports in order."""

    def run(self, operation: Operation[T, R], tasks: Sequence[T]) -> list[R | ShardmeanError]:
        """Raises RetryableError when tasks were lost."""


def run_all(runner: Runner, operation: Operation[T, R], tasks: Sequence[T]) -> list[R]:
    """The reports of all tasks. A task that fails is repeated once, unless by the user's mistake.

    Raises UserError and RetryableError.
    """
    reports: list[R | ShardmeanError] = runner.run(operation, tasks) if tasks else []
    failed = [number for number, report in enumerate(reports) if isinstance(report, RetryableError)]
    if failed:
        log.warning("%d of %d tasks failed and are repeated: %s", len(failed), len(tasks), reports[failed[0]])
        again: list[R | ShardmeanError] = runner.run(operation, [tasks[number] for number in failed])
        for number, report in zip(failed, again, strict=True):
            reports[number] = report
    good: list[R] = []
    for report in reports:
        if isinstance(report, ShardmeanError):
            raise report
        good.append(report)
    return good


class LocalRunner:
    """Runs tasks in this process, one after the other, for tests and benchmarks."""

    def run(self, operation: Operation[T, R], tasks: Sequence[T]) -> list[R | ShardmeanError]:
        """Run them."""
        return [operation.try_task(task) for task in tasks]


class SparkRunner(ExitStack):
    """Runs tasks on Spark, which starts with the first tasks and stops at the end of the `with` block."""

    def __init__(self, name: str, settings: Mapping[str, str]) -> None:
        super().__init__()
        self._name = name
        self._settings = settings

    @cached_property
    def _session(self) -> SparkSession:
        return self.enter_context(open_session(self._name, self._settings))

    def run(self, operation: Operation[T, R], tasks: Sequence[T]) -> list[R | ShardmeanError]:
        """Run them in parallel as one plain job. Spark repeats tasks that are lost with a machine."""
        # With the task's number: Spark may run a task twice, and then it counts once.
        counter: AddingAccumulatorParam[list[tuple[int, int, int]]] = AddingAccumulatorParam([])
        reported = self._session.sparkContext.accumulator([], counter)

        def run(numbered: tuple[int, T]) -> R | ShardmeanError:
            number, task = numbered
            report = operation.try_task(task)
            num_rejected = 0 if isinstance(report, ShardmeanError) else operation.num_rejected(report)
            reported.add([(number, operation.size(task), num_rejected)])
            return report

        total, started = sum(map(operation.size, tasks)), time.monotonic()

        def log_progress() -> None:
            counts = {number: counts for number, *counts in reported.value}.values()
            done, rejected = map(sum, zip((0, 0), *counts, strict=True))
            log.info("%s", progress(done, total, rejected, time.monotonic() - started))

        with run_periodically(INTERVAL_S, log_progress):
            return run_tasks(self._session, run, list(enumerate(tasks)))


def progress(done: int, total: int, num_rejected: int, seconds: float) -> str:
    """One line: images done and rejected, the rate, and the time left."""
    line = f"{done:,} of {total:,} images ({100 * done / max(1, total):.0f} %), {num_rejected:,} rejected"
    if not done:
        return f"{line}, {seconds:.0f} s"
    left = (total - done) * seconds / done
    return f"{line}, {done / seconds:,.0f} images/s, {left:.0f} s left"
