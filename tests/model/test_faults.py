"""Workers that die, hang, raise or diverge at a given (rank, round): the segment is run again, to the same bits."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed import DistBackendError, DistStoreError

from model import segment
from model.averaging import DivergedError, PeerDivergedError, PeerLostError
from model.board import AbortedError
from model.environment import this_environment
from model.errors import UserError, WorldError
from model.exchange import LostPeersError, UnmetPeersError
from model.meeting import Meeting
from model.tasks import Failure, Task, attempt
from model.training import Training
from model.training_config import TrainingConfig
from model.transport import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.checkpoint import Checkpoint
    from model.tasks import Report, Work

RANK = 1


@dataclass(frozen=True)
class Fault:
    """What befalls worker RANK before the average of a round, as often as `times`; each leaves a file in `folder`."""

    kind: str
    folder: Path
    times: int = 1
    round_index: int = 2
    slows_peers_by_s: float = 0.0

    def strike(self, averager: Any) -> None:
        number = len(list(self.folder.iterdir()))
        if number >= self.times:
            return
        (self.folder / str(number)).touch()
        match self.kind:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raises":
                raise KeyError("a bug of ours")
            case "reads badly":
                raise OSError(5, "Input/output error")
            case "asks for nonsense":
                raise UserError("no such thing")
            case "diverges":
                with torch.no_grad():
                    next(iter(averager._model.parameters())).mul_(float("nan"))


def struck(work: Work, fault: Fault, task: Task, device: str) -> Report:
    """Do a task in which the fault befalls its worker."""
    average, step = segment.Averager.average, segment.Replica.backward

    def average_after_fault(self: Any, weight: float, *, rank: int, round_index: int, loss: float) -> None:
        if (rank, round_index) == (RANK, fault.round_index):
            fault.strike(self)
        average(self, weight, rank=rank, round_index=round_index, loss=loss)

    def slow_step(self: Any, batch: Any) -> None:
        if task.rank != RANK:
            time.sleep(fault.slows_peers_by_s / 12)
        step(self, batch)

    segment.Averager.average, segment.Replica.backward = average_after_fault, slow_step
    try:
        return work(task, device)
    finally:
        segment.Averager.average, segment.Replica.backward = average, step


class Struck:
    """A transport whose workers meet a fault."""

    def __init__(self, transport: LocalTransport, fault: Fault) -> None:
        self._transport = transport
        self._fault = fault
        self.meeting = transport.meeting
        self.cancel = transport.cancel
        self.num_slots = transport.num_slots

    def run(self, work: Work, tasks: list[Task]) -> Any:
        return self._transport.run(partial(struck, work, self._fault), tasks)


@pytest.fixture(scope="module")
def transport() -> Iterator[LocalTransport]:
    with LocalTransport(2) as transport:
        yield transport


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("faults"), rows={"train": 120}, shape=(1, 8, 8), shard_bytes=2000)


def training(dataset, transport, **changes: Any) -> Training:
    config = {"network": "small_cnn", "num_epochs": 1, "num_workers": 2, "batch_size_per_worker": 10, "device": "cpu"}
    averaging = {"averaging": {"frequency": 1}}
    return Training(TrainingConfig.model_validate(config | averaging | changes), dataset, transport)


def fitted(training: Training) -> Checkpoint:
    return training.fit(None, lambda state: None)


@pytest.fixture(scope="module")
def undisturbed(dataset, transport) -> Checkpoint:
    return fitted(training(dataset, transport))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("killed", r"a worker was lost: its process ended without a word"),
        ("hangs", r"worker 1 on \S+, last heard in round \d, has said nothing for \d+ s"),
        ("raises", r"worker 1 on \S+: KeyError: 'a bug of ours'"),
        ("reads badly", r"worker 1 on \S+: \[Errno 5\] Input/output error"),
        ("diverges", r"worker 1 on \S+: worker 1 diverged: its parameters were not finite after round 2"),
    ],
)
def test_the_segment_is_run_again_to_the_same_bits(dataset, transport, undisturbed, tmp_path, caplog, kind, said):
    caplog.set_level(logging.WARNING)
    again = fitted(training(dataset, Struck(transport, Fault(kind, tmp_path)), timeout_s=8))
    (warning,) = [r.getMessage() for r in caplog.records if "trying again (1 of 3)" in r.getMessage()]
    assert re.search(said, warning), warning
    for name, value in undisturbed.model.items():
        assert torch.equal(again.model[name], value), name
    figures = again.history[0]
    assert figures["retry_s"] > 0 == undisturbed.history[0]["retry_s"]
    assert figures["spark_s"] < figures["epoch_seconds"] - figures["retry_s"]


def test_the_number_of_retries_is_kept(dataset, transport, tmp_path, caplog):
    fault = Fault("reads badly", tmp_path, times=9)
    with pytest.raises(WorldError, match="Input/output error"):
        fitted(training(dataset, Struck(transport, fault), max_segment_retries=2))
    assert len(list(tmp_path.iterdir())) == 3
    assert "trying again (2 of 2)" in caplog.text


def test_parameters_that_blow_up_twice_are_the_users_mistake(dataset, transport, tmp_path, caplog):
    with pytest.raises(UserError, match=r"worker 1 diverged: .* after round 2; .*twice, so it is no accident"):
        fitted(training(dataset, Struck(transport, Fault("diverges", tmp_path, times=9))))
    assert len(list(tmp_path.iterdir())) == 2
    assert "trying again (2" not in caplog.text


def test_a_bug_that_strikes_twice_is_not_tried_a_third_time(dataset, transport, tmp_path, caplog):
    with pytest.raises(UserError, match=r"worker 1 on \S+: KeyError: 'a bug of ours' \(twice, so it is no accident\)"):
        fitted(training(dataset, Struck(transport, Fault("raises", tmp_path, times=9))))
    assert len(list(tmp_path.iterdir())) == 2
    assert "in strike" in caplog.text, "the trace is logged"


class Scripted(Struck):
    """A transport whose segments end as the script says; `text` is what the last failure said."""

    def __init__(self, *ends: Exception | list[Failure]) -> None:
        super().__init__(LocalTransport(1), None)
        self._ends = list(ends)

    def run(self, work: Work, tasks: list[Task]) -> Any:
        end = self._ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


def failure(kind: str, text: str, *, rank: int = 1, host: str = "a") -> Failure:
    return Failure(rank, host, kind, text, f"trace of {text}")


def test_a_worker_that_moved_and_diverged_again_diverged_twice(dataset):
    ends = [[failure("diverged", "not finite after round 3", host=host)] for host in "abcd"]
    with pytest.raises(UserError, match=r"worker 1 on b: not finite after round 3 \(twice"):
        fitted(training(dataset, Scripted(*ends), num_workers=1))


def test_the_worlds_faults_are_tried_again_whatever_they_are_called(dataset):
    ends = [WorldError("can't read s3://bucket/diverged-runs: timeout")] * 4
    with pytest.raises(WorldError, match=r"diverged-runs: timeout$"):
        fitted(training(dataset, Scripted(*ends), num_workers=1))


def test_the_cause_is_shown_before_peers_that_it_stopped(dataset, caplog):
    ends = [failure("peer", "worker 1 left", rank=0), failure("bug", "RuntimeError: CUDA out of memory")]
    with pytest.raises(WorldError, match="worker 1 on a: RuntimeError: CUDA out of memory"):
        fitted(training(dataset, Scripted(ends), num_workers=1, max_segment_retries=0))
    assert "trace of RuntimeError: CUDA out of memory" in caplog.text
    assert "trace of worker 1 left" not in caplog.text


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (RuntimeError("mat1 and mat2 shapes"), "bug", "RuntimeError: mat1 and mat2 shapes"),
        (ValueError("one value per channel"), "bug", "ValueError: one value per channel"),
        (PeerLostError("worker 1 left"), "peer", "worker 1 left"),
        (PeerDivergedError("a peer"), "peer", "a peer"),
        (LostPeersError([1], "worker 1 left"), "peer", "worker 1 left"),
        (UnmetPeersError(0, [1], "gone"), "peer", "worker 0 could not meet worker 1: gone"),
        (AbortedError("told to stop"), "peer", "told to stop"),
        (DistBackendError("NCCL"), "peer", "NCCL"),
        (DivergedError("not finite"), "diverged", "not finite"),
        (OSError("disk"), "world", "disk"),
    ],
)
def test_errors_are_told_apart_and_all_are_told_to_the_others(alone, error, kind, said):
    task, meeting = alone

    def work(task: Task, device: str) -> Report:
        assert meeting.progress(task.address, 1)[0].is_done is False, "a word comes first of all"
        raise error

    found = attempt(work, task, "cpu")
    assert (found.kind, found.message) == (kind, said)
    assert meeting.abort_reason(task.address) == str(error)
    assert meeting.progress(task.address, 1)[0].is_done


def test_what_only_workers_know_is_not_in_their_errors(alone):
    task, _ = alone
    found = attempt(lambda task, device: 1 / len(task.address.prefix + task.address.secret) / 0, task, "cpu")
    assert found.message == "ZeroDivisionError: float division by zero"

    def work(task: Task, device: str) -> Report:
        raise DistStoreError(f"wait timeout after 1 ms, keys: /{task.address.prefix}/x, {task.address.secret}")

    found = attempt(work, task, "cpu")
    assert found.message == "wait timeout after 1 ms, keys: /segment/x, secret"
    assert task.address.prefix not in found.trace
    assert task.address.secret not in repr(task.address)


@pytest.fixture
def alone() -> tuple[Task, Meeting]:
    """A worker's task, and the meeting that hears of it."""
    meeting = Meeting()
    address = meeting.new_address()
    return Task(TrainingConfig(timeout_s=5), "nowhere", "", 0, 1, {}, address, this_environment()), meeting


