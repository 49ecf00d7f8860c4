"""Faults of a worker at a given (rank, round), and the trainings that they happen in."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError
from shardmean.model.training import worker
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from shardmean.model.training.local_launcher import LocalLauncher
    from shardmean.model.training.messages import Report, Task, Work

RANK = 1


@dataclass(frozen=True)
class Fault:
    """What happens to worker RANK before the average of a round, `times` times; each leaves a file in `folder`."""

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


def with_fault(work: Work, fault: Fault, task: Task, device: str) -> Report:
    """Do a task with the fault in its worker."""
    average, step = worker.Averager.average, worker.Replica.backward

    def average_after_fault(self: Any, weight: float, *, rank: int, round_index: int, loss: float) -> None:
        if (rank, round_index) == (RANK, fault.round_index):
            fault.strike(self)
        average(self, weight, rank=rank, round_index=round_index, loss=loss)

    def slow_step(self: Any, batch: Any) -> None:
        if task.rank != RANK:
            time.sleep(fault.slows_peers_by_s / 12)
        step(self, batch)

    worker.Averager.average, worker.Replica.backward = average_after_fault, slow_step
    try:
        return work(task, device)
    finally:
        worker.Averager.average, worker.Replica.backward = average, step


class FaultyLauncher:
    """A launcher whose worker RANK has a fault."""

    def __init__(self, launcher: LocalLauncher, fault: Fault) -> None:
        self._launcher = launcher
        self._fault = fault
        self.rendezvous = launcher.rendezvous
        self.cancel = launcher.cancel
        self.num_slots = launcher.num_slots

    def run(self, work: Work, tasks: list[Task]) -> Any:
        return self._launcher.run(partial(with_fault, work, self._fault), tasks)


def training(dataset, launcher, **changes: Any) -> Trainer:
    """An epoch of two workers that average after every minibatch; `changes` are of its settings."""
    config = {"network": "small_cnn", "num_epochs": 1, "num_workers": 2, "batch_size_per_worker": 10, "device": "cpu"}
    averaging = {"averaging": {"frequency": 1}}
    return Trainer(TrainingConfig.model_validate(config | averaging | changes), dataset, launcher)
