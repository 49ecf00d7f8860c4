"""Progress lines: one that fails is warned of, once, and those after it go on."""

from __future__ import annotations

import threading

from shardmean.model.training.progress import run_periodically


def test_an_error_of_a_line_is_warned_of_once_and_does_not_end_the_lines(caplog):
    calls, is_enough = [], threading.Event()

    def log_progress() -> None:
        calls.append(1)
        if len(calls) == 5:
            is_enough.set()
        raise OSError("the store is gone" if len(calls) < 4 else "and away")

    with run_periodically(0.001, log_progress):
        assert is_enough.wait(10)
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        f"a call every 0.001 s failed, and the next ones go on: OSError: {text}"
        for text in ("the store is gone", "and away")
    ]
