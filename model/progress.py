"""Progress lines for a person who waits: what long work has done so far, in the log, every few seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .meeting import Progress

INTERVAL_S = 3.0
log = logging.getLogger(__name__)

Ask = Callable[[], Sequence["Progress"]]
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
        said = asks[0]() if asks else []
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
