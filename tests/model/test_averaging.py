"""An averaging's laws: the weighted mean of all state against numpy, the outer step against the SlowMo paper.

Members are real and meet through a real store; they are threads of one process.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.averaging import Averager, DivergedError, PeerDivergedError
from model.meeting import Meeting, Member
from model.training_config import AveragingConfig, OuterConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

WEIGHTS = [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5, centered=True),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "radam": lambda parameters: torch.optim.RAdam(parameters, lr=0.01),
    "adamax": lambda parameters: torch.optim.Adamax(parameters, lr=0.01),
    "adadelta": lambda parameters: torch.optim.Adadelta(parameters, lr=0.01),
}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def members() -> Iterator[dict[int, list[Member]]]:
    """Groups of 1, 2 and 3 members; made once, because torch asks the name server at every connection."""
    meeting = Meeting()
    groups = {num_workers: _group(meeting, num_workers) for num_workers in (1, 2, 3)}
    yield groups
    for member in (member for group in groups.values() for member in group):
        member.__exit__(None, None, None)


def _group(meeting: Meeting, num_workers: int) -> list[Member]:
    address = meeting.new_address()
    with ThreadPoolExecutor(num_workers) as pool:
        ranks = range(num_workers)
        return list(pool.map(lambda r: Member(address, rank=r, num_workers=num_workers, timeout_s=30), ranks))


@pytest.fixture(scope="module")
def template():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


class Worker:
    """A copy of the template network, its optimizer, and its averager, before any step."""

    def __init__(self, template: nn.Module, rank: int, member: Member, config: AveragingConfig, optimizer: str) -> None:
        self.rank = rank
        self.model = copy.deepcopy(template)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.averager = Averager(self.model, self.optimizer, config, member, None)
        self.generator = torch.Generator().manual_seed(rank)

    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.optimizer.zero_grad()
            inputs = torch.randn(5, 4, generator=self.generator)
            labels = torch.randint(3, (5,), generator=self.generator)
            nn.functional.cross_entropy(self.model(inputs), labels).backward()
            self.optimizer.step()

    def average(self, weight: float, round_index: int = 0, loss: float = 0.0) -> None:
        self.averager.average(weight, rank=self.rank, round_index=round_index, loss=loss)

    def state(self) -> State:
        """Copies of all state, by name."""
        state = {f"model.{name}": tensor.clone() for name, tensor in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{key}": torch.as_tensor(value).clone() for key, value in values.items()}
        return state


def together(group: list[Member], work: Callable[[int, Member], Any]) -> list[Any]:
    """What `work` gave in each member's thread."""
    with ThreadPoolExecutor(len(group)) as pool:
        return list(pool.map(work, range(len(group)), group))


def one_round(members, template, weights, num_steps, *, optimizer="adam", **config) -> tuple[list[State], list[State]]:
    """Each worker's state before and after the averaging."""

    def work(rank: int, member: Member) -> tuple[State, State]:
        worker = Worker(template, rank, member, AveragingConfig(**config), optimizer)
        worker.steps(num_steps[rank])
        before = worker.state()
        worker.average(weights[rank])
        return before, worker.state()

    results = together(members[len(weights)], work)
    return [before for before, _ in results], [after for _, after in results]


def is_counter(name: str) -> bool:
    return name.endswith(("num_batches_tracked", ".step"))


def mean_of(states: list[State], name: str, weights: list[float]) -> NDArray[np.float64]:
    return sum(weight * state[name].double().numpy() for weight, state in zip(weights, states, strict=True))


