"""What a failed segment is blamed on: the worker, its host and the round, out of what workers and Spark said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .errors import UserError, WorldError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .meeting import Progress
    from .tasks import Failure

# The user's mistake is shown before the world's fault, that before our bug, and that before lost peers.
ORDER = ("user", "diverged", "world", "bug", "peer")
log = logging.getLogger(__name__)


class LostWorkerError(WorldError):
    """A worker's process or machine is gone; `rank` is the worker, where the transport knows it."""

    def __init__(self, text: str, rank: int | None = None) -> None:
        super().__init__(text)
        self.rank = rank


def cause(failures: list[Failure]) -> Exception:
    """The error to show for what workers gave back as failures."""
    failure = min(failures, key=lambda f: (ORDER.index(f.kind), f.rank))
    where = f"worker {failure.rank} on {failure.host}"
    if failure.kind == "user":
        return UserError(f"{where}: {failure.message}")
    if failure.kind in ("bug", "peer"):
        log.error("%s failed:\n%s", where, failure.trace)
    return WorldError(f"{where}: {failure.message}")


def blame(error: WorldError, said: Mapping[int, Progress], abort_reason: str) -> WorldError:
    """`error` with the lost worker, its host and the round in which it was last heard of."""
    if not isinstance(error, LostWorkerError):
        return error
    where = "a worker"
    if error.rank is not None:
        last = said.get(error.rank)
        heard = f" on {last.host}, last heard of in round {last.round_index}," if last else ""
        where = f"worker {error.rank}{heard}"
    return WorldError(f"{where} was lost: {error}" + (f" ({abort_reason})" if abort_reason else ""))
