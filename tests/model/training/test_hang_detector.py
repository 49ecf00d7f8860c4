"""Who watches the workers: silence is noticed whenever it begins, and an error of the watch does not end it."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from shardmean.model.distributed.store import Progress
from shardmean.model.training.progress import HangDetector, run_periodically

READY = Progress("a", is_ready=True)


def test_workers_that_never_say_a_word_are_noticed():
    detector = HangDetector(2, 10, first_word_s=40)
    assert detector.check({}, 100) is None
    assert detector.check({}, 139) is None
    assert detector.check({}, 141) == (
        "no worker has said a word for 41 s; wait_for_workers_s and timeout_s are the limit"
    )


def test_after_the_first_word_silence_counts_from_it():
    detector = HangDetector(2, 10, first_word_s=40)
    assert detector.check({}, 0) is None
    assert detector.check({0: READY}, 39) is None
    assert detector.check({0: replace(READY, round_index=1)}, 49) is None
    assert detector.check({0: replace(READY, round_index=2)}, 50) == (
        "worker 1 has said nothing for 11 s; timeout_s is the limit"
    )


@pytest.mark.parametrize(
    ("last", "when"), [(Progress("b"), "at its start"), (replace(READY, host="b", round_index=2), "in round 2")]
)
def test_the_worker_that_is_furthest_behind_is_blamed(last, when):
    detector = HangDetector(2, 10, first_word_s=40)
    said = {0: replace(READY, round_index=3), 1: last}
    assert detector.check(said, 0) is None
    assert detector.check(said, 11) == (
        f"worker 1 on b, last heard {when}, has said nothing for 11 s; timeout_s is the limit"
    )


def test_an_error_of_the_watch_is_warned_of_once_and_does_not_end_it(caplog):
    calls, enough = [], threading.Event()

    def say() -> None:
        calls.append(1)
        if len(calls) == 5:
            enough.set()
        raise OSError("the store is gone" if len(calls) < 4 else "and away")

    with run_periodically(0.001, say):
        assert enough.wait(10)
    said = [record.getMessage().rsplit(": ", 1)[1] for record in caplog.records]
    assert said == ["the store is gone", "and away"]
