"""What one worker does in one job: a segment of training, or its part of an evaluation. Pure functions of their tasks.

Running a task again gives the same report (bit for bit on CPU), so tasks can be repeated safely.
"""

from __future__ import annotations

import copy
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
        return _Segment(task, dataset, group, device, timer).run()


def evaluate_split(task: Task, device: str) -> Report:
    """One worker's part of evaluating `task.split` with the model in `task.state`."""
    dataset = open_task_dataset(task)
    with seeded(task, device), join_group(task, device, sums=False) as group:
        replica = Replica(task.config, dataset.manifest, device)
        replica.model.load_state_dict(task.state["model"])
        part = _evaluate(task, replica, dataset, task.split, group)
    return Report(task.rank, evaluation=part)


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


def new_augmenter(config: TrainingConfig, manifest: Manifest, epoch: int) -> Augmenter | None:
    """What changes the training images of an epoch; None where augmentation is off."""
    if not config.augmentation.is_on:
        return None
    # Kornia takes a while to import, and only here is it needed.
    from ..augmentation.augmenter import Augmenter

    return Augmenter(config.augmentation, seed=config.seed, epoch=epoch, mean=manifest.mean)


class _Segment:
    """One worker's part of a segment of training."""

    def __init__(self, task: Task, dataset: Dataset, group: WorkerGroup, device: str, timer: PhaseTimer) -> None:
        assert task.rounds is not None, "a training has rounds"
        self._task = task
        self._rounds = rounds = task.rounds
        self._config = config = task.config
        self._dataset = dataset
        self._group = group
        self._timer = timer
        self._plan = plan_training(
            config,
            dataset.manifest,
            epoch=rounds.epoch,
            num_workers=task.num_workers,
            earlier=rounds.earlier,
            version=rounds.plan_version,
        )
        augmenter = new_augmenter(config, dataset.manifest, rounds.epoch)
        self._replica = replica = Replica(config, dataset.manifest, device, augmenter)
        replica.model.load_state_dict(task.state["model"])
        if task.state["optimizer"] is not None:
            # load_state_dict keeps the given tensors, and steps would then change the sender's state.
            replica.optimizer.load_state_dict(copy.deepcopy(task.state["optimizer"]))
        outer_momentum = task.state["outer_momentum"]
        self._averager = Averager(replica.model, replica.optimizer, config.averaging, group, outer_momentum)

    def run(self) -> Report:
        """Take the steps of all rounds, average after each, and at the epoch's end evaluate."""
        task, plan, replica, timer = self._task, self._plan, self._replica, self._timer
        ids: list[str] = []
        with closing(self._batches()) as batches:
            timer.lap("start")
            for round_index in range(self._rounds.first, self._rounds.stop):
                first = round_index * plan.minibatches_per_round
                for step in range(first, min(first + plan.minibatches_per_round, plan.num_steps)):
                    batch = next(batches, None)
                    timer.lap("wait")
                    if batch is not None and task.trace_ids:
                        ids += batch.ids
                    self._step(batch, step, round_index)
                    self._group.report(partial(_progress, replica, round_index))
                    timer.lap("step")
                weight = self._weight(round_index)
                self._averager.average(weight, rank=task.rank, round_index=round_index, loss=replica.mean_loss)
                if self._config.averaging.optimizer_state == "reset":
                    replica.reset_optimizer()
                timer.lap("average")
        is_end = self._rounds.ends_epoch
        evaluation = _evaluate(task, replica, self._dataset, "validation", self._group) if is_end else None
        timer.lap("evaluate")
        return Report(
            rank=task.rank,
            num_examples=replica.num_examples,
            loss_sum=replica.mean_loss * replica.num_examples,
            state=self._state(),
            evaluation=evaluation,
            ids=ids,
            seconds=dict(timer.seconds),
        )

    def _batches(self) -> Generator[Examples]:
        task, plan, per_round = self._task, self._plan, self._plan.minibatches_per_round
        stop_step = min(self._rounds.stop * per_round, plan.num_minibatches(task.rank))
        on_gpu = self._replica.device.type == "cuda"
        is_near = not on_gpu and filesystem.local_path(task.dataset_uri) is not None
        prefetch = self._config.prefetch_batches
        return minibatches(
            self._dataset,
            plan.windows(task.rank, first_step=self._rounds.first * per_round, stop_step=stop_step),
            "train",
            batch_size=plan.layout.batch_size,
            with_names=task.trace_ids,
            with_keys=self._config.augmentation.is_on,
            # Beside local files a thread costs a CPU worker more than it saves: see docs/performance.md.
            prefetch_batches=prefetch if prefetch is not None else (0 if is_near else 4),
            pin=on_gpu,
            timed=partial(self._timer.timing, "read"),
        )

    def _step(self, batch: Examples | None, step: int, round_index: int) -> None:
        """One step on a minibatch, alone or (while steps are synchronous) together with all workers."""
        rank = self._task.rank
        if self._is_synchronous(step):
            self._replica.backward(batch)
            sizes = [self._plan.examples_in_step(peer, step) for peer in range(self._task.num_workers)]
            self._averager.average_gradients(sizes[rank] / sum(sizes), rank=rank, round_index=round_index)
        elif batch is None:
            return
        else:
            self._replica.backward(batch)
        self._replica.update(self._rate_factor(step))

    def _is_synchronous(self, step: int) -> bool:
        until = self._config.averaging.synchronous_steps
        taken = step - self._rounds.first * self._plan.minibatches_per_round
        return until == "all" or self._rounds.first_step + taken < until

    def _rate_factor(self, step: int) -> float:
        schedule = self._config.optimizer.schedule
        if schedule.is_constant:
            return 1.0
        # What all workers have seen: the plan tells, so nothing need be exchanged for it.
        per_epoch = self._plan.layout.bounds[-1]
        num_examples = self._rounds.epoch * per_epoch + self._plan.examples_after(step)
        return rate_factor(schedule, num_examples, self._config.num_epochs * per_epoch)

    def _weight(self, round_index: int) -> float:
        seen = [self._plan.examples_in_round(rank, round_index) for rank in range(self._task.num_workers)]
        if self._config.averaging.weights == "uniform":
            seen = [min(1, count) for count in seen]
        return seen[self._task.rank] / sum(seen)

    def _state(self) -> ReplicaState | None:
        policy, is_first = self._config.averaging.optimizer_state, self._task.rank == 0
        if not is_first and policy != "keep":
            return None
        state: ReplicaState = _on_cpu(
            {
                "model": self._replica.model.state_dict() if is_first else None,
                "optimizer": None if policy == "reset" else self._replica.optimizer.state_dict(),
                "outer_momentum": self._averager.outer_momentum if is_first else None,
            }
        )
        return state


def _progress(replica: Replica, round_index: int, last: Progress) -> Progress:
    return replace(last, round_index=round_index, num_examples=replica.num_examples, loss=replica.mean_loss)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value


def _evaluate(task: Task, replica: Replica, dataset: Dataset, split: Split, group: WorkerGroup) -> Evaluation:
    rows = [shard.num_examples for shard in dataset.manifest.shards_of(split)]
    plan = plan_evaluation(rows, num_workers=task.num_workers, batch_size=EVALUATION_BATCH)

    def beat(part: Evaluation) -> None:
        # After an epoch the examples reported stay those trained on.
        group.report(lambda last: last if task.rounds else replace(last, num_examples=part.num_examples))

    return evaluate(
        replica.model, dataset, plan, task.rank, split,
        num_mistakes=NUM_MISTAKES, with_predictions=task.rounds is None, beat=beat,
    )  # fmt: skip
