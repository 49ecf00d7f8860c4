"""What one worker does in one job: a segment of training, or its part of an evaluation. Pure functions of their tasks.

Running a task again gives the same report (bit for bit on CPU), so whoever sends tasks may repeat them.
"""

from __future__ import annotations

import copy
import itertools
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .averaging import Averager
from .environment import Environment, this_environment
from .errors import UserError, WorldError
from .evaluation import evaluate
from .feed import minibatches
from .manifest import load_manifest
from .meeting import Address, Member, Progress
from .plan import EpochPlan, plan_epoch, plan_evaluation
from .replica import Replica, rate_factor
from .shards import Dataset

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .manifest import Manifest, Split
    from .training_config import TrainingConfig

ReplicaState = dict[str, Any]
EVALUATION_BATCH = 256
NUM_MISTAKES = 24


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
    epoch: int = 0
    split: Split = "train"
    trace_ids: bool = False
    """Also report the ids of the examples in the order they were trained on (for audits and tests)."""


@dataclass(frozen=True)
class Report:
    """What a worker gives back. `state` comes from rank 0, and from every rank where optimizers keep their own."""

    rank: int
    host: str
    num_examples: int = 0
    num_minibatches: int = 0
    num_rounds: int = 0
    loss_sum: float = 0.0
    state: ReplicaState | None = None
    evaluation: Evaluation | None = None
    ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Failure:
    """How a worker failed: the user's mistake, the world, a peer that left first, or a bug of ours."""

    rank: int
    host: str
    kind: str
    message: str
    trace: str


Work = Callable[[Task, str], Report]


def attempt(work: Work, task: Task, device: str | Callable[[], str]) -> Report | Failure:
    """Run a task and give its error back as a value: the driver then knows who failed and why."""
    try:
        this_environment().check_same(task.environment)
        return work(task, device if isinstance(device, str) else device())
    except UserError as error:
        return _failure(task, "user", error)
    except (WorldError, OSError) as error:
        return _failure(task, "world", error)
    except RuntimeError as error:
        # A lost peer shows as a RuntimeError of the exchange or the store; the peer's own report names the cause.
        return _failure(task, "peer", error)
    except Exception as error:
        return _failure(task, "bug", error)


def _failure(task: Task, kind: str, error: Exception) -> Failure:
    return Failure(task.rank, socket.gethostname(), kind, f"{error}", traceback.format_exc())


def train_epoch(task: Task, device: str) -> Report:
    """One worker's epoch: local steps, an averaging every round, then its part of the validation."""
    config = task.config
    dataset = open_dataset(task.dataset_uri, task.digest)
    plan = plan_training(config, dataset.manifest, epoch=task.epoch, num_workers=task.num_workers)
    with _seeded(task, device), closing(_member(task, sums=True)) as member:
        return _train(task, dataset, plan, member, device)


def evaluate_split(task: Task, device: str) -> Report:
    """One worker's part of evaluating `task.split` with the model in `task.state`."""
    dataset = open_dataset(task.dataset_uri, task.digest)
    with _seeded(task, device), closing(_member(task, sums=False)) as member:
        replica = Replica(task.config, dataset.manifest, device)
        replica.model.load_state_dict(task.state["model"])
        part = _evaluate(task, replica, dataset, task.split, member)
    return Report(task.rank, socket.gethostname(), evaluation=part)


def _member(task: Task, *, sums: bool) -> Member:
    return Member(
        task.address, rank=task.rank, num_workers=task.num_workers, timeout_s=task.config.timeout_s, sums=sums
    )


@lru_cache(maxsize=4)
def open_dataset(uri: str, digest: str) -> Dataset:
    """The version `digest` of a DataSet; opened once a process, since a version never changes."""
    return Dataset(uri, load_manifest(uri, digest))


def plan_training(config: TrainingConfig, manifest: Manifest, *, epoch: int, num_workers: int) -> EpochPlan:
    """The plan of one epoch of a training."""
    return plan_epoch(
        [shard.num_examples for shard in manifest.shards_of("train")],
        num_workers=num_workers,
        batch_size=config.batch_size_per_worker,
        frequency=config.averaging.frequency,
        seed=config.seed,
        epoch=epoch,
        buffer_rows=config.shuffle_buffer_bytes // manifest.image.example_bytes,
    )


