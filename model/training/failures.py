"""The error that a failed segment raises: of all that failed, the cause, with its worker, host and round."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import FailedWorkerError, LostWorkerError, RetryableError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..distributed.store import Progress
    from .messages import Failure

# The kind that is taken for the cause where workers failed in several ways: a peer's error only follows another's.
ORDER = ("user", "diverged", "retryable", "bug", "peer")
log = logging.getLogger(__name__)


def primary_failure(failures: list[Failure]) -> Exception:
    """The error to show for the workers' failures. Logs the traces of all but peers and users' mistakes."""
    first = min(failures, key=lambda f: (ORDER.index(f.kind), f.rank))
    for failure in failures:
        if failure.kind != "user" and (failure is first or failure.kind != "peer"):
            log.error("%s failed:\n%s", _where(failure), failure.trace)
    text = f"{_where(first)}: {first.message}"
    if first.kind == "user":
        return UserError(text)
    # Without the host: on a cluster a worker may be on another one the next time.
    key = (first.kind, first.rank, first.message)
    return FailedWorkerError(text, key if first.kind in ("diverged", "bug") else None)


def _where(failure: Failure) -> str:
    return f"worker {failure.rank} on {failure.host}"


def describe_lost_worker(
    error: LostWorkerError, last_reports: Mapping[int, Progress], abort_reason: str
) -> RetryableError:
    """`error` with the lost worker, its host and the round of its last report."""
    where = "a worker" if error.rank is None else last_seen(error.rank, last_reports.get(error.rank))
    return RetryableError(f"{where} was lost: {error}" + (f" ({abort_reason})" if abort_reason else ""))


def last_seen(rank: int, last: Progress | None) -> str:
    """A worker, and by its last report the host and where in its work it was."""
    if last is None:
        return f"worker {rank}"
    when = f"in round {last.round_index}" if last.is_ready else "at its start"
    return f"worker {rank} on {last.host}, last report {when},"
