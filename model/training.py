"""The epoch loop: segments sent to workers over a transport, their reports merged, the state held by the driver."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .checkpoint import Checkpoint
from .environment import this_environment
from .errors import UserError, WorldError
from .evaluation import Evaluation
from .progress import Ask, Silence, Watch, every, watched
from .replica import build_model
from .segment import (
    NUM_MISTAKES,
    Failure,
    ReplicaState,
    Report,
    Task,
    Work,
    evaluate_split,
    plan_training,
    train_epoch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from .manifest import Split
    from .meeting import Meeting, Progress
    from .shards import Dataset
    from .training_config import TrainingConfig

GRACE_S = 5
log = logging.getLogger(__name__)


class Transport(Protocol):
    """How tasks reach workers: all of a call run side by side, and each gives a report or a failure."""

    meeting: Meeting

    def run(self, work: Work, tasks: Sequence[Task]) -> list[Report | Failure]:
        """Run one task per worker. Raises WorldError when workers were lost."""
        ...

    def cancel(self, reason: str) -> None:
        """End what runs, from another thread; `run` then raises WorldError with this reason."""
        ...


@dataclass(frozen=True)
class Training:
    """A config, the DataSet it trains on, and the transport to its workers."""

    config: TrainingConfig
    dataset: Dataset
    transport: Transport

    def fit(self, start: Checkpoint | None, on_epoch: Callable[[Checkpoint], None]) -> Checkpoint:
        """Train to the last epoch from `start` (None: from fresh parameters); `on_epoch` sees each new state."""
        state = start or self.first_state()
        self.check()
        while state.epoch < self.config.num_epochs and not self._is_out_of_patience(state):
            state = self.next_state(state)
            on_epoch(state)
        return state

    def _is_out_of_patience(self, state: Checkpoint) -> bool:
        patience = self.config.early_stopping.patience
        is_out = patience is not None and state.epoch - state.best_epoch >= patience and state.epoch > 0
        if is_out:
            log.info("no better epoch than %d in %d epochs: training ends early", state.best_epoch, patience)
        return is_out

    def check(self) -> None:
        """Raise UserError for what can't be trained, before any worker starts."""
        plan_training(self.config, self.dataset.manifest, epoch=0, num_workers=self.config.num_workers)

    def first_state(self) -> Checkpoint:
        """Fresh parameters, drawn on the CPU from the config's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = build_model(self.config, self.dataset.manifest)
        return Checkpoint(0, dict(model.state_dict()), [None] * self._num_optimizers)

    def evaluate(self, model: dict[str, Any], split: Split) -> Evaluation:
        """Evaluate a model state on one split, all workers taking part."""
        states = [{"model": model}] * self.config.num_workers
        return _evaluation(self._run(evaluate_split, states, split=split))

    @property
    def _num_optimizers(self) -> int:
        return self.config.num_workers if self.config.averaging.optimizer_state == "keep" else 1

    def next_state(self, state: Checkpoint) -> Checkpoint:
        """The state after one more epoch."""
        started = time.monotonic()
        states = [
            {
                "model": state.model,
                "optimizer": state.optimizers[rank % len(state.optimizers)],
                "outer_momentum": state.outer_momentum,
            }
            for rank in range(self.config.num_workers)
        ]
        with watched(f"epoch {state.epoch + 1}", self.dataset.manifest.num_examples("train")) as watch:
            reports = self._run(train_epoch, states, watch=watch, epoch=state.epoch)
        self._check_counts(reports)
        return _merged(state, reports, time.monotonic() - started, self.config.early_stopping.metric)

    def _run(self, work: Work, states: list[ReplicaState], *, watch: Watch | None = None, **other: Any) -> list[Report]:
        """Run a segment; when workers are lost run it again, from the same states and so to the same end."""
        for retry in itertools.count(1):
            try:
                return self._run_once(work, states, watch=watch, **other)
            except WorldError as error:
                if retry > self.config.max_segment_retries:
                    raise
                log.warning("%s; trying again (%d of %d)", error, retry, self.config.max_segment_retries)
        raise AssertionError("the loop ends by return or raise")

    def _run_once(self, work: Work, states: list[ReplicaState], *, watch: Watch | None, **other: Any) -> list[Report]:
        address = self.transport.meeting.new_address()

        def ask() -> Mapping[int, Progress]:
            return self.transport.meeting.progress(address, len(states))

        if watch:
            watch(ask)
        tasks = [
            Task(
                config=self.config,
                dataset_uri=self.dataset.uri,
                digest=self.dataset.manifest.digest,
                rank=rank,
                num_workers=len(states),
                state=state,
                address=address,
                environment=this_environment(),
                **other,
            )
            for rank, state in enumerate(states)
        ]
        with self._guarded(ask, len(states)):
            results = self.transport.run(work, tasks)
        failures = [result for result in results if isinstance(result, Failure)]
        if failures:
            raise _cause(failures)
        return sorted((r for r in results if isinstance(r, Report)), key=lambda report: report.rank)

    def _guarded(self, ask: Ask, num_workers: int) -> AbstractContextManager[None]:
        # Peers that wait for a silent worker give up after timeout_s and say so first.
        silence = Silence(num_workers, self.config.timeout_s + GRACE_S)

        def look() -> None:
            complaint = silence.complaint(ask(), time.monotonic())
            if complaint:
                self.transport.cancel(complaint)

        return every(1.0, look)

    def _check_counts(self, reports: list[Report]) -> None:
        seen = sum(report.num_examples for report in reports)
        assert seen == self.dataset.manifest.num_examples("train"), "every example is seen exactly once an epoch"


def _cause(failures: list[Failure]) -> Exception:
    """The error to show: the user's mistake before the world's fault, before our bug, before lost peers."""
    order = ("user", "world", "bug", "peer")
    failure = min(failures, key=lambda f: (order.index(f.kind), f.rank))
    where = f"worker {failure.rank} on {failure.host}"
    if failure.kind == "user":
        return UserError(f"{where}: {failure.message}")
    if failure.kind != "world":
        log.error("%s failed:\n%s", where, failure.trace)
    return WorldError(f"{where}: {failure.message}")


def _merged(state: Checkpoint, reports: list[Report], seconds: float, metric: str) -> Checkpoint:
    first = reports[0].state
    assert first is not None, "rank 0 reports the averaged state"
    num_examples = sum(report.num_examples for report in reports)
    figures = {
        "train_loss": sum(report.loss_sum for report in reports) / num_examples,
        "epoch_seconds": seconds,
        "examples_per_second": num_examples / seconds,
        "rounds": float(reports[0].num_rounds),
        **{f"validation_{name}": value for name, value in _evaluation(reports).figures().items()},
    }
    is_best = all(_score(figures, metric) > _score(earlier, metric) for earlier in state.history)
    return Checkpoint(
        epoch=state.epoch + 1,
        model=first["model"],
        optimizers=[report.state["optimizer"] for report in reports if report.state is not None],
        outer_momentum=first["outer_momentum"],
        history=[*state.history, figures],
        best_epoch=state.epoch + 1 if is_best else state.best_epoch,
        best_model=first["model"] if is_best else state.best_model,
    )


def _score(figures: dict[str, float], metric: str) -> tuple[float, float]:
    # Without a validation split every epoch scores alike by it, and the training loss decides.
    loss = figures["validation_loss"] or figures["train_loss"]
    return (-loss if metric == "loss" else figures[f"validation_{metric}"]), -loss


def _evaluation(reports: list[Report]) -> Evaluation:
    parts = [report.evaluation for report in reports if report.evaluation is not None]
    return Evaluation.merged(parts, num_mistakes=NUM_MISTAKES)