def _train(task: Task, dataset: Dataset, plan: EpochPlan, member: Member, device: str) -> Report:
    replica = Replica(task.config, dataset.manifest, device)
    replica.model.load_state_dict(task.state["model"])
    if task.state["optimizer"] is not None:
        # load_state_dict keeps the given tensors, and steps would then change the sender's state.
        replica.optimizer.load_state_dict(copy.deepcopy(task.state["optimizer"]))
    averaging = task.config.averaging
    averager = Averager(replica.model, replica.optimizer, averaging, member, task.state["outer_momentum"])
    batches = minibatches(dataset, plan, task.rank, "train", with_names=task.trace_ids)
    ids: list[str] = []
    for round_index in range(plan.num_rounds):
        for _ in range(_steps_in_round(plan, task.rank, round_index)):
            batch = next(batches)
            replica.step(batch, _rate_factor(task, plan, replica.num_examples))
            if task.trace_ids:
                ids += batch.ids
            member.report(partial(_progress, replica, round_index))
        averager.average(_weight(plan, task, round_index), rank=task.rank, round_index=round_index)
        if averaging.optimizer_state == "reset":
            replica.reset_optimizer()
    return Report(
        rank=task.rank,
        host=socket.gethostname(),
        num_examples=replica.num_examples,
        num_minibatches=plan.num_minibatches(task.rank),
        num_rounds=plan.num_rounds,
        loss_sum=replica.mean_loss * replica.num_examples,
        state=_state(replica, averager, task),
        evaluation=_evaluate(task, replica, dataset, "validation", member),
        ids=ids,
    )


def _progress(replica: Replica, round_index: int, last: Progress) -> Progress:
    return replace(last, round_index=round_index, num_examples=replica.num_examples, loss=replica.mean_loss)


def _rate_factor(task: Task, plan: EpochPlan, num_seen: int) -> float:
    # What all workers have seen, taken from this one's own count, so that nothing need be exchanged for it.
    per_epoch = plan.bounds[-1]
    share = num_seen / max(1, plan.num_examples(task.rank))
    num_examples = round((task.epoch + share) * per_epoch)
    return rate_factor(task.config.optimizer.schedule, num_examples, task.config.num_epochs * per_epoch)


def _steps_in_round(plan: EpochPlan, rank: int, round_index: int) -> int:
    return -(-plan.examples_in_round(rank, round_index) // plan.batch_size)


def _weight(plan: EpochPlan, task: Task, round_index: int) -> float:
    seen = [plan.examples_in_round(rank, round_index) for rank in range(task.num_workers)]
    if task.config.averaging.weights == "uniform":
        seen = [min(1, count) for count in seen]
    return seen[task.rank] / sum(seen)


def _state(replica: Replica, averager: Averager, task: Task) -> ReplicaState | None:
    policy = task.config.averaging.optimizer_state
    if task.rank > 0 and policy != "keep":
        return None
    state: ReplicaState = _on_cpu(
        {
            "model": replica.model.state_dict() if task.rank == 0 else None,
            "optimizer": None if policy == "reset" else replica.optimizer.state_dict(),
            "outer_momentum": averager.outer_momentum if task.rank == 0 else None,
        }
    )
    return state


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def _evaluate(task: Task, replica: Replica, dataset: Dataset, split: Split, member: Member) -> Evaluation:
    rows = [shard.num_examples for shard in dataset.manifest.shards_of(split)]
    plan = plan_evaluation(rows, num_workers=task.num_workers, batch_size=EVALUATION_BATCH)
    beats = itertools.count()

    def beat() -> None:
        # A report that changes shows life.
        member.report(lambda last: replace(last, round_index=plan.num_rounds + next(beats)))

    return evaluate(replica.model, dataset, plan, task.rank, split, num_mistakes=NUM_MISTAKES, beat=beat)


@contextmanager
def _seeded(task: Task, device: str) -> Iterator[None]:
    # Python workers serve many jobs: what a task sets in its process, it puts back.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(task.config.threads_per_worker)
    try:
        with torch.random.fork_rng(devices=[] if device == "cpu" else None):
            torch.manual_seed(
                int(np.random.SeedSequence([task.config.seed, task.epoch, task.rank]).generate_state(1)[0])
            )
            yield
    finally:
        torch.set_num_threads(num_threads)
