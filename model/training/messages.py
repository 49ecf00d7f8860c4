"""What driver and workers send each other: tasks, reports and failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..dataset.epoch_layout import PLAN_VERSION

if TYPE_CHECKING:
    from ..config.training import TrainingConfig
    from ..dataset.manifest import Split
    from ..dataset.sampler import Stage
    from ..distributed.store import Address
    from ..evaluation.evaluator import Evaluation
    from .environment import Environment

ReplicaState = dict[str, Any]


@dataclass(frozen=True)
class Rounds:
    """Where a segment of training lies in its epoch: rounds `first` to `stop` of the stage after `earlier` ones.

    `first_step` counts the optimizer steps that each worker has taken in the whole training before.
    """

    epoch: int
    first: int
    stop: int
    earlier: tuple[Stage, ...] = ()
    first_step: int = 0
    ends_epoch: bool = True
    plan_version: int = PLAN_VERSION


@dataclass(frozen=True)
class Task:
    """What a worker needs to know. `state` holds the model and, for training, the optimizer and outer momentum."""

    config: TrainingConfig
    dataset_uri: str
    digest: str
    rank: int
    num_workers: int
    state: ReplicaState
    address: Address
    environment: Environment
    rounds: Rounds | None = None
    """What to train on; None where there is nothing to train."""
    split: Split = "train"
    trace_ids: bool = False
    """Also report the ids of the examples in the order they were trained on (for audits and tests)."""


@dataclass(frozen=True)
class Report:
    """What a worker gives back. `state` comes from rank 0, and from every rank where optimizers keep their own."""

    rank: int
    num_examples: int = 0
    loss_sum: float = 0.0
    state: ReplicaState | None = None
    evaluation: Evaluation | None = None
    ids: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase of the worker's time: see `phase_timer`."""


@dataclass(frozen=True)
class Failure:
    """How a worker failed: the user's mistake, numbers that blew up, the world, a peer that left first, or our bug."""

    rank: int
    host: str
    kind: str
    message: str
    trace: str


Work = Callable[[Task, str], Report]
