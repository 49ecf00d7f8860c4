"""Progress lines: what they say of an epoch, and that one that fails is warned of, once, and those after it go on."""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING

import pytest

from shardmean.model.distributed.store import Progress
from shardmean.model.training import progress
from shardmean.model.training.progress import EpochProgress, progress_reporter, run_periodically

if TYPE_CHECKING:
    from collections.abc import Mapping


def first_line(monkeypatch, caplog, *tries: Mapping[int, Progress]) -> tuple[str, EpochProgress | None]:
    """The first line of the third epoch, after 40 of its 200 examples, and what `on_progress` then got."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "INTERVAL_S", 0.05)
    got: list[EpochProgress] = []
    with progress_reporter("epoch 3", 200, epoch=2, num_before=40, on_progress=got.append) as watch:
        for reports in tries:
            watch(lambda reports=reports: reports)
        while not caplog.records:
            threading.Event().wait(0.01)
    return caplog.records[0].getMessage(), got[0] if got else None


def test_a_line_counts_the_examples_of_earlier_segments_and_weighs_losses(monkeypatch, caplog):
    lost = {0: Progress("a", num_examples=90, loss=9.0)}
    reports = {0: Progress("a", num_examples=10, loss=1.0), 1: Progress("b", num_examples=30, loss=2.0)}
    line, got = first_line(monkeypatch, caplog, lost, reports)
    assert re.fullmatch(
        r"epoch 3: 80 of 200 examples \(40 %\), loss 1\.7500, \d+/s \(worker 0 \d+/s, worker 1 \d+/s\)", line
    )
    assert (got.epoch, got.num_examples, got.total_examples, got.loss) == (2, 80, 480, 1.75)
    assert got.worker_rates[1] == pytest.approx(3 * got.worker_rates[0])
    assert got.examples_per_second == pytest.approx(4 * got.worker_rates[0])


@pytest.mark.parametrize(("num_workers", "named"), [(1, []), (2, [0, 1]), (4, [0, 1, 2, 3]), (5, [3, 1])])
def test_a_line_names_few_workers_or_the_slowest_and_the_fastest(monkeypatch, caplog, num_workers, named):
    examples = [30, 50, 40, 20, 45]
    reports = {rank: Progress("a", num_examples=examples[rank]) for rank in range(num_workers)}
    line, _ = first_line(monkeypatch, caplog, reports)
    assert [int(rank) for rank in re.findall(r"worker (\d)", line)] == named


@pytest.mark.parametrize("tries", [[], [{}], [{0: Progress("a")}]])
def test_before_the_first_example_a_line_says_that_workers_start(monkeypatch, caplog, tries):
    line, got = first_line(monkeypatch, caplog, *tries)
    assert re.fullmatch(r"epoch 3: workers are starting, \d+ s", line)
    assert got is None


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
