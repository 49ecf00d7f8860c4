"""Failures: what kind a worker's error is, what it reports, and which of several failures is shown."""

from __future__ import annotations

import itertools
import weakref
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.distributed import DistBackendError, DistStoreError

from shardmean.model.config.training import TrainingConfig
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.distributed.store import Progress
from shardmean.model.errors import (
    AbortedError,
    DivergedError,
    FailedWorkerError,
    LostPeersError,
    LostWorkerError,
    MissingPeersError,
    PeerDivergedError,
    RetryableError,
    UserError,
)
from shardmean.model.training.environment import this_environment
from shardmean.model.training.failures import describe_lost_worker, primary_failure
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.messages import Failure, Report, Task
from shardmean.model.training.worker_runtime import attempt, seeded
from tests.model.fitting import fit
from tests.model.training.faults import FaultyLauncher, training

if TYPE_CHECKING:
    from shardmean.model.training.messages import Work


class ScriptedLauncher(FaultyLauncher):
    """A launcher whose segments end as given: with an error, or with failures."""

    def __init__(self, *ends: Exception | list[Failure]) -> None:
        super().__init__(LocalLauncher(1), None)
        self._ends = list(ends)

    def run(self, work: Work, tasks: list[Task]) -> Any:
        end = self._ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


def failure(kind: str, text: str, *, rank: int = 1, host: str = "a") -> Failure:
    return Failure(rank, host, kind, text, f"trace of {text}")


def test_a_worker_that_moved_and_diverged_again_diverged_twice(gray_data):
    ends = [[failure("diverged", "not finite after round 3", host=host)] for host in "abcd"]
    with pytest.raises(UserError, match=r"worker 1 on b: not finite after round 3 \(failed identically twice; "):
        fit(training(gray_data, ScriptedLauncher(*ends), num_workers=1))


def test_retryable_errors_are_tried_again_whatever_their_text(gray_data):
    ends = [RetryableError("can't read s3://bucket/diverged-runs: timeout")] * 4
    with pytest.raises(RetryableError, match=r"diverged-runs: timeout$"):
        fit(training(gray_data, ScriptedLauncher(*ends), num_workers=1))


def test_the_cause_is_shown_before_peers_that_it_stopped(gray_data, caplog):
    ends = [failure("peer", "worker 1 left", rank=0), failure("bug", "RuntimeError: CUDA out of memory")]
    with pytest.raises(RetryableError, match="worker 1 on a: RuntimeError: CUDA out of memory"):
        fit(training(gray_data, ScriptedLauncher(ends), num_workers=1, max_segment_retries=0))
    assert "trace of RuntimeError: CUDA out of memory" in caplog.text
    assert "trace of worker 1 left" not in caplog.text


@pytest.mark.parametrize(
    ("first", "second"), itertools.combinations(("user", "diverged", "retryable", "bug", "peer"), 2)
)
def test_the_likelier_cause_is_shown_whichever_worker_it_is_of(first, second):
    for rank in (0, 2):
        error = primary_failure([failure(second, "consequence"), failure(first, "cause", rank=rank)])
        assert str(error) == f"worker {rank} on a: cause"
        assert isinstance(error, UserError if first == "user" else FailedWorkerError)


def test_of_one_kind_the_first_worker_is_shown():
    error = primary_failure([failure("peer", "worker 2 left", rank=rank) for rank in (2, 0, 1)])
    assert str(error) == "worker 0 on a: worker 2 left"


def test_a_failure_that_may_pass_is_tried_again_however_often_it_is_the_same(gray_data):
    ends = [[failure("retryable", "Input/output error")]] * 4
    with pytest.raises(RetryableError, match=r"worker 1 on a: Input/output error$"):
        fit(training(gray_data, ScriptedLauncher(*ends), num_workers=1))


@pytest.mark.parametrize(("rank", "reason", "expected"), [
    (None, "", "a worker was lost: killed"),
    (1, "", "worker 1 on b, last report in round 7, was lost: killed"),
    (1, "disk", "worker 1 on b, last report in round 7, was lost: killed (disk)"),
    (0, "", "worker 0 was lost: killed"),
    (2, "", "worker 2 on c, last report at its start, was lost: killed"),
])  # fmt: skip
def test_a_lost_worker_is_described_by_its_last_report(rank, reason, expected):
    reports = {1: Progress("b", round_index=7, is_ready=True), 2: Progress("c")}
    assert str(describe_lost_worker(LostWorkerError("killed", rank), reports, reason)) == expected