class Misled(Struck):
    """A transport one of whose workers fails before it has met the others."""

    def run(self, work: Work, tasks: list[Task]) -> Any:
        tasks = [replace(task, dataset_uri="/nowhere") if task.rank == RANK else task for task in tasks]
        return self._transport.run(work, tasks)


def test_peers_do_not_wait_for_a_worker_that_failed_before_it_came(dataset, transport):
    fitted(training(dataset, transport))  # the processes are there
    started = time.monotonic()
    with pytest.raises((UserError, WorldError), match=r"worker 1 on \S+: .*/nowhere"):
        fitted(training(dataset, Misled(transport, None), max_segment_retries=0))
    assert time.monotonic() - started < 20, "and timeout_s is 300"


def test_a_training_leaves_no_keys(dataset):
    with LocalTransport(1) as transport:
        fitted(training(dataset, transport, num_workers=1))
        assert not [key for key in transport.meeting._store.list_keys() if "progress" in key]


def test_the_users_mistake_is_not_tried_again(dataset, transport, tmp_path, caplog):
    with pytest.raises(UserError, match=r"worker 1 on \S+: no such thing"):
        fitted(training(dataset, Struck(transport, Fault("asks for nonsense", tmp_path, times=9))))
    assert len(list(tmp_path.iterdir())) == 1
    assert "trying again" not in caplog.text


