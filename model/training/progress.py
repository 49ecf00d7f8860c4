"""Progress lines in the log, every few seconds: how far long work is, for a person who waits."""

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
    """How far an epoch is: examples of it and of the training seen, their mean loss in this segment, and rates."""

    epoch: int
    num_examples: int
    total_examples: int
    loss: float
    examples_per_second: float
    worker_rates: dict[int, float]


OnProgress = Callable[[EpochProgress], None]


@contextmanager
def run_periodically(interval_s: float, work: Callable[[], None]) -> Iterator[None]:
    """Call `work` in a thread every `interval_s` seconds until the block ends.

    Its errors are logged, once each, and the calls go on: right for progress lines. What must not fail unnoticed, such
    as a watchdog, sees to its errors itself.
    """
    done = threading.Event()
    logged: set[str] = set()

    def loop() -> None:
        while not done.wait(interval_s):
            try:
                work()
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                if text not in logged:
                    log.warning("a call every %g s failed, and the next ones go on: %s", interval_s, text)
                logged.add(text)

    thread = threading.Thread(target=loop, name="periodic", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def progress_reporter(
    name: str,
    num_examples: int,
    *,
    epoch: int = 0,
    num_before: int = 0,
    with_loss: bool = True,
    on_progress: OnProgress | None = None,
) -> Iterator[Watch]:
    """Log the workers' examples, loss and rates while the block runs.

    The block calls what is yielded with the GetProgress of each try. `num_examples` are the epoch's, `num_before` those
    that earlier segments of it saw. `on_progress` gets each EpochProgress that is logged.
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
            "%s: %d of %d examples (%.0f %%), %s%.0f/s%s",
            name, progress.num_examples, num_examples, share, f"loss {progress.loss:.4f}, " if with_loss else "",
            progress.examples_per_second, _by_worker(progress.worker_rates),
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
