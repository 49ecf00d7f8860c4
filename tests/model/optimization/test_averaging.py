"""An averaging's laws: the weighted mean of all state against numpy, the same bits for all, and counters that go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shardmean.model.config.training import AveragingConfig
from shardmean.model.distributed.rendezvous import WorkerGroup
from shardmean.model.errors import UserError
from shardmean.model.optimization.averaging import Averager
from tests.model.optimization.workers import (
    OPTIMIZERS,
    State,
    Worker,
    assert_bits,
    is_counter,
    mean_of,
    one_round,
    together,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_all_float_state_becomes_the_weighted_mean(groups, template, weights, optimizer):
    # RAdam's first five steps are plain ones, too short here for a bias before BatchNorm to change.
    before, after = one_round(groups, template, weights, [7] * len(weights), optimizer=optimizer)
    names = [name for name in before[0] if not is_counter(name)]
    assert {"model.0.weight", "model.1.running_mean", "model.1.running_var"} < set(names)
    assert any(name.startswith("optimizer.") for name in names)
    for name in names:
        values = [state[name] for state in before]
        of_steps_alone = name.endswith("mu_product")
        assert of_steps_alone or not torch.equal(values[0], values[1]), (
            f"{name} was the same already: the test would show nothing"
        )
        np.testing.assert_allclose(after[0][name].numpy(), mean_of(before, name, weights), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_all_workers_hold_the_same_bits_afterwards(groups, template, weights):
    _, after = one_round(groups, template, weights, list(range(1, len(weights) + 1)))
    for other in after[1:]:
        assert_bits(after[0], other)


@pytest.mark.parametrize(("weights", "num_steps", "expected"), [
    ([0.5, 0.5], [4, 4], 4), ([0.6, 0.4], [5, 3], 4), ([0.9, 0.1], [7, 1], 6), ([0.2, 0.3, 0.5], [1, 2, 6], 4),
])  # fmt: skip
def test_counters_advance_by_the_rounded_weighted_mean(groups, template, weights, num_steps, expected):
    assert expected == round(float(np.dot(weights, num_steps)))
    _, after = one_round(groups, template, weights, num_steps)
    counters = {name: value for name, value in after[0].items() if is_counter(name)}
    assert len(counters) == 1 + 6, "BatchNorm's and Adam's for six parameters"
    assert {int(value) for value in counters.values()} == {expected}
    assert counters["model.1.num_batches_tracked"].dtype == torch.int64


def test_counters_go_on_from_the_average_in_later_rounds(groups, template):
    num_steps = [[5, 3], [2, 2], [4, 0]]
    weights = [[0.6, 0.4], [0.5, 0.5], [1.0, 0.0]]

    def work(rank: int, group: WorkerGroup) -> list[int]:
        worker = Worker(template, rank, group, AveragingConfig(), "adam")
        seen = []
        for index in range(3):
            worker.steps(num_steps[index][rank])
            worker.average(weights[index][rank], index)
            state = worker.state()
            seen.append((int(state["model.1.num_batches_tracked"]), int(state["optimizer.0.step"])))
        return seen

    assert together(groups[2], work) == [[(4, 4), (6, 6), (10, 10)]] * 2


def test_a_worker_without_work_in_a_round_takes_the_others_mean(groups, template):
    def work(rank: int, group: WorkerGroup) -> tuple[State, State]:
        worker = Worker(template, rank, group, AveragingConfig(), "adam")
        worker.steps(1)
        worker.average(0.5)
        worker.steps(1 - rank)
        before = worker.state()
        worker.average(1.0 - rank, 1)
        return before, worker.state()

    (busy, after), (_, idle_after) = together(groups[2], work)
    assert_bits(busy, after)
    assert_bits(busy, idle_after)


def test_keep_leaves_each_optimizer_alone(groups, template):
    before, after = one_round(groups, template, [0.7, 0.3], [2, 3], optimizer_state="keep")
    for one, other in zip(before, after, strict=True):
        optimizer = [name for name in one if name.startswith("optimizer.")]
        assert len(optimizer) == 6 * 3
        assert_bits({name: one[name] for name in optimizer}, {name: other[name] for name in optimizer})
    for name in (name for name in before[0] if name.startswith("model.") and not is_counter(name)):
        np.testing.assert_allclose(after[1][name].numpy(), mean_of(before, name, [0.7, 0.3]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_halves_keep_the_mean_to_their_precision_and_all_workers_alike(groups, template, num_workers):
    """Changes travel, so what bfloat16 loses is a part of the round's change and not of the parameters."""
    weights = [1 / num_workers] * num_workers

    def work(rank: int, group: WorkerGroup) -> list[tuple[State, State]]:
        worker = Worker(template, rank, group, AveragingConfig(comm_dtype="bfloat16"), "adam")
        states = []
        for round_index in range(3):
            worker.steps(2)
            before = worker.state()
            worker.average(weights[rank], round_index)
            states.append((before, worker.state()))
        return states

    results = together(groups[num_workers], work)
    for round_index in range(3):
        before = [states[round_index][0] for states in results]
        after = [states[round_index][1] for states in results]
        last = results[0][round_index - 1][1] if round_index else None
        for other in after[1:]:
            assert_bits(after[0], other)
        for name in (name for name in before[0] if not is_counter(name)):
            start = last[name].double().numpy() if last else _first(template, name, before[0][name])
            change = max(float(np.abs(state[name].double().numpy() - start).max()) for state in before)
            error = np.abs(after[0][name].double().numpy() - mean_of(before, name, weights)).max()
            assert error <= 2**-7 * change + 1e-6, name
        counters = {int(after[0][name]) for name in before[0] if is_counter(name)}
        assert counters == {2 * (round_index + 1)}, "counters travel whole"


