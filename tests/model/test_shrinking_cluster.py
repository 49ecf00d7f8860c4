"""A cluster that shrinks in the middle of an epoch and grows again: each example is still seen once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from shardmean.model.errors import RetryableError
from shardmean.model.training.local_launcher import LocalLauncher
from tests.model.training.faults import Fault, FaultyLauncher, training

from .fitting import fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.model.training.checkpoint import Checkpoint
    from shardmean.model.training.messages import Task, Work


class Shrinking(FaultyLauncher):
    """A cluster that loses a place when the fault strikes, and gets it back after `back_after` more segments."""

    def __init__(self, launcher: LocalLauncher, fault: Fault, *, num_workers: int, back_after: int = 99) -> None:
        super().__init__(launcher, fault)
        self.workers: list[int] = []
        self._places, self._back_after, self._num_since = num_workers, back_after, 0
        self.num_slots = self._num_slots

    def _is_struck(self) -> bool:
        return any(self._fault.folder.iterdir())

    def _num_slots(self) -> int:
        return self._places - (self._is_struck() and self._num_since < self._back_after)

    def run(self, work: Work, tasks: list[Task]) -> Any:
        self.workers.append(len(tasks))
        self._num_since += self._is_struck()
        return super().run(work, tasks)


@pytest.fixture(scope="module")
def three() -> Iterator[LocalLauncher]:
    with LocalLauncher(3) as launcher:
        yield launcher


def test_a_smaller_cluster_goes_on_where_the_larger_one_was(gray_data, three, tmp_path, caplog):
    """Three workers lose one in the middle of the epoch: two see what is left, each example once."""
    caplog.set_level(logging.WARNING)
    cluster = Shrinking(three, Fault("reads badly", tmp_path, round_index=2), num_workers=3)
    states: list[Checkpoint] = []
    settings = {"num_workers": 3, "min_workers": 2, "wait_for_workers_s": 0, "checkpoint_every_rounds": 1}
    training(gray_data, cluster, num_epochs=2, **settings).fit(None, states.append)
    assert cluster.workers == [3, 3, 3, *[2] * (len(cluster.workers) - 3)]
    assert "continuing with 2 workers instead of 3" in caplog.text
    assert [state.stages for state in states[:4]] == [
        ((3, 1),), ((3, 2),), ((3, 2), (2, 1)), ((3, 2), (2, 2)),
    ]  # fmt: skip
    assert [metrics["examples"] for metrics in states[-1].history] == [120, 120]


def test_a_cluster_that_grows_again_is_used(gray_data, three, tmp_path):
    cluster = Shrinking(three, Fault("reads badly", tmp_path), num_workers=3, back_after=2)
    settings = {"num_workers": 3, "wait_for_workers_s": 0, "checkpoint_every_rounds": 1}
    state = fit(training(gray_data, cluster, num_epochs=2, **settings))
    assert cluster.workers == [3, 3, 3, 2, 2, *[3] * (len(cluster.workers) - 5)]
    assert [metrics["examples"] for metrics in state.history] == [120, 120]


def test_too_small_a_cluster_ends_the_training_with_both_numbers(gray_data, three, tmp_path):
    cluster = Shrinking(three, Fault("reads badly", tmp_path), num_workers=3)
    settings = {"num_workers": 3, "min_workers": 3, "wait_for_workers_s": 0, "max_segment_retries": 1}
    with pytest.raises(RetryableError, match="there are slots for 2 of 3 workers after 0 s, fewer than min_workers=3"):
        fit(training(gray_data, cluster, **settings))
