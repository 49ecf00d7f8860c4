"""What one worker does in one job: a segment of training, or its part of an evaluation. Pure functions of their tasks.

Running a task again gives the same report (bit for bit on CPU), so whoever sends tasks may repeat them.
"""

from __future__ import annotations

import copy
import itertools
import socket
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..dataset.epoch_layout import PLAN_VERSION, ShardRows
from ..dataset.loader import minibatches
from ..dataset.sampler import plan_epoch, plan_evaluation
from ..evaluation.evaluator import evaluate
from ..optimization.averaging import Averager
from ..optimization.replica import Replica, rate_factor
from ..storage import filesystem
from .messages import Report
from .phase_timer import PhaseTimer
from .worker_runtime import join_group, open_task_dataset, seeded

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from ..augmentation.augmenter import Augmenter
    from ..config.training import TrainingConfig
    from ..dataset.manifest import Manifest, Split
    from ..dataset.reader import Dataset, Examples
    from ..dataset.sampler import EpochPlan, Stage
    from ..distributed.rendezvous import WorkerGroup
    from ..distributed.store import Progress
    from ..evaluation.evaluator import Evaluation
    from .messages import ReplicaState, Task

EVALUATION_BATCH = 256
NUM_MISTAKES = 24


def train_rounds(task: Task, device: str) -> Report:
    """One worker's part of a segment: local steps, an averaging every round, and at the epoch's end its validation."""
    timer = PhaseTimer()
    dataset = open_task_dataset(task)
    with seeded(task, device), join_group(task, device, sums=True) as group:
        return _train(task, dataset, group, device, timer)


def evaluate_split(task: Task, device: str) -> Report:
    """One worker's part of evaluating `task.split` with the model in `task.state`."""
    dataset = open_task_dataset(task)
    with seeded(task, device), join_group(task, device, sums=False) as group:
        replica = Replica(task.config, dataset.manifest, device)
        replica.model.load_state_dict(task.state["model"])
        part = _evaluate(task, replica, dataset, task.split, group)
    return Report(task.rank, socket.gethostname(), evaluation=part)


def plan_training(
    config: TrainingConfig,
    manifest: Manifest,
    *,
    epoch: int,
    num_workers: int,
    earlier: Sequence[Stage] = (),
    version: int = PLAN_VERSION,
) -> EpochPlan:
    """The plan of one epoch of a training, or of what its `earlier` stages left, by the version that it began with."""
    return plan_epoch(
        ShardRows.of(manifest.shards_of("train")),
        num_workers=num_workers,
        batch_size=config.batch_size_per_worker,
        frequency=config.averaging.frequency,
        seed=config.seed,
        epoch=epoch,
        buffer_rows=config.shuffle_buffer_bytes // manifest.image.example_bytes,
        example_bytes=manifest.image.example_bytes,
        earlier=earlier,
        version=version,
    )


def _train(task: Task, dataset: Dataset, group: WorkerGroup, device: str, timer: PhaseTimer) -> Report:
    assert task.rounds is not None, "a training has rounds"
    rounds, config = task.rounds, task.config
    plan = plan_training(
        config,
        dataset.manifest,
        epoch=rounds.epoch,
        num_workers=task.num_workers,
        earlier=rounds.earlier,
        version=rounds.plan_version,
    )
    replica = _replica(task, dataset, device)
    averager = Averager(replica.model, replica.optimizer, config.averaging, group, task.state["outer_momentum"])
    ids: list[str] = []
    with closing(_batches(task, dataset, plan, replica.device, timer)) as batches:
        timer.lap("start")
        for round_index in range(rounds.first, rounds.stop):
            for step in _steps(plan, round_index):
                batch = next(batches, None)
                timer.lap("wait")
                if batch is not None and task.trace_ids:
                    ids += batch.ids
                _step(task, plan, replica, averager, batch, step, round_index)
                group.report(partial(_progress, replica, round_index))
                timer.lap("step")
            weight = _round_weight(plan, task, round_index)
            averager.average(weight, rank=task.rank, round_index=round_index, loss=replica.mean_loss)
            if config.averaging.optimizer_state == "reset":
                replica.reset_optimizer()
            timer.lap("average")
    evaluation = _evaluate(task, replica, dataset, "validation", group) if rounds.ends_epoch else None
    timer.lap("evaluate")
    return Report(
        rank=task.rank,
        host=socket.gethostname(),
        num_examples=replica.num_examples,
        loss_sum=replica.mean_loss * replica.num_examples,
        state=_state(replica, averager, task),
        evaluation=evaluation,
        ids=ids,
        seconds=dict(timer.seconds),
    )


