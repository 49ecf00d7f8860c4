"""Where a worker's time goes: seconds by phase, each instant of the worker's own thread in exactly one."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

T = TypeVar("T")

# In a worker's thread: `start` (open the DataSet, build the network, meet the others), `wait` for a minibatch,
# `step`, `average` (the wait for the slowest peer too), `evaluate`. Beside it: `read`, where threads read ahead.
PHASES = ("start", "wait", "step", "average", "evaluate")


class PhaseTimer:
    """Seconds by phase of one worker in one segment. A GPU computes beside its worker: `average` waits for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as `phase`."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def timing(self, phase: str, items: Iterable[T]) -> Generator[T]:
        """The same items; the time that making them takes counts as `phase`, in whichever thread."""
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds[phase] += time.perf_counter() - started
            yield item
