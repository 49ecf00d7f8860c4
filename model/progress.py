"""Progress lines for a person who waits: what long work has done so far, in the log, every few seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .meeting import Progress

INTERVAL_S = 3.0
log = logging.getLogger(__name__)

Ask = Callable[[], Mapping[int, "Progress"]]
Watch = Callable[[Ask], None]


@contextmanager
def every(interval_s: float, say: Callable[[], None]) -> Iterator[None]:
    """Call `say` in a thread every `interval_s` seconds until the block ends; its errors end it, not the work."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(interval_s):
            try:
                say()
            except Exception:
                log.debug("progress stopped", exc_info=True)
                return

    thread = threading.Thread(target=loop, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def watched(name: str, num_examples: int) -> Iterator[Watch]:
    """Log the workers' examples, loss and rate while the block runs; the block says whom to ask."""
    started = time.monotonic()
    asks: list[Ask] = []

    def say() -> None:
        said = asks[-1]().values() if asks else []
        seen = sum(progress.num_examples for progress in said)
        elapsed = time.monotonic() - started
        if not seen:
            log.info("%s: workers are starting, %.0f s", name, elapsed)
            return
        loss = sum(progress.loss * progress.num_examples for progress in said) / seen
        share, rate = 100 * seen / num_examples, seen / elapsed
        log.info("%s: %d of %d examples (%.0f %%), loss %.4f, %.0f/s", name, seen, num_examples, share, loss, rate)

    with every(INTERVAL_S, say):
        yield asks.append


class Silence:
    """Notices a worker that says nothing for too long: it hangs, or its machine is gone.

    Silence counts from when the first worker spoke, since all start together.
    """

    def __init__(self, num_workers: int, limit_s: float) -> None:
        self._num_workers = num_workers
        self._limit_s = limit_s
        self._last: dict[int, tuple[Progress | None, float]] = {}

    def complaint(self, said: Mapping[int, Progress], now_s: float) -> str | None:
        """What is wrong with the worker that is furthest behind, or None while all have spoken lately."""
        if not said:
            return None
        for rank in range(self._num_workers):
            progress = said.get(rank)
            if rank not in self._last or self._last[rank][0] != progress:
                self._last[rank] = (progress, now_s)
        silent = [
            (progress.round_index if progress else -1, since_s, rank)
            for rank, (progress, since_s) in self._last.items()
            if now_s - since_s > self._limit_s and not (progress and progress.is_done)
        ]
        if not silent:
            return None
        _, since_s, rank = min(silent)
        last = self._last[rank][0]
        where = f"worker {rank} on {last.host}, last heard in round {last.round_index}," if last else f"worker {rank}"
        return f"{where} has said nothing for {now_s - since_s:.0f} s; timeout_s is the limit"
