"""Workers that die, hang, raise or diverge at a given (rank, round): the segment is run again, to the same bits."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from shardmean.model.errors import RetryableError, UserError
from shardmean.model.training.local_launcher import LocalLauncher
from tests.model.fitting import fit
from tests.model.training.faults import RANK, Fault, FaultyLauncher, training

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.model.training.checkpoint import Checkpoint
    from shardmean.model.training.messages import Task, Work


@pytest.fixture(scope="module")
def launcher() -> Iterator[LocalLauncher]:
    with LocalLauncher(2) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def undisturbed(gray_data, launcher) -> Checkpoint:
    return fit(training(gray_data, launcher))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("killed", r"a worker was lost: its process exited unexpectedly"),
        ("hangs", r"worker 1 on \S+, last report in round \d, has not reported for \d+ s"),
        ("raises", r"worker 1 on \S+: KeyError: 'a bug of ours'"),
        ("reads badly", r"worker 1 on \S+: \[Errno 5\] Input/output error"),
        ("diverges", r"worker 1 on \S+: worker 1 diverged: its parameters were not finite after round 2"),
    ],
)
def test_the_segment_is_run_again_to_the_same_bits(gray_data, launcher, undisturbed, tmp_path, caplog, kind, expected):
    caplog.set_level(logging.WARNING)
    # On a busy machine a new process may take long to report; only where a worker hangs is it waited for.
    timeout_s = 10 if kind == "hangs" else 300
    again = fit(training(gray_data, FaultyLauncher(launcher, Fault(kind, tmp_path)), timeout_s=timeout_s))
    (warning,) = [r.getMessage() for r in caplog.records if "trying again (1 of 3)" in r.getMessage()]
    assert re.search(expected, warning), warning
    for name, value in undisturbed.model.items():
        assert torch.equal(again.model[name], value), name
    metrics = again.history[0]
    assert metrics["retry_s"] > 0 == undisturbed.history[0]["retry_s"]
    assert metrics["spark_s"] < metrics["epoch_seconds"] - metrics["retry_s"]


def test_the_number_of_retries_is_kept(gray_data, launcher, tmp_path, caplog):
    fault = Fault("reads badly", tmp_path, times=9)
    with pytest.raises(RetryableError, match="Input/output error"):
        fit(training(gray_data, FaultyLauncher(launcher, fault), max_segment_retries=2))
    assert len(list(tmp_path.iterdir())) == 3
    assert "trying again (2 of 2)" in caplog.text


def test_parameters_that_blow_up_twice_are_the_users_mistake(gray_data, launcher, tmp_path, caplog):
    with pytest.raises(UserError, match=r"worker 1 diverged: .* after round 2; .*failed identically twice"):
        fit(training(gray_data, FaultyLauncher(launcher, Fault("diverges", tmp_path, times=9))))
    assert len(list(tmp_path.iterdir())) == 2
    assert "trying again (2" not in caplog.text


def test_a_bug_that_appears_twice_is_not_tried_a_third_time(gray_data, launcher, tmp_path, caplog):
    with pytest.raises(
        UserError, match=r"worker 1 on \S+: KeyError: 'a bug of ours' \(failed identically twice; not retrying\)"
    ):
        fit(training(gray_data, FaultyLauncher(launcher, Fault("raises", tmp_path, times=9))))
    assert len(list(tmp_path.iterdir())) == 2
    assert "in strike" in caplog.text, "the trace is logged"


class MisledLauncher(FaultyLauncher):
    """A launcher one of whose workers fails before it is connected to the others."""

    def run(self, work: Work, tasks: list[Task]) -> Any:
        tasks = [replace(task, dataset_uri="/nowhere") if task.rank == RANK else task for task in tasks]
        return self._launcher.run(work, tasks)


def test_peers_do_not_wait_for_a_worker_that_failed_before_it_connected(gray_data, launcher):
    fit(training(gray_data, launcher))  # the processes are there
    started = time.monotonic()
    with pytest.raises((UserError, RetryableError), match=r"worker 1 on \S+: .*/nowhere"):
        fit(training(gray_data, MisledLauncher(launcher, None), max_segment_retries=0))
    assert time.monotonic() - started < 20, "and timeout_s is 300"


class ForgingLauncher(FaultyLauncher):
    """A launcher whose first run gives worker RANK another secret: to the others its entries are forged."""

    num_runs = 0

    def run(self, work: Work, tasks: list[Task]) -> Any:
        self.num_runs += 1
        if self.num_runs == 1:
            address = replace(tasks[RANK].address, secret="another")
            tasks = [replace(task, address=address) if task.rank == RANK else task for task in tasks]
        return self._launcher.run(work, tasks)


def test_after_a_forged_entry_the_segment_is_run_again_with_a_new_secret(gray_data, launcher, undisturbed, caplog):
    again = fit(training(gray_data, ForgingLauncher(launcher, None)))
    (warning,) = [r.getMessage() for r in caplog.records if "trying again (1 of 3)" in r.getMessage()]
    assert re.search(
        r"worker (0|1) refused the entry device/(0|1) of the driver's store at .* did not sign it", warning
    )
    for name, value in undisturbed.model.items():
        assert torch.equal(again.model[name], value), name


def test_a_training_leaves_no_keys(gray_data):
    with LocalLauncher(1) as launcher:
        fit(training(gray_data, launcher, num_workers=1))
        assert not [key for key in launcher.rendezvous._store.list_keys() if "progress" in key]


def test_the_users_mistake_is_not_tried_again(gray_data, launcher, tmp_path, caplog):
    with pytest.raises(UserError, match=r"worker 1 on \S+: no such thing"):
        fit(training(gray_data, FaultyLauncher(launcher, Fault("asks for nonsense", tmp_path, times=9))))
    assert len(list(tmp_path.iterdir())) == 1
    assert "trying again" not in caplog.text


def test_peers_that_compute_for_long_are_stopped(gray_data, launcher, tmp_path):
    """With one averaging an epoch nobody waits for the worker that fails; the others stop all the same."""
    started = time.monotonic()
    fault = Fault("reads badly", tmp_path, round_index=0, slows_peers_by_s=60)
    with pytest.raises(RetryableError, match=r"worker 1 on \S+: \[Errno 5\]"):
        fit(
            training(
                gray_data, FaultyLauncher(launcher, fault), averaging={"frequency": "epoch"}, max_segment_retries=0
            )
        )
    assert time.monotonic() - started < 20