def _first(template: nn.Module, name: str, like: Tensor) -> NDArray[np.float64]:
    state = template.state_dict()
    key = name.removeprefix("model.")
    return (state[key] if name.startswith("model.") else torch.zeros_like(like)).double().numpy()


@pytest.mark.parametrize("comm_dtype", ["float32", "bfloat16"])
def test_gradients_become_the_weighted_mean_and_a_worker_without_any_takes_the_others(groups, template, comm_dtype):
    weights = [0.75, 0.25, 0.0]

    def work(rank: int, group: WorkerGroup) -> tuple[list[Tensor], list[Tensor]]:
        worker = Worker(template, rank, group, AveragingConfig(comm_dtype=comm_dtype), "sgd")
        if weights[rank]:
            nn.functional.cross_entropy(worker.model(torch.randn(5, 4)), torch.randint(3, (5,))).backward()
        before = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in worker.model.parameters()]
        worker.averager.average_gradients(weights[rank], rank=rank, round_index=0)
        return before, [p.grad.clone() for p in worker.model.parameters()]

    results = together(groups[3], work)
    for index in range(len(results[0][0])):
        mean = sum(weight * before[index] for weight, (before, _) in zip(weights, results, strict=True))
        tolerance = 1e-6 if comm_dtype == "float32" else 0.01
        for _, after in results:
            torch.testing.assert_close(after[index], mean, rtol=tolerance, atol=tolerance)
            assert torch.equal(after[index], results[0][1][index])


class Skipping(nn.Module):
    """A network that leaves its second layer out where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.skips = False

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.first(inputs)
        return scores if self.skips else self.second(scores)


def of_skipping(groups, skips: list[list[bool]], **config) -> list[Any]:
    """Each worker's state after rounds in which it skips or not, or its error."""

    def work(rank: int, group: WorkerGroup) -> Any:
        worker = Worker(Skipping(), rank, group, AveragingConfig(**config), "adam")
        for round_index, skips_now in enumerate(skips):
            worker.model.skips = skips_now[rank]
            worker.steps(1)
            try:
                worker.average(1 / len(skips_now), round_index)
            except UserError as error:
                return str(error)
        return worker.state()

    return together(groups[len(skips[0])], work)


def test_states_of_different_parameters_are_never_summed(groups):
    said = of_skipping(groups, [[True, True, True], [False, True, True]])
    expected = (
        "optimizer states can't be averaged in round 1: worker 0 has one of parameter second.weight, worker 1 has "
        "none yet, since its minibatches gave no gradient; set averaging.optimizer_state to keep or reset, or let "
        "each step of the network use all its parameters"
    )
    assert said == [expected] * 3, "all workers say the same"


@pytest.mark.parametrize("policy", ["keep", "reset"])
def test_with_states_that_do_not_travel_a_network_may_skip(groups, policy):
    first, second = of_skipping(groups, [[False, True], [True, False]], optimizer_state=policy)
    assert torch.equal(first["model.second.weight"], second["model.second.weight"])


def test_what_no_worker_has_a_gradient_of_needs_no_state(groups):
    first, second = of_skipping(groups, [[True, True], [False, False], [True, False]])
    assert_bits(first, second)


def test_workers_compare_what_state_they_have_until_all_have_all(groups, template, monkeypatch):
    """A comparison costs a sum: where nothing can change any more there is none."""
    sizes = []

    def work(rank: int, group: WorkerGroup) -> None:
        for optimizer in ("adam", "plain"):
            worker = Worker(template, rank, group, AveragingConfig(), "adam")
            if optimizer == "plain":
                worker.optimizer = torch.optim.SGD(worker.model.parameters(), lr=0.1)
                worker.averager = Averager(worker.model, worker.optimizer, AveragingConfig(), group, None)
            for round_index in range(3):
                worker.steps(1)
                worker.average(0.5, round_index)

    reduce = WorkerGroup.all_reduce

    def counted(self: WorkerGroup, values: Tensor, **options: Any) -> None:
        sizes.append(values.numel())
        reduce(self, values, **options)

    monkeypatch.setattr(WorkerGroup, "all_reduce", counted)
    together(groups[2], work)
    assert sizes.count(6 + 1) == 2 * 2, "once for each worker and optimizer"
    assert len(sizes) == 2 * 2 * (1 + 3)
