"""Progress lines for a person who waits: what long work has done so far, in the log, every few seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..distributed.store import Progress

INTERVAL_S = 2.0
log = logging.getLogger(__name__)

GetProgress = Callable[[], Mapping[int, "Progress"]]
Watch = Callable[[GetProgress], None]


@dataclass(frozen=True)
class EpochProgress:
    """How far an epoch is: examples seen of it and of the training, their mean loss in the segment, and the rates."""

    epoch: int
    num_examples: int
    total_examples: int
    loss: float
    examples_per_second: float
    worker_rates: dict[int, float]


OnProgress = Callable[[EpochProgress], None]


@contextmanager
def run_periodically(interval_s: float, work: Callable[[], None]) -> Iterator[None]:
    """Call `work` in a thread every `interval_s` seconds until the block ends; its errors are logged, once each."""
    done = threading.Event()
    logged: set[str] = set()

    def loop() -> None:
        while not done.wait(interval_s):
            try:
                work()
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                if text not in logged:
                    log.warning("a progress line failed, and the work goes on: %s", text)
                logged.add(text)

    thread = threading.Thread(target=loop, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def progress_reporter(
    name: str, num_examples: int, *, epoch: int, num_before: int = 0, on_progress: OnProgress | None = None
) -> Iterator[Watch]:
    """Log the workers' examples, loss and rates while the block runs; the block says whom to ask.

    `num_examples` are the epoch's, `num_before` those that earlier segments of it saw. `on_progress` hears it too.
    """
    started = time.monotonic()
    getters: list[GetProgress] = []

    def log_progress() -> None:
        last_reports = getters[-1]() if getters else {}
        seen = sum(progress.num_examples for progress in last_reports.values())
        elapsed = time.monotonic() - started
        if not seen:
            log.info("%s: workers are starting, %.0f s", name, elapsed)
            return
        progress = EpochProgress(
            epoch=epoch,
            num_examples=num_before + seen,
            total_examples=epoch * num_examples + num_before + seen,
            loss=sum(progress.loss * progress.num_examples for progress in last_reports.values()) / seen,
            examples_per_second=seen / elapsed,
            worker_rates={rank: progress.num_examples / elapsed for rank, progress in last_reports.items()},
        )
        share = 100 * progress.num_examples / num_examples
        log.info(
            "%s: %d of %d examples (%.0f %%), loss %.4f, %.0f/s%s",
            name, progress.num_examples, num_examples, share, progress.loss, progress.examples_per_second,
            _by_worker(progress.worker_rates),
        )  # fmt: skip
        if on_progress is not None:
            on_progress(progress)

    with run_periodically(INTERVAL_S, log_progress):
        yield getters.append


def _by_worker(rates: Mapping[int, float]) -> str:
    """Each worker's rate, or of many the slowest and the fastest."""
    if len(rates) < 2:
        return ""
    shown = sorted(rates.items())
    if len(rates) > 4:
        ordered = sorted(rates.items(), key=lambda item: item[1])
        shown = [ordered[0], ordered[-1]]
    return " (" + ", ".join(f"worker {rank} {rate:.0f}/s" for rank, rate in shown) + ")"


class HangDetector:
    """Notices a worker that says nothing for too long: it hangs, or its machine is gone.

    Silence counts from when the first worker spoke, since all start together. The first word has a time of its own.
    """

    def __init__(self, num_workers: int, limit_s: float, *, first_word_s: float) -> None:
        self._num_workers = num_workers
        self._limit_s = limit_s
        self._first_word_s = first_word_s
        self._start_s: float | None = None
        self._last: dict[int, tuple[Progress | None, float]] = {}

    def check(self, last_reports: Mapping[int, Progress], now_s: float) -> str | None:
        """What is wrong with the worker that is furthest behind, or None while all have spoken lately."""
        self._start_s = now_s if self._start_s is None else self._start_s
        if not last_reports:
            waited_s = now_s - self._start_s
            text = f"no worker has said a word for {waited_s:.0f} s; wait_for_workers_s and timeout_s are the limit"
            return text if waited_s > self._first_word_s else None
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
        last = self._last[rank][0]
        where = f"worker {rank}"
        if last:
            where += f" on {last.host}, last heard {_when(last)},"
        return f"{where} has said nothing for {now_s - since_s:.0f} s; timeout_s is the limit"


def _when(last: Progress) -> str:
    return f"in round {last.round_index}" if last.is_ready else "at its start"
