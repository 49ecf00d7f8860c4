"""The watchdog over a segment's workers: it ends the segment when one hangs, and when the watch itself fails."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import LostLauncherError, RetryableError
from .failures import last_seen
from .progress import run_periodically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..distributed.store import Progress


@contextmanager
def watchdog(check: Callable[[], str | None], end: Callable[[str], None], *, interval_s: float = 1.0) -> Iterator[None]:
    """While the block runs, call `end` with each reason to end it that `check` finds.

    An error of `check` is such a reason, since from then on nobody would notice a worker that hangs. The block then
    raises RetryableError from that error.
    """
    failures: list[Exception] = []

    def watch() -> None:
        reason = None
        if not failures:
            try:
                reason = check()
            except Exception as error:
                failures.append(error)
        if failures:
            reason = _failed(failures[0])
        # Called again and again while there is a reason, as `end` may fail too.
        if reason is not None:
            end(reason)

    try:
        with run_periodically(interval_s, watch):
            yield
    except LostLauncherError:
        raise
    except RetryableError:
        if not failures:
            raise
    if failures:
        raise RetryableError(_failed(failures[0])) from failures[0]


def _failed(error: Exception) -> str:
    return f"the watchdog over the workers failed: {type(error).__name__}: {error}"


class HangDetector:
    """Finds a worker that has not reported for too long: it hangs, or its machine is gone.

    All workers start together, so the time counts from the first report of any. That one has a limit of its own.
    """

    def __init__(self, num_workers: int, limit_s: float, *, first_report_s: float) -> None:
        self._num_workers = num_workers
        self._limit_s = limit_s
        self._first_report_s = first_report_s
        self._start_s: float | None = None
        self._last: dict[int, tuple[Progress | None, float]] = {}

    def check(self, last_reports: Mapping[int, Progress], now_s: float) -> str | None:
        """What is wrong with the worker that is furthest behind, or None while all have reported lately."""
        self._start_s = now_s if self._start_s is None else self._start_s
        if not last_reports:
            waited_s = now_s - self._start_s
            text = f"no worker has reported for {waited_s:.0f} s; the limit is wait_for_workers_s + timeout_s"
            return text if waited_s > self._first_report_s else None
        for rank in range(self._num_workers):
            progress = last_reports.get(rank)
            if rank not in self._last or self._last[rank][0] != progress:
                self._last[rank] = (progress, now_s)
        silent = [
            (progress.round_index if progress and progress.is_ready else -1, since_s, rank)
            for rank, (progress, since_s) in self._last.items()
            if now_s - since_s > self._limit_s and not (progress and progress.is_done)
        ]
        if not silent:
            return None
        _, since_s, rank = min(silent)
        where = last_seen(rank, self._last[rank][0])
        return f"{where} has not reported for {now_s - since_s:.0f} s; the limit is timeout_s"
