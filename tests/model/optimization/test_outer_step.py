"""The outer step, against the SlowMo paper: on parameters alone, and the plain one is the mean to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from shardmean.model.config.training import AveragingConfig, OuterConfig
from tests.model.optimization.workers import State, Worker, assert_bits, mean_of, one_round, together

if TYPE_CHECKING:
    from shardmean.model.distributed.rendezvous import WorkerGroup


def run_outer(groups, template, outer: OuterConfig, num_rounds: int) -> list[list[tuple[State, State]]]:
    """For each worker and round, its state before and after the averaging."""

    def work(rank: int, group: WorkerGroup) -> list[tuple[State, State]]:
        worker = Worker(template, rank, group, AveragingConfig(outer=outer), "adam")
        seen = []
        for index in range(num_rounds):
            worker.steps(2)
            before = worker.state()
            worker.average((0.25, 0.75)[rank], index)
            seen.append((before, worker.state()))
        return seen

    return together(groups[2], work)


@pytest.mark.parametrize(("learning_rate", "momentum"), [(1.0, 0.5), (0.7, 0.0), (0.7, 0.9), (1.5, 0.3)])
def test_outer_step_is_slowmo(groups, template, learning_rate, momentum):
    # Wang et al., SlowMo (ICLR 2020), with the inner learning rate taken into the slow momentum.
    runs = run_outer(groups, template, OuterConfig(learning_rate=learning_rate, momentum=momentum), 4)
    for name, parameter in template.named_parameters():
        previous = parameter.detach().double().numpy()
        slow = np.zeros_like(previous)
        for rounds in zip(*runs, strict=True):
            mean = mean_of([before for before, _ in rounds], f"model.{name}", [0.25, 0.75])
            slow = momentum * slow + (previous - mean)
            previous = previous - learning_rate * slow
            for _, after in rounds:
                np.testing.assert_allclose(after[f"model.{name}"].numpy(), previous, rtol=1e-5, atol=2e-6)


def test_outer_step_leaves_buffers_and_moments_at_their_mean(groups, template):
    (first, second) = run_outer(groups, template, OuterConfig(learning_rate=0.5, momentum=0.5), 1)
    before = [first[0][0], second[0][0]]
    for name in ("model.1.running_mean", "model.1.running_var", "optimizer.0.exp_avg"):
        np.testing.assert_allclose(first[0][1][name].numpy(), mean_of(before, name, [0.25, 0.75]), rtol=1e-6, atol=1e-7)


def test_plain_averaging_of_one_worker_changes_no_bit(groups, template):
    before, after = one_round(groups, template, [1.0], [3], outer=OuterConfig(learning_rate=1, momentum=0))
    assert_bits(before[0], after[0])


def test_plain_outer_step_is_the_mean_to_the_bit(groups, template):
    default, plain = ({}, {"outer": OuterConfig(learning_rate=1, momentum=0)})
    _, one = one_round(groups, template, [0.3, 0.7], [2, 2], **default)
    _, other = one_round(groups, template, [0.3, 0.7], [2, 2], **plain)
    assert_bits(one[0], other[0])
    assert OuterConfig(learning_rate=1, momentum=0).is_plain
    assert not OuterConfig(learning_rate=1, momentum=0.1).is_plain
