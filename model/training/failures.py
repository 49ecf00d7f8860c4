"""What a failed segment is blamed on: the worker, its host and the round, out of what workers and Spark said."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import FailedWorkerError, LostWorkerError, RetryableError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..distributed.store import Progress
    from .messages import Failure

# The user's mistake is shown before the world's fault, that before our bug, and that before lost peers.
ORDER = ("user", "diverged", "retryable", "bug", "peer")
log = logging.getLogger(__name__)


def primary_failure(failures: list[Failure]) -> Exception:
    """The error to show for what workers gave back as failures; the traces of all that are not peers' are logged."""
    first = min(failures, key=lambda f: (ORDER.index(f.kind), f.rank))
    for failure in failures:
        if failure.kind != "user" and (failure is first or failure.kind != "peer"):
            log.error("%s failed:\n%s", _where(failure), failure.trace)
    return UserError(f"{_where(first)}: {first.message}") if first.kind == "user" else _failed(first)


def _failed(failure: Failure) -> FailedWorkerError:
    # On a cluster a worker may be on another host the next time.
    key = (failure.kind, failure.rank, failure.message)
    return FailedWorkerError(
        f"{_where(failure)}: {failure.message}", key if failure.kind in ("diverged", "bug") else None
    )


def _where(failure: Failure) -> str:
    return f"worker {failure.rank} on {failure.host}"


def describe_lost_worker(
    error: RetryableError, last_reports: Mapping[int, Progress], abort_reason: str
) -> RetryableError:
    """`error` with the lost worker, its host and the round in which it was last heard of."""
    if not isinstance(error, LostWorkerError):
        return error
    where = "a worker"
    if error.rank is not None:
        last = last_reports.get(error.rank)
        heard = f" on {last.host}, last heard of in round {last.round_index}," if last else ""
        where = f"worker {error.rank}{heard}"
    return RetryableError(f"{where} was lost: {error}" + (f" ({abort_reason})" if abort_reason else ""))
