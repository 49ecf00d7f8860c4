"""Divergence: a state, a loss or an outer step that is not finite stops all workers and changes nobody."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shardmean.model.config.training import AveragingConfig, OuterConfig
from shardmean.model.distributed.rendezvous import WorkerGroup
from shardmean.model.errors import DivergedError, PeerDivergedError
from tests.model.optimization.workers import State, Worker, assert_bits, together


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["parameter", "buffer", "moment"])
def test_a_state_that_is_not_finite_stops_all_and_changes_nobody(groups, template, poison, where):
    def work(rank: int, group: WorkerGroup) -> tuple[Exception, State, State]:
        worker = Worker(template, rank, group, AveragingConfig(), "adam")
        worker.steps(2)
        if rank == 1:
            parameter = worker.model[0].weight
            moment = worker.optimizer.state[parameter]["exp_avg"]
            tensor = {"parameter": parameter, "buffer": worker.model[1].running_var, "moment": moment}[where]
            tensor.detach().flatten()[0] = poison
        before = worker.state()
        with pytest.raises((DivergedError, PeerDivergedError)) as failure:
            worker.average(1 / 3, round_index=4)
        return failure.value, before, worker.state()

    results = together(groups[3], work)
    errors = [error for error, _, _ in results]
    assert [type(error) for error in errors] == [PeerDivergedError, DivergedError, PeerDivergedError]
    assert "worker 1 diverged" in str(errors[1])
    assert "after round 4" in str(errors[1])
    assert "lower optimizer.learning_rate" in str(errors[1])
    assert "worker 2 stopped in round 4: a peer's state or loss is not finite" in str(errors[2])
    for _, before, after in results:
        assert_bits(before, after)


@pytest.mark.parametrize("comm_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_what_is_not_finite_is_never_sent(groups, template, monkeypatch, poison, comm_dtype):
    sent: list[bool] = []
    reduce = WorkerGroup.all_reduce

    def recorded(self: WorkerGroup, values: torch.Tensor, **options: Any) -> None:
        sent.append(bool(values.isfinite().all()))
        reduce(self, values, **options)

    monkeypatch.setattr(WorkerGroup, "all_reduce", recorded)

    def work(rank: int, group: WorkerGroup) -> None:
        worker = Worker(template, rank, group, AveragingConfig(comm_dtype=comm_dtype), "sgd")
        worker.steps(1)
        if rank == 1:
            worker.model[0].weight.detach().flatten()[0] = poison
        with pytest.raises((DivergedError, PeerDivergedError)):
            worker.average(1 / 2)

    together(groups[2], work)
    assert len(sent) >= 2
    assert all(sent)


def test_finite_values_whose_sum_overflows_are_averaged(groups, template):
    def work(rank: int, group: WorkerGroup) -> torch.Tensor:
        worker = Worker(template, rank, group, AveragingConfig(), "sgd")
        with torch.no_grad():
            worker.model[0].weight.fill_(3e38 if rank else 1e38)
        assert worker.model[0].weight.sum().isinf()
        worker.average(1 / 2)
        return worker.model[0].weight.detach()

    for weight in together(groups[2], work):
        torch.testing.assert_close(weight, torch.full_like(weight, 2e38))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_all_and_changes_nobody(groups, template, loss):
    def work(rank: int, group: WorkerGroup) -> tuple[Exception, State, State]:
        worker = Worker(template, rank, group, AveragingConfig(), "adam")
        worker.steps(2)
        before = worker.state()
        with pytest.raises((DivergedError, PeerDivergedError)) as failure:
            worker.average(1 / 2, 3, loss if rank == 1 else 1.0)
        return failure.value, before, worker.state()

    results = together(groups[2], work)
    assert str(results[0][0]) == "worker 0 stopped in round 3: a peer's state or loss is not finite"
    assert "worker 1 diverged: its training loss was not finite after round 3; lower " in str(results[1][0])
    for _, before, after in results:
        assert_bits(before, after)


def test_an_outer_step_that_overflows_stops_all_before_it_is_written(groups, template):
    config = AveragingConfig(outer=OuterConfig(learning_rate=1e6))

    def work(rank: int, group: WorkerGroup) -> tuple[str, State]:
        worker = Worker(template, rank, group, config, "sgd")
        with torch.no_grad():
            worker.model[0].weight.add_(1e36)
        with pytest.raises(DivergedError) as failure:
            worker.average(1 / 2, 5)
        return str(failure.value), worker.state()

    for rank, (text, state) in enumerate(together(groups[2], work)):
        assert f"worker {rank} diverged: its parameters, by the outer step, were not finite after round 5" in text
        assert "lower averaging.outer or optimizer.learning_rate" in text
        assert all(value.isfinite().all() for value in state.values())