@pytest.fixture
def alone() -> tuple[Task, Rendezvous]:
    """A worker's task, and the rendezvous that it reports to."""
    rendezvous = Rendezvous()
    address = rendezvous.new_address()
    return Task(TrainingConfig(timeout_s=5), "nowhere", "", 0, 1, {}, address, this_environment()), rendezvous


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RuntimeError("mat1 and mat2 shapes"), "bug", "RuntimeError: mat1 and mat2 shapes"),
        (ValueError("one value per channel"), "bug", "ValueError: one value per channel"),
        (PeerDivergedError("a peer"), "peer", "a peer"),
        (LostPeersError("worker 1 left"), "peer", "worker 1 left"),
        (MissingPeersError("worker 0 could not reach worker 1"), "peer", "worker 0 could not reach worker 1"),
        (AbortedError("worker 0 was stopped"), "peer", "worker 0 was stopped"),
        (DistBackendError("NCCL"), "peer", "NCCL"),
        (DivergedError("not finite"), "diverged", "not finite"),
        (OSError("disk"), "retryable", "disk"),
    ],
)
def test_errors_have_kinds_and_each_stops_the_other_workers(alone, error, kind, text):
    task, rendezvous = alone

    def work(task: Task, device: str) -> Report:
        assert rendezvous.progress(task.address, 1)[0].is_done is False, "a report comes before the work"
        raise error

    found = attempt(work, task, "cpu")
    assert (found.kind, found.message) == (kind, text)
    assert rendezvous.abort_reason(task.address) == str(error)
    assert rendezvous.progress(task.address, 1)[0].is_done


CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 15.77 GiB of which 1.06 GiB is "
    "free. Including non-PyTorch memory, this process has 14.70 GiB memory in use."
)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "lower batch_size_per_worker (now 512) or set compute.precision=bfloat16"),
        ({"compute": {"precision": "bfloat16"}}, "lower batch_size_per_worker (now 512)"),
        (
            {"compute": {"precision": "bfloat16"}, "allow_shared_gpu": True},
            "lower batch_size_per_worker (now 512), or lower num_workers, since allow_shared_gpu is set",
        ),
    ],
)
def test_too_large_a_step_for_a_gpus_memory_is_the_users_mistake(alone, changes, remedy):
    task, _ = alone
    task = replace(task, config=TrainingConfig(timeout_s=5, batch_size_per_worker=512, **changes))

    def work(task: Task, device: str) -> Report:
        raise torch.OutOfMemoryError(CUDA_SAYS)

    found = attempt(work, task, lambda: "cuda:1")
    found_there = "cuda:1 has too little memory: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert (found.kind, found.message) == ("user", f"{found_there}; {remedy}")


@pytest.mark.parametrize("fails", [True, False])
def test_a_task_leaves_no_gpu_memory_to_its_process(alone, monkeypatch, fails):
    task, _ = alone
    held: list[weakref.ref[torch.Tensor]] = []
    left: list[bool] = []

    def empty_cache() -> None:
        left.append(held[0]() is not None)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def work(task: Task, device: str) -> Report:
        values = torch.ones(3)
        held.append(weakref.ref(values))
        if fails:
            raise ValueError("shapes")
        return Report(0)

    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", empty_cache)
    found = attempt(work, task, "cuda:1")
    assert isinstance(found, Failure) == fails
    assert left == [False], "after an error too its tensors have gone before the memory is given back"


def test_a_task_on_a_gpu_touches_no_other(alone, monkeypatch):
    task, _ = alone
    touched = []
    for name in ("device", "get_rng_state", "set_rng_state", "manual_seed_all", "manual_seed"):

        def touch(*given: Any, name: str = name) -> Any:
            touched.append((name, *given[-1:]))
            return nullcontext()

        monkeypatch.setattr(f"torch.cuda.{name}", touch)
    with seeded(task, "cuda:1"):
        drawn = torch.rand(3)
    assert [name for name, _ in touched] == ["device", "get_rng_state", "manual_seed", "set_rng_state"]
    assert [given for name, given in touched if name != "manual_seed"] == ["cuda:1"] * 3
    with seeded(task, "cpu"):
        assert torch.equal(torch.rand(3), drawn), "what is drawn on the CPU does not depend on the device"


def test_prefix_and_secret_are_not_in_errors(alone):
    task, _ = alone
    found = attempt(lambda task, device: 1 / len(task.address.prefix + task.address.secret) / 0, task, "cpu")
    assert found.message == "ZeroDivisionError: float division by zero"

    def work(task: Task, device: str) -> Report:
        raise DistStoreError(f"wait timeout after 1 ms, keys: /{task.address.prefix}/x, {task.address.secret}")

    found = attempt(work, task, "cpu")
    assert found.message == "wait timeout after 1 ms, keys: /segment/x, secret"
    assert task.address.prefix not in found.trace
    assert task.address.secret not in repr(task.address)