def assert_bits(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_all_float_state_becomes_the_weighted_mean(members, template, weights, optimizer):
    # RAdam's first five steps are plain ones, too short here for a bias before BatchNorm to change.
    before, after = one_round(members, template, weights, [7] * len(weights), optimizer=optimizer)
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
def test_all_workers_hold_the_same_bits_afterwards(members, template, weights):
    _, after = one_round(members, template, weights, list(range(1, len(weights) + 1)))
    for other in after[1:]:
        assert_bits(after[0], other)


@pytest.mark.parametrize(("weights", "num_steps", "expected"), [
    ([0.5, 0.5], [4, 4], 4), ([0.6, 0.4], [5, 3], 4), ([0.9, 0.1], [7, 1], 6), ([0.2, 0.3, 0.5], [1, 2, 6], 4),
])  # fmt: skip
def test_counters_advance_by_the_rounded_weighted_mean(members, template, weights, num_steps, expected):
    assert expected == round(float(np.dot(weights, num_steps)))
    _, after = one_round(members, template, weights, num_steps)
    counters = {name: value for name, value in after[0].items() if is_counter(name)}
    assert len(counters) == 1 + 6, "BatchNorm's and Adam's for six parameters"
    assert {int(value) for value in counters.values()} == {expected}
    assert counters["model.1.num_batches_tracked"].dtype == torch.int64


def test_counters_go_on_from_the_average_in_later_rounds(members, template):
    num_steps = [[5, 3], [2, 2], [4, 0]]
    weights = [[0.6, 0.4], [0.5, 0.5], [1.0, 0.0]]

    def work(rank: int, member: Member) -> list[int]:
        worker = Worker(template, rank, member, AveragingConfig(), "adam")
        seen = []
        for index in range(3):
            worker.steps(num_steps[index][rank])
            worker.average(weights[index][rank], index)
            state = worker.state()
            seen.append((int(state["model.1.num_batches_tracked"]), int(state["optimizer.0.step"])))
        return seen

    assert together(members[2], work) == [[(4, 4), (6, 6), (10, 10)]] * 2


def test_a_worker_without_work_in_a_round_takes_the_others_mean(members, template):
    def work(rank: int, member: Member) -> tuple[State, State]:
        worker = Worker(template, rank, member, AveragingConfig(), "adam")
        worker.steps(1)
        worker.average(0.5)
        worker.steps(1 - rank)
        before = worker.state()
        worker.average(1.0 - rank, 1)
        return before, worker.state()

    (busy, after), (_, idle_after) = together(members[2], work)
    assert_bits(busy, after)
    assert_bits(busy, idle_after)


def test_keep_leaves_each_optimizer_alone(members, template):
    before, after = one_round(members, template, [0.7, 0.3], [2, 3], optimizer_state="keep")
    for one, other in zip(before, after, strict=True):
        optimizer = [name for name in one if name.startswith("optimizer.")]
        assert len(optimizer) == 6 * 3
        assert_bits({name: one[name] for name in optimizer}, {name: other[name] for name in optimizer})
    for name in (name for name in before[0] if name.startswith("model.") and not is_counter(name)):
        np.testing.assert_allclose(after[1][name].numpy(), mean_of(before, name, [0.7, 0.3]), rtol=1e-6, atol=1e-6)


def run_outer(members, template, outer: OuterConfig, num_rounds: int) -> list[list[tuple[State, State]]]:
    """For each worker and round, its state before and after the averaging."""

    def work(rank: int, member: Member) -> list[tuple[State, State]]:
        worker = Worker(template, rank, member, AveragingConfig(outer=outer), "adam")
        seen = []
        for index in range(num_rounds):
            worker.steps(2)
            before = worker.state()
            worker.average((0.25, 0.75)[rank], index)
            seen.append((before, worker.state()))
        return seen

    return together(members[2], work)


@pytest.mark.parametrize(("learning_rate", "momentum"), [(1.0, 0.5), (0.7, 0.0), (0.7, 0.9), (1.5, 0.3)])
def test_outer_step_is_slowmo(members, template, learning_rate, momentum):
    # Wang et al., SlowMo (ICLR 2020), with the inner learning rate taken into the slow momentum.
    runs = run_outer(members, template, OuterConfig(learning_rate=learning_rate, momentum=momentum), 4)
    for name, parameter in template.named_parameters():
        previous = parameter.detach().double().numpy()
        slow = np.zeros_like(previous)
        for rounds in zip(*runs, strict=True):
            mean = mean_of([before for before, _ in rounds], f"model.{name}", [0.25, 0.75])
            slow = momentum * slow + (previous - mean)
            previous = previous - learning_rate * slow
            for _, after in rounds:
                np.testing.assert_allclose(after[f"model.{name}"].numpy(), previous, rtol=1e-5, atol=2e-6)


def test_outer_step_leaves_buffers_and_moments_at_their_mean(members, template):
    (first, second) = run_outer(members, template, OuterConfig(learning_rate=0.5, momentum=0.5), 1)
    before = [first[0][0], second[0][0]]
    for name in ("model.1.running_mean", "model.1.running_var", "optimizer.0.exp_avg"):
        np.testing.assert_allclose(first[0][1][name].numpy(), mean_of(before, name, [0.25, 0.75]), rtol=1e-6, atol=1e-7)


def test_plain_averaging_of_one_worker_changes_no_bit(members, template):
    before, after = one_round(members, template, [1.0], [3], outer=OuterConfig(learning_rate=1, momentum=0))
    assert_bits(before[0], after[0])


def test_plain_outer_step_is_the_mean_to_the_bit(members, template):
    default, plain = ({}, {"outer": OuterConfig(learning_rate=1, momentum=0)})
    _, one = one_round(members, template, [0.3, 0.7], [2, 2], **default)
    _, other = one_round(members, template, [0.3, 0.7], [2, 2], **plain)
    assert_bits(one[0], other[0])
    assert OuterConfig(learning_rate=1, momentum=0).is_plain
    assert not OuterConfig(learning_rate=1, momentum=0.1).is_plain


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["parameter", "buffer", "moment"])
def test_a_state_that_is_not_finite_stops_all_and_changes_nobody(members, template, poison, where):
    def work(rank: int, member: Member) -> tuple[Exception, State, State]:
        worker = Worker(template, rank, member, AveragingConfig(), "adam")
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

    results = together(members[3], work)
    errors = [error for error, _, _ in results]
    assert [type(error) for error in errors] == [PeerDivergedError, DivergedError, PeerDivergedError]
    assert "worker 1 diverged" in str(errors[1])
    assert "after round 4" in str(errors[1])
    assert "lower optimizer.learning_rate" in str(errors[1])
    assert "worker 2 stopped in round 4: a peer's state or loss is not finite" in str(errors[2])
    for _, before, after in results:
        assert_bits(before, after)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_all_and_changes_nobody(members, template, loss):
    def work(rank: int, member: Member) -> tuple[Exception, State, State]:
        worker = Worker(template, rank, member, AveragingConfig(), "adam")
        worker.steps(2)
        before = worker.state()
        with pytest.raises((DivergedError, PeerDivergedError)) as failure:
            worker.average(1 / 2, 3, loss if rank == 1 else 1.0)
        return failure.value, before, worker.state()

    results = together(members[2], work)
    assert str(results[0][0]) == "worker 0 stopped in round 3: a peer's state or loss is not finite"
    assert "worker 1 diverged: its training loss was not finite after round 3; lower " in str(results[1][0])
    for _, before, after in results:
        assert_bits(before, after)


