"""The watchdog: a worker that stops reporting is noticed whenever that begins, and so is a watch that fails."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from shardmean.model.distributed.store import Progress
from shardmean.model.errors import LostLauncherError, RetryableError, UserError
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.watchdog import HangDetector, watchdog
from tests.model.fitting import fit
from tests.model.training.faults import Fault, FaultyLauncher, training

if TYPE_CHECKING:
    from collections.abc import Callable

READY = Progress("a", is_ready=True)


def test_workers_that_never_report_are_noticed():
    detector = HangDetector(2, 10, first_report_s=40)
    assert detector.check({}, 100) is None
    assert detector.check({}, 139) is None
    assert detector.check({}, 141) == ("no worker has reported for 41 s; the limit is wait_for_workers_s + timeout_s")


def test_after_the_first_report_silence_counts_from_it():
    detector = HangDetector(2, 10, first_report_s=40)
    assert detector.check({}, 0) is None
    assert detector.check({0: READY}, 39) is None
    assert detector.check({0: replace(READY, round_index=1)}, 49) is None
    assert detector.check({0: replace(READY, round_index=2)}, 50) == (
        "worker 1 has not reported for 11 s; the limit is timeout_s"
    )


@pytest.mark.parametrize(
    ("last", "when"), [(Progress("b"), "at its start"), (replace(READY, host="b", round_index=2), "in round 2")]
)
def test_the_worker_that_is_furthest_behind_is_named(last, when):
    detector = HangDetector(2, 10, first_report_s=40)
    reports = {0: replace(READY, round_index=3), 1: last}
    assert detector.check(reports, 0) is None
    assert detector.check(reports, 11) == (
        f"worker 1 on b, last report {when}, has not reported for 11 s; the limit is timeout_s"
    )


def failing_check() -> str | None:
    raise KeyError("a key of the store")


FAILED = "the watchdog over the workers failed: KeyError: 'a key of the store'"


def ended(check: Callable[[], str | None], block_error: Exception | None, *, num_end_failures: int = 0) -> list[str]:
    """The reasons that `end` was given until the second one after its failures; then the block raises its error."""
    reasons, is_enough = [], threading.Event()

    def end(reason: str) -> None:
        reasons.append(reason)
        if len(reasons) <= num_end_failures:
            raise OSError("the store is gone")
        if len(reasons) == num_end_failures + 2:
            is_enough.set()

    with watchdog(check, end, interval_s=0.001):
        assert is_enough.wait(10)
        if block_error is not None:
            raise block_error
    return reasons


def test_what_the_check_finds_ends_the_block_until_it_has_ended():
    assert set(ended(lambda: "worker 1 hangs", None)) == {"worker 1 hangs"}


@pytest.mark.parametrize("block_error", [None, RetryableError("cancelled")])
def test_a_check_that_fails_ends_the_block_with_its_own_error(block_error):
    with pytest.raises(RetryableError) as error:
        ended(failing_check, block_error)
    assert str(error.value) == FAILED
    assert isinstance(error.value.__cause__, KeyError)


def test_a_check_that_failed_is_not_trusted_again_and_ending_is_tried_again():
    results = iter([KeyError("a key of the store")])

    def check() -> str | None:
        for error in results:
            raise error
        return None

    with pytest.raises(RetryableError, match=re.escape(FAILED)):
        ended(check, None, num_end_failures=2)


@pytest.mark.parametrize(
    "block_error", [LostLauncherError("Spark's JVM has ended"), UserError("no room"), KeyboardInterrupt()]
)
def test_an_error_that_ending_does_not_cause_is_kept(block_error):
    with pytest.raises(type(block_error)):
        ended(failing_check, block_error)


def test_a_segment_whose_watchdog_fails_ends_at_once_though_a_worker_hangs(gray_data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(HangDetector, "check", lambda *_: failing_check())
    started = time.monotonic()
    with LocalLauncher(2) as launcher, pytest.raises(RetryableError, match=re.escape(FAILED)) as error:
        fit(training(gray_data, FaultyLauncher(launcher, Fault("hangs", tmp_path, times=9)), max_segment_retries=1))
    assert isinstance(error.value.__cause__, KeyError)
    assert f"{FAILED}; trying again (1 of 1)" in caplog.text
    assert time.monotonic() - started < 120, "and timeout_s is 300"
