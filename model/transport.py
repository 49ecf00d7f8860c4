"""Workers without Spark: processes of this machine, for tests and for measuring on a GPU."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Self

from .errors import WorldError
from .meeting import Meeting
from .segment import Failure, Report, Task, Work, attempt

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class LocalTransport:
    """Runs one worker in this process, several in processes of their own that stay for the next call."""

    def __init__(self, num_workers: int, device: str = "cpu") -> None:
        self.meeting = Meeting()
        self._device = device
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(num_workers, mp_context=context) if num_workers > 1 else None

    def run(self, work: Work, tasks: Sequence[Task]) -> list[Report | Failure]:
        """Run one task per worker, side by side."""
        if self._pool is None:
            return [attempt(work, task, self._device) for task in tasks]
        waiting = [self._pool.submit(attempt, work, task, self._device) for task in tasks]
        try:
            return [future.result() for future in waiting]
        except BrokenProcessPool as error:
            raise WorldError("a worker was lost: its process ended without a word") from error

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