def test_an_outer_step_that_overflows_stops_all_before_it_is_written(members, template):
    config = AveragingConfig(outer=OuterConfig(learning_rate=1e6))

    def work(rank: int, member: Member) -> tuple[str, State]:
        worker = Worker(template, rank, member, config, "sgd")
        with torch.no_grad():
            worker.model[0].weight.add_(1e36)
        with pytest.raises(DivergedError) as failure:
            worker.average(1 / 2, 5)
        return str(failure.value), worker.state()

    for rank, (text, state) in enumerate(together(members[2], work)):
        assert f"worker {rank} diverged: its parameters, by the outer step, were not finite after round 5" in text
        assert "lower averaging.outer or optimizer.learning_rate" in text
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("num_workers", [2, 3])
def test_halves_keep_the_mean_to_their_precision_and_all_workers_alike(members, template, num_workers):
    """Changes travel, so what bfloat16 loses is a part of the round's change and not of the parameters."""
    weights = [1 / num_workers] * num_workers

    def work(rank: int, member: Member) -> list[tuple[State, State]]:
        worker = Worker(template, rank, member, AveragingConfig(exchange="bfloat16"), "adam")
        states = []
        for round_index in range(3):
            worker.steps(2)
            before = worker.state()
            worker.average(weights[rank], round_index)
            states.append((before, worker.state()))
        return states

    results = together(members[num_workers], work)
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


@pytest.mark.parametrize("exchange", ["float32", "bfloat16"])
def test_gradients_become_the_weighted_mean_and_a_worker_without_any_takes_the_others(members, template, exchange):
    weights = [0.75, 0.25, 0.0]

    def work(rank: int, member: Member) -> tuple[list[Tensor], list[Tensor]]:
        worker = Worker(template, rank, member, AveragingConfig(exchange=exchange), "sgd")
        if weights[rank]:
            nn.functional.cross_entropy(worker.model(torch.randn(5, 4)), torch.randint(3, (5,))).backward()
        before = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in worker.model.parameters()]
        worker.averager.average_gradients(weights[rank], rank=rank, round_index=0)
        return before, [p.grad.clone() for p in worker.model.parameters()]

    results = together(members[3], work)
    for index in range(len(results[0][0])):
        mean = sum(weight * before[index] for weight, (before, _) in zip(weights, results, strict=True))
        tolerance = 1e-6 if exchange == "float32" else 0.01
        for _, after in results:
            torch.testing.assert_close(after[index], mean, rtol=tolerance, atol=tolerance)
            assert torch.equal(after[index], results[0][1][index])
