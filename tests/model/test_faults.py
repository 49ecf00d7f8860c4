"""Workers that die, hang, raise or diverge at a given (rank, round): the segment is run again, to the same bits."""

from __future__ import annotations

import logging
import os
import re
import signal
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model import segment
from model.errors import UserError, WorldError
from model.training import Training
from model.training_config import TrainingConfig
from model.transport import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.checkpoint import Checkpoint
    from model.segment import Report, Task, Work

RANK, ROUND = 1, 2


@dataclass(frozen=True)
class Fault:
    """What befalls worker RANK before round ROUND, once for each missing file among `marks`."""

    kind: str
    folder: Path
    times: int = 1

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
            case "diverges":
                with torch.no_grad():
                    next(iter(averager._model.parameters())).mul_(float("nan"))


def struck(work: Work, fault: Fault, task: Task, device: str) -> Report:
    """Do a task in which the fault befalls its worker."""
    average = segment.Averager.average

    def average_after_fault(self: Any, weight: float, *, rank: int, round_index: int) -> None:
        if (rank, round_index) == (RANK, ROUND):
            fault.strike(self)
        average(self, weight, rank=rank, round_index=round_index)

    segment.Averager.average = average_after_fault
    try:
        return work(task, device)
    finally:
        segment.Averager.average = average


class Struck:
    """A transport whose workers meet a fault."""

    def __init__(self, transport: LocalTransport, fault: Fault) -> None:
        self._transport = transport
        self._fault = fault
        self.meeting = transport.meeting
        self.cancel = transport.cancel

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
        ("killed", "a worker was lost"),
        ("hangs", r"worker 1 on \S+, last heard in round \d, has said nothing for \d+ s"),
        ("raises", r"worker 1 on \S+: 'a bug of ours'"),
        ("reads badly", r"worker 1 on \S+: \[Errno 5\] Input/output error"),
    ],
)
def test_the_segment_is_run_again_to_the_same_bits(dataset, transport, undisturbed, tmp_path, caplog, kind, said):
    caplog.set_level(logging.WARNING)
    again = fitted(training(dataset, Struck(transport, Fault(kind, tmp_path)), timeout_s=3))
    (warning,) = [r.getMessage() for r in caplog.records if "trying again (1 of 3)" in r.getMessage()]
    assert re.search(said, warning), warning
    for name, value in undisturbed.model.items():
        assert torch.equal(again.model[name], value), name


def test_the_number_of_retries_is_kept(dataset, transport, tmp_path, caplog):
    fault = Fault("reads badly", tmp_path, times=9)
    with pytest.raises(WorldError, match="Input/output error"):
        fitted(training(dataset, Struck(transport, fault), max_segment_retries=2))
    assert len(list(tmp_path.iterdir())) == 3
    assert "trying again (2 of 2)" in caplog.text


def test_the_users_mistake_is_not_tried_again(dataset, transport, tmp_path, caplog):
    with pytest.raises(UserError, match="worker 1 diverged: its parameters were not finite after round 2"):
        fitted(training(dataset, Struck(transport, Fault("diverges", tmp_path, times=9))))
    assert len(list(tmp_path.iterdir())) == 1
    assert "trying again" not in caplog.text
