"""Who runs the ETL's tasks: Spark, or this process; and the lines that say how far they are."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from shardmean.jobs.spark.session import open_session, run_tasks
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.training.progress import INTERVAL_S, run_periodically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from pyspark.sql import SparkSession

T = TypeVar("T")
R = TypeVar("R")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failed:
    """A task that could not do its work, and whether repeating it may help."""

    message: str
    is_users: bool


@dataclass(frozen=True)
class Work(Generic[T, R]):
    """What a kind of task does. `size` counts a task's images, `num_rejected` those of a report, for progress."""

    do: Callable[[T], R]
    size: Callable[[T], int]
    num_rejected: Callable[[R], int]

    def attempt(self, task: T) -> R | Failed:
        """Do a task, or say why not: an error that travels by Spark loses its words."""
        try:
            return self.do(task)
        except (UserError, RetryableError) as error:
            return Failed(str(error), isinstance(error, UserError))


class Runner(Protocol):
    """Runs tasks, each of which may be run twice, and gives their reports in order."""

    def run(self, work: Work[T, R], tasks: Sequence[T]) -> list[R | Failed]:
        """Raises RetryableError when tasks were lost."""


def run_all(runner: Runner, work: Work[T, R], tasks: Sequence[T]) -> list[R]:
    """The reports of all tasks; those that fail are tried once more. Raises UserError and RetryableError."""
    reports: list[R | Failed] = runner.run(work, tasks) if tasks else []
    failed = {n: r for n, r in enumerate(reports) if isinstance(r, Failed) and not r.is_users}
    if failed:
        reason = next(iter(failed.values())).message
        log.warning("%d of %d tasks failed and are tried again: %s", len(failed), len(tasks), reason)
        again: list[R | Failed] = runner.run(work, [tasks[number] for number in failed])
        for number, report in zip(failed, again, strict=True):
            reports[number] = report
    good: list[R] = []
    for report in reports:
        if isinstance(report, Failed):
            raise UserError(report.message) if report.is_users else RetryableError(report.message)
        good.append(report)
    return good


class LocalRunner:
    """Runs tasks in this process, one after the other, for tests and for measuring."""

    def run(self, work: Work[T, R], tasks: Sequence[T]) -> list[R | Failed]:
        """Run them."""
        return [work.attempt(task) for task in tasks]


class SparkRunner:
    """Runs tasks on Spark, which starts when the first come and ends with the `with` block."""

    def __init__(self, name: str, settings: Mapping[str, str]) -> None:
        self._name = name
        self._settings = settings
        self._ends = ExitStack()
        self._session: SparkSession | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ends.__exit__(kind, error, at)

    def run(self, work: Work[T, R], tasks: Sequence[T]) -> list[R | Failed]:
        """Run them side by side as one plain job, of which Spark repeats the tasks that are lost with a machine."""
        if self._session is None:
            self._session = self._ends.enter_context(open_session(self._name, self._settings))
        context = self._session.sparkContext
        done, rejected = context.accumulator(0), context.accumulator(0)

        def run(task: T) -> R | Failed:
            report = work.attempt(task)
            done.add(work.size(task))
            if not isinstance(report, Failed):
                rejected.add(work.num_rejected(report))
            return report

        total, started = sum(map(work.size, tasks)), time.monotonic()

        def log_progress() -> None:
            log.info("%s", progress(done.value, total, rejected.value, time.monotonic() - started))

        with run_periodically(INTERVAL_S, log_progress):
            return run_tasks(self._session, run, tasks)


def progress(done: int, total: int, num_rejected: int, seconds: float) -> str:
    """One line: images done, the rate, those rejected, and the time left."""
    line = f"{done:,} of {total:,} images ({100 * done / max(1, total):.0f} %), {num_rejected:,} rejected"
    if not done:
        return f"{line}, {seconds:.0f} s"
    left = (total - done) * seconds / done
    return f"{line}, {done / seconds:,.0f} images/s, {left:.0f} s left"
