"""States on their way through Spark: whole on the other side, and refused where the driver has no room for them."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from shardmean.jobs.spark import state_broadcast
from shardmean.jobs.spark.barrier import BarrierLauncher
from shardmean.jobs.spark.session import first_cause
from shardmean.jobs.spark.state_broadcast import broadcast_states, no_room, num_bytes
from shardmean.model.config.training import TrainingConfig
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.errors import LostWorkerError, UserError
from shardmean.model.training.environment import this_environment
from shardmean.model.training.messages import Report, Rounds, Task

MODEL = {"weight": torch.arange(200_000.0)}
TOO_LONG = (
    "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n: "
    "org.apache.spark.SparkException: Job aborted due to stage failure: Serialized task 0:0 was 140522323 bytes, which "
    "exceeds max allowed: spark.rpc.message.maxSize (134217728 bytes). Consider increasing it.\n\tat org.apache"
)


@pytest.fixture
def launcher(spark):
    return BarrierLauncher(spark, Rendezvous("127.0.0.1"), 2)


def tasks_with(launcher, optimizers, *, rounds=None, **config) -> list[Task]:
    return [
        Task(
            config=TrainingConfig(**config), dataset_uri="", digest="", rank=rank, num_workers=len(optimizers),
            state={"model": MODEL, "optimizer": optimizer, "outer_momentum": None},
            address=launcher.rendezvous.new_address(), environment=this_environment(), rounds=rounds,
        )
        for rank, optimizer in enumerate(optimizers)
    ]  # fmt: skip


def _echo(task: Task, _device: str) -> Report:
    return Report(task.rank, state=task.state)


@pytest.mark.parametrize("large_bytes", [1, 500_000, 10**9])
def test_each_worker_gets_the_state_that_was_meant_for_it(launcher, monkeypatch, large_bytes):
    monkeypatch.setattr(state_broadcast, "LARGE_BYTES", large_bytes)
    optimizers = [{"state": {0: {"step": torch.tensor(rank), "sum": torch.full((9,), rank)}}} for rank in (1.0, 2.0)]
    reports = launcher.run(_echo, tasks_with(launcher, optimizers))
    for report, optimizer in zip(reports, optimizers, strict=True):
        assert report.state.keys() == {"model", "optimizer", "outer_momentum"}
        assert torch.equal(report.state["model"]["weight"], MODEL["weight"])
        assert torch.equal(report.state["optimizer"]["state"][0]["sum"], optimizer["state"][0]["sum"])
        assert report.state["outer_momentum"] is None


@pytest.fixture
def sent(spark, monkeypatch):
    """All broadcasts that the test makes."""
    sent = []
    broadcast = type(spark.sparkContext).broadcast
    monkeypatch.setattr(type(spark.sparkContext), "broadcast", lambda c, v: sent.append(broadcast(c, v)) or sent[-1])
    return sent


def are_there(sent) -> list[bool]:
    return [broadcast._jbroadcast.isValid() for broadcast in sent]


def test_what_workers_share_is_broadcast_once_and_let_go(launcher, sent):
    launcher.run(_echo, tasks_with(launcher, [None, None]))
    assert are_there(sent) == [False]


def test_what_an_interrupted_job_was_sent_is_let_go_by_the_next(launcher, spark, sent):
    pack = partial(broadcast_states, spark.sparkContext, tasks_with(launcher, [None, None]), live=[])
    with pytest.raises(KeyboardInterrupt), pack():
        raise KeyboardInterrupt
    assert are_there(sent) == [True], "a task that still runs would keep Spark waiting"
    with pack():
        assert are_there(sent) == [False, True]
    assert are_there(sent) == [False, False]


@pytest.mark.parametrize(("policy", "copies"), [("average", 3), ("keep", 5), ("reset", 1)])
def test_states_over_the_limit_of_results_are_refused_before_a_task_starts(launcher, monkeypatch, policy, copies):
    total_bytes = copies * num_bytes(MODEL)
    monkeypatch.setattr(state_broadcast, "_bytes_of", lambda *_names: total_bytes - 1)
    tasks = tasks_with(
        launcher, [None, None], rounds=Rounds(epoch=0, first=0, stop=1), averaging={"optimizer_state": policy}
    )
    with pytest.raises(UserError, match=r"states are \d+ MiB, more .* raise spark.driver.maxResultSize \(not set\)"):
        launcher.run(_echo, tasks)
    monkeypatch.setattr(state_broadcast, "_bytes_of", lambda *_names: total_bytes)
    assert len(launcher.run(_echo, tasks)) == 2


def test_states_over_the_drivers_memory_are_refused_before_a_task_starts(launcher, monkeypatch):
    monkeypatch.setattr(state_broadcast, "COPIES_IN_LOCAL_MODE", 10**6)
    tasks = tasks_with(launcher, [None, None], rounds=Rounds(epoch=0, first=0, stop=1))
    with pytest.raises(
        UserError, match=r"needs about \d+ MiB of memory, and it has \d+ MiB: raise spark.driver.memory"
    ):
        launcher.run(_echo, tasks)


@pytest.mark.parametrize(("text", "message"), [
    (TOO_LONG, r"too large .*140522323 bytes, which exceeds .*; raise spark.rpc.message.maxSize \(not set\)"),
    ("Job aborted: Total size of serialized results of 2 tasks (1.2 GiB) is bigger than spark.driver.maxResultSize (1)",
     r"Total size .*; raise spark.driver.maxResultSize \(not set\)"),
    ("An error occurred\n: java.lang.OutOfMemoryError: Java heap space", r"Java heap space; raise spark.driver.memory"),
])  # fmt: skip
def test_no_room_is_the_users_mistake(spark, text, message):
    with pytest.raises(UserError, match=message):
        raise no_room(spark.sparkContext, text)


def test_an_executor_out_of_memory_is_a_lost_worker(spark):
    assert no_room(spark.sparkContext, "Job aborted: task 3 failed: java.lang.OutOfMemoryError: Java heap") is None


def test_the_cause_of_an_aborted_job_is_named():
    assert "Serialized task 0:0 was 140522323 bytes" in first_cause(LostWorkerError(TOO_LONG))
