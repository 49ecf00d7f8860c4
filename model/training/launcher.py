"""What a trainer asks of whatever runs its workers: processes of this machine, or Spark's barrier jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..distributed.rendezvous import Rendezvous
    from .messages import Failure, Report, Task, Work


class Launcher(Protocol):
    """Runs workers' tasks: all of a call side by side, and each gives a report or a failure."""

    rendezvous: Rendezvous

    def num_slots(self) -> int:
        """How many workers can run side by side now."""
        ...

    def run(self, work: Work, tasks: Sequence[Task]) -> list[Report | Failure]:
        """Run one task per worker. Raises RetryableError when workers were lost."""
        ...

    def cancel(self, reason: str) -> None:
        """End the running tasks, from another thread; `run` then raises RetryableError with this reason."""
        ...