def test_peers_that_compute_for_long_are_told_to_stop(dataset, transport, tmp_path):
    """With one averaging an epoch nobody waits for the worker that fails; the others hear of it all the same."""
    started = time.monotonic()
    fault = Fault("reads badly", tmp_path, round_index=0, slows_peers_by_s=60)
    with pytest.raises(WorldError, match=r"worker 1 on \S+: \[Errno 5\]"):
        fitted(training(dataset, Struck(transport, fault), averaging={"frequency": "epoch"}, max_segment_retries=0))
    assert time.monotonic() - started < 20


class Shrinking(Struck):
    """A cluster that loses a place when the fault strikes, and gets it back after `back_after` more segments."""

    def __init__(self, transport: LocalTransport, fault: Fault, *, num_workers: int, back_after: int = 99) -> None:
        super().__init__(transport, fault)
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
def three() -> Iterator[LocalTransport]:
    with LocalTransport(3) as transport:
        yield transport


def test_a_smaller_cluster_goes_on_where_the_larger_one_was(dataset, three, tmp_path, caplog):
    """Three workers lose one in the middle of the epoch: two see what is left, each example once."""
    caplog.set_level(logging.WARNING)
    cluster = Shrinking(three, Fault("reads badly", tmp_path, round_index=2), num_workers=3)
    states: list[Checkpoint] = []
    settings = {"num_workers": 3, "min_workers": 2, "wait_for_workers_s": 0, "checkpoint_every_rounds": 1}
    training(dataset, cluster, num_epochs=2, **settings).fit(None, states.append)
    assert cluster.workers == [3, 3, 3, *[2] * (len(cluster.workers) - 3)]
    assert "going on with 2 workers in place of 3" in caplog.text
    assert [state.legs for state in states[:4]] == [
        ((3, 1),), ((3, 2),), ((3, 2), (2, 1)), ((3, 2), (2, 2)),
    ]  # fmt: skip
    assert [figures["examples"] for figures in states[-1].history] == [120, 120]


def test_a_cluster_that_grows_again_is_used(dataset, three, tmp_path):
    cluster = Shrinking(three, Fault("reads badly", tmp_path), num_workers=3, back_after=2)
    settings = {"num_workers": 3, "wait_for_workers_s": 0, "checkpoint_every_rounds": 1}
    state = fitted(training(dataset, cluster, num_epochs=2, **settings))
    assert cluster.workers == [3, 3, 3, 2, 2, *[3] * (len(cluster.workers) - 5)]
    assert [figures["examples"] for figures in state.history] == [120, 120]


def test_too_small_a_cluster_ends_the_training_with_both_numbers(dataset, three, tmp_path):
    cluster = Shrinking(three, Fault("reads badly", tmp_path), num_workers=3)
    settings = {"num_workers": 3, "min_workers": 3, "wait_for_workers_s": 0, "max_segment_retries": 1}
    with pytest.raises(WorldError, match="only 2 of 3 workers have a place left after 0 s, under min_workers=3"):
        fitted(training(dataset, cluster, **settings))
