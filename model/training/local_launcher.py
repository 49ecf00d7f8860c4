"""Workers without Spark: processes of this machine, for tests and for measuring on a GPU."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Self

from ..distributed.rendezvous import Rendezvous
from ..errors import LostWorkerError, RetryableError
from .worker_runtime import attempt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .messages import Failure, Report, Task, Work


class LocalLauncher:
    """Runs one worker in this process, several in processes of their own that stay for the next call."""

    def __init__(self, num_workers: int, device: str = "cpu") -> None:
        self.rendezvous = Rendezvous()
        self._device = device
        self._num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None
        self._reason = ""

    def num_slots(self) -> int:
        """As many workers as there are processes."""
        return self._num_workers

    def run(self, work: Work, tasks: Sequence[Task]) -> list[Report | Failure]:
        """Run one task per worker, side by side."""
        if self._num_workers == 1:
            return [attempt(work, task, self._device) for task in tasks]
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._num_workers, mp_context=multiprocessing.get_context("spawn"))
        self._reason = ""
        waiting = [self._pool.submit(attempt, work, task, self._device) for task in tasks]
        try:
            return [future.result() for future in waiting]
        except BrokenProcessPool as error:
            self._pool = None
            if self._reason:
                raise RetryableError(self._reason) from error
            raise LostWorkerError("its process exited unexpectedly") from error

    def cancel(self, reason: str) -> None:
        """End what is running; `run` then raises RetryableError with this reason. A worker in this process goes on."""
        self._reason = reason
        if self._pool is not None:
            for process in list(self._pool._processes.values()):  # noqa: SLF001 - it has no other way to end them
                process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown()
