"""A time limit on a piece of work in this process, by the process's alarm clock, and pauses of that clock."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def time_limit(limit_s: float, too_slow: Callable[[], Exception]) -> Iterator[None]:
    """Raise `too_slow()` inside the block once `limit_s` seconds have passed.

    It acts between two steps of Python: one long call of a C library is not cut short, and is reported when it ends.
    Python gives signals to the main thread alone, so in another thread there is no limit. An alarm that was set before
    (a test's own time limit, say) goes on afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise too_slow()

    started = time.monotonic()
    theirs_s, interval_s = signal.setitimer(signal.ITIMER_REAL, 0)
    handler = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            # Each second again, in case a library swallows the first.
            signal.setitimer(signal.ITIMER_REAL, limit_s, 1)
            yield
        finally:  # where it may ring too, so that what was there before is put back outside
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        # None: a handler that was not set from Python, which Python cannot set again.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if theirs_s:
            left_s = max(theirs_s - (time.monotonic() - started), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)


@contextmanager
def unlimited() -> Iterator[None]:
    """Stop the clock of `time_limit` for a block that must not be interrupted, such as an import.

    Afterwards it goes on with the time that was left. Outside a limit, and in other threads, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)