def new_augmenter(config: TrainingConfig, manifest: Manifest, epoch: int) -> Augmenter | None:
    """What changes the training images of an epoch; None where augmentation is off."""
    if not config.augmentation.is_on:
        return None
    # Kornia takes a while to import, and only here is it needed.
    from ..augmentation.augmenter import Augmenter

    return Augmenter(config.augmentation, seed=config.seed, epoch=epoch, mean=manifest.mean)


def _replica(task: Task, dataset: Dataset, device: str) -> Replica:
    assert task.rounds is not None, "a training has rounds"
    augmenter = new_augmenter(task.config, dataset.manifest, task.rounds.epoch)
    replica = Replica(task.config, dataset.manifest, device, augmenter)
    replica.model.load_state_dict(task.state["model"])
    if task.state["optimizer"] is not None:
        # load_state_dict keeps the given tensors, and steps would then change the sender's state.
        replica.optimizer.load_state_dict(copy.deepcopy(task.state["optimizer"]))
    return replica


def _batches(
    task: Task, dataset: Dataset, plan: EpochPlan, device: torch.device, timer: PhaseTimer
) -> Generator[Examples]:
    assert task.rounds is not None, "a training has rounds"
    first_step = task.rounds.first * plan.minibatches_per_round
    stop_step = min(task.rounds.stop * plan.minibatches_per_round, plan.num_minibatches(task.rank))
    on_gpu = device.type == "cuda"
    is_near = not on_gpu and filesystem.local_path(task.dataset_uri) is not None
    prefetch = task.config.prefetch_batches
    return minibatches(
        dataset,
        plan.windows(task.rank, first_step=first_step, stop_step=stop_step),
        "train",
        batch_size=plan.layout.batch_size,
        with_names=task.trace_ids,
        with_keys=task.config.augmentation.is_on,
        # Beside local files a thread costs a CPU worker more than it saves: see docs/performance.md.
        prefetch_batches=prefetch if prefetch is not None else (0 if is_near else 4),
        pin=on_gpu,
        timed=partial(timer.timing, "read"),
    )


def _steps(plan: EpochPlan, round_index: int) -> range:
    """The steps of a round, counted from the leg's start, of the worker that has most."""
    first = round_index * plan.minibatches_per_round
    return range(first, min(first + plan.minibatches_per_round, plan.num_steps))


def _step(
    task: Task,
    plan: EpochPlan,
    replica: Replica,
    averager: Averager,
    batch: Examples | None,
    step: int,
    round_index: int,
) -> None:
    """One step on a minibatch, alone or (while steps are synchronous) together with all workers."""
    if _is_synchronous(task, plan, step):
        replica.backward(batch)
        sizes = [plan.examples_in_step(rank, step) for rank in range(task.num_workers)]
        averager.average_gradients(sizes[task.rank] / sum(sizes), rank=task.rank, round_index=round_index)
    elif batch is None:
        return
    else:
        replica.backward(batch)
    replica.update(_rate_factor(task, plan, step))


def _is_synchronous(task: Task, plan: EpochPlan, step: int) -> bool:
    assert task.rounds is not None, "a training has rounds"
    until = task.config.averaging.synchronous_steps
    if until == "all":
        return True
    taken = step - task.rounds.first * plan.minibatches_per_round
    return task.rounds.first_step + taken < until


def _progress(replica: Replica, round_index: int, last: Progress) -> Progress:
    return replace(last, round_index=round_index, num_examples=replica.num_examples, loss=replica.mean_loss)


def _rate_factor(task: Task, plan: EpochPlan, step: int) -> float:
    assert task.rounds is not None, "a training has rounds"
    schedule = task.config.optimizer.schedule
    if schedule.is_constant:
        return 1.0
    # What all workers have seen: the plan tells, so nothing need be exchanged for it.
    per_epoch = plan.layout.bounds[-1]
    num_examples = task.rounds.epoch * per_epoch + plan.examples_after(step)
    return rate_factor(schedule, num_examples, task.config.num_epochs * per_epoch)


def _round_weight(plan: EpochPlan, task: Task, round_index: int) -> float:
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


def _evaluate(task: Task, replica: Replica, dataset: Dataset, split: Split, group: WorkerGroup) -> Evaluation:
    rows = [shard.num_examples for shard in dataset.manifest.shards_of(split)]
    plan = plan_evaluation(rows, num_workers=task.num_workers, batch_size=EVALUATION_BATCH)
    seen = itertools.accumulate(plan.examples_in_step(task.rank, step) for step in itertools.count())

    def beat() -> None:
        num = next(seen)
        # After an epoch the examples reported stay those trained on.
        group.report(lambda last: last if task.rounds else replace(last, num_examples=num))

    return evaluate(replica.model, dataset, plan, task.rank, split, num_mistakes=NUM_MISTAKES, beat=beat)
