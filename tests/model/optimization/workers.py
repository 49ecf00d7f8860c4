"""What the tests of averaging share: workers in threads of one process, which meet through a real store."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shardmean.model.config.training import AveragingConfig
from shardmean.model.distributed.rendezvous import Rendezvous, WorkerGroup
from shardmean.model.distributed.store import WorkerStore
from shardmean.model.optimization.averaging import Averager

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

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


def group_of(rendezvous: Rendezvous, num_workers: int) -> list[WorkerGroup]:
    """As many groups that have met, by rank."""
    address = rendezvous.new_address()
    with ThreadPoolExecutor(num_workers) as pool:
        ranks = range(num_workers)
        return list(
            pool.map(lambda r: WorkerGroup(WorkerStore(address, rank=r, timeout_s=30), num_workers=num_workers), ranks)
        )


class Worker:
    """A copy of the template network, its optimizer, and its averager, before any step."""

    def __init__(
        self, template: nn.Module, rank: int, group: WorkerGroup, config: AveragingConfig, optimizer: str
    ) -> None:
        self.rank = rank
        self.model = copy.deepcopy(template)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.averager = Averager(self.model, self.optimizer, config, group, None)
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


def together(group: list[WorkerGroup], work: Callable[[int, WorkerGroup], Any]) -> list[Any]:
    """What `work` gave in each member's thread."""
    with ThreadPoolExecutor(len(group)) as pool:
        return list(pool.map(work, range(len(group)), group))


def one_round(groups, template, weights, num_steps, *, optimizer="adam", **config) -> tuple[list[State], list[State]]:
    """Each worker's state before and after the averaging."""

    def work(rank: int, group: WorkerGroup) -> tuple[State, State]:
        worker = Worker(template, rank, group, AveragingConfig(**config), optimizer)
        worker.steps(num_steps[rank])
        before = worker.state()
        worker.average(weights[rank])
        return before, worker.state()

    results = together(groups[len(weights)], work)
    return [before for before, _ in results], [after for _, after in results]


def is_counter(name: str) -> bool:
    return name.endswith(("num_batches_tracked", ".step"))


def mean_of(states: list[State], name: str, weights: list[float]) -> NDArray[np.float64]:
    return sum(weight * state[name].double().numpy() for weight, state in zip(weights, states, strict=True))


def assert_bits(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name
