"""The epoch loop: segments launched on workers, their reports merged, the state held by the driver."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..config.training import LOWEST_IS_BEST
from ..dataset.epoch_layout import PLAN_VERSION
from ..dataset.sampler import Stage
from ..errors import FailedWorkerError, LostLauncherError, LostWorkerError, RetryableError, UserError
from ..evaluation.evaluator import Evaluation
from ..optimization.fine_tuning import PretrainedModel, load_pretrained
from ..optimization.replica import build_model, normalization
from ..serving.image_model import describe
from .checkpoint import Checkpoint
from .environment import this_environment
from .failures import describe_lost_worker, primary_failure
from .merge import merged
from .messages import Failure, ReplicaState, Report, Rounds, Task, Work
from .progress import GetProgress, OnProgress, Watch, progress_reporter
from .watchdog import HangDetector, watchdog
from .worker import NUM_MISTAKES, evaluate_split, plan_training, train_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from ..config.training import MetricName, TrainingConfig
    from ..dataset.manifest import Split
    from ..dataset.reader import Dataset
    from ..dataset.sampler import EpochPlan
    from ..distributed.rendezvous import Rendezvous
    from ..distributed.store import Address

GRACE_S = 5
log = logging.getLogger(__name__)


class Launcher(Protocol):
    """What runs the workers, as processes of this machine or Spark's barrier jobs.

    Tasks of one call run side by side, and each gives a report or a failure.
    """

    rendezvous: Rendezvous

    def num_slots(self) -> int:
        """How many workers can run side by side now."""

    def run(self, work: Work, tasks: Sequence[Task]) -> list[Report | Failure]:
        """Run one task per worker. Raises RetryableError when workers were lost."""

    def cancel(self, reason: str) -> None:
        """End the running tasks, from another thread; `run` then raises RetryableError with this reason."""


@dataclass(frozen=True)
class Trainer:
    """A config, the DataSet it trains on, the launcher of its workers, and what gets the progress within an epoch.

    `pretrained` is what a fine-tuning starts from; it needs the config that `fine_tuning.normalized_as` gives.
    """

    config: TrainingConfig
    dataset: Dataset
    launcher: Launcher
    on_progress: OnProgress | None = None
    pretrained: PretrainedModel | None = None

    def fit(self, start: Checkpoint | None, on_state: Callable[[Checkpoint], None]) -> Checkpoint:
        """Train to the last epoch from `start` (None: from fresh parameters); `on_state` sees each segment's state."""
        state = start or self.first_state()
        self.check()
        while state.epoch < self.config.num_epochs and not self._is_out_of_patience(state):
            state = self.next_state(state)
            on_state(state)
        return state

    def _is_out_of_patience(self, state: Checkpoint) -> bool:
        patience = self.config.early_stopping.patience
        is_out = patience is not None and state.epoch - state.best_epoch >= patience and state.epoch > 0
        if is_out and state.ends_epoch:
            log.info("no better epoch than %d in %d epochs: training ends early", state.best_epoch, patience)
        return is_out and state.ends_epoch

    def check(self) -> None:
        """Raise UserError for what can't be trained, before any worker starts."""
        self.config.early_stopping.check(len(self.dataset.manifest.class_names))
        self.config.augmentation.check(self.dataset.manifest.image)
        plan_training(self.config, self.dataset.manifest, epoch=0, num_workers=self.config.num_workers)

    def first_state(self) -> Checkpoint:
        """Fresh parameters, drawn on the CPU from the config's seed, or those of the pretrained model."""
        config, manifest = self.config, self.dataset.manifest
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = build_model(config, manifest)
        if self.pretrained is not None:
            load_pretrained(model, self.pretrained, config, manifest)
        mean, std = normalization(config, manifest)
        model_spec = describe(manifest, config.network, layers=config.layers, mean=mean, std=std)
        return Checkpoint(0, dict(model.state_dict()), [None], model_spec=model_spec)

    def evaluate(self, model: dict[str, Any], split: Split, name: str = "model") -> Evaluation:
        """Evaluate a model state on one split, all workers taking part. Progress lines call it by `name`."""

        def tasks() -> tuple[list[ReplicaState], dict[str, Any]]:
            num_workers = max(1, min(self.config.num_workers, self.launcher.num_slots()))
            return [{"model": model}] * num_workers, {"split": split}

        total = self.dataset.manifest.num_examples(split)
        with progress_reporter(f"{name} on the {split} split", total, with_loss=False) as watch:
            return _evaluation(self._run(evaluate_split, tasks, watch=watch)[0])

    def next_state(self, state: Checkpoint) -> Checkpoint:
        """The state after one more segment: an epoch, or fewer rounds where `checkpoint_every_rounds` says so."""
        started = time.monotonic()
        name = f"epoch {state.epoch + 1}"
        num_before = round(state.running.get("num_examples", 0))
        total = self.dataset.manifest.num_examples("train")
        plan: EpochPlan
        rounds: Rounds

        def tasks() -> tuple[list[ReplicaState], dict[str, Any]]:
            nonlocal plan, rounds
            plan, rounds = self._next_rounds(state)
            common = {"model": state.model, "outer_momentum": state.outer_momentum}
            optimizers = itertools.islice(itertools.cycle(state.optimizers), plan.num_workers)
            return [{**common, "optimizer": optimizer} for optimizer in optimizers], {"rounds": rounds}

        with progress_reporter(
            name, total, num_before=num_before, epoch=state.epoch, on_progress=self.on_progress
        ) as watch:
            reports, retry_s = self._run(train_rounds, tasks, watch=watch)
        evaluation = _evaluation(reports) if reports[0].evaluation is not None else None
        seconds = time.monotonic() - started
        new = merged(state, plan, rounds, reports, evaluation, seconds=seconds, retry_s=retry_s)
        seen = new.running["num_examples"] if not new.ends_epoch else new.history[-1]["examples"]
        assert new.ends_epoch is (seen == total), "every example is seen exactly once an epoch"
        return self._judged(new) if new.ends_epoch else new

    def _next_rounds(self, state: Checkpoint) -> tuple[EpochPlan, Rounds]:
        """The plan of the stage that the next segment is in, and that segment's rounds."""
        num_workers = self._num_workers(state)
        *earlier, last = state.stages or (Stage(num_workers, 0),)
        if last.num_workers != num_workers:
            log.warning("continuing with %d workers instead of %d", num_workers, last.num_workers)
            earlier, last = [*earlier, last] if last.num_rounds else earlier, Stage(num_workers, 0)
        # An epoch begun by another version is finished with that version's plan, so that each example is seen once.
        version = PLAN_VERSION if state.ends_epoch else state.plan_version
        manifest, epoch = self.dataset.manifest, state.epoch
        plan = plan_training(
            self.config, manifest, epoch=epoch, num_workers=num_workers, earlier=earlier, version=version
        )
        every_rounds = self.config.checkpoint_every_rounds or plan.num_rounds
        stop = min(plan.num_rounds, last.num_rounds + every_rounds)
        rounds = Rounds(
            epoch=epoch,
            first=last.num_rounds,
            stop=stop,
            earlier=tuple(earlier),
            first_step=state.num_steps,
            ends_epoch=stop == plan.num_rounds,
            plan_version=version,
        )
        return plan, rounds

    def _num_workers(self, state: Checkpoint) -> int:
        """Workers for the next segment: all that are wanted, or after a wait as many as there are slots."""
        wanted, fewest = self.config.num_workers, self.config.min_workers
        last = len(state.timeline[-1]["workers"]) if state.timeline else wanted
        deadline = time.monotonic() + self.config.wait_for_workers_s
        while (slots := self.launcher.num_slots()) < last and time.monotonic() < deadline:
            time.sleep(0.2)
        if slots < fewest:
            raise RetryableError(
                f"there are slots for {slots} of {wanted} workers after {self.config.wait_for_workers_s} s, fewer than "
                f"min_workers={fewest}: bring machines back, or lower min_workers"
            )
        return min(wanted, slots)

    def _run(
        self,
        work: Work,
        tasks: Callable[[], tuple[list[ReplicaState], dict[str, Any]]],
        *,
        watch: Watch | None = None,
    ) -> tuple[list[Report], float]:
        """Run a segment; when workers are lost run it again, from the same states and so to the same bits.

        Returns the reports, and the seconds that failed tries took.
        """
        begun, num_failed, retry_s = time.monotonic(), 0, 0.0
        earlier: set[tuple[str, int, str]] = set()
        while True:
            try:
                states, other = tasks()
                return self._run_once(work, states, watch=watch, **other), retry_s
            except LostLauncherError:
                raise
            except RetryableError as error:
                key = error.repeated_key if isinstance(error, FailedWorkerError) else None
                if key in earlier:
                    raise UserError(f"{error} (failed identically twice; not retrying)") from error
                num_failed += 1
                if num_failed > self.config.max_segment_retries:
                    raise
                if key is not None:
                    earlier.add(key)
                log.warning("%s; trying again (%d of %d)", error, num_failed, self.config.max_segment_retries)
                retry_s = time.monotonic() - begun

    def _run_once(self, work: Work, states: list[ReplicaState], *, watch: Watch | None, **other: Any) -> list[Report]:
        rendezvous = self.launcher.rendezvous
        address = rendezvous.new_address()
        get_progress = partial(rendezvous.progress, address, len(states))
        if watch:
            watch(get_progress)
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
        try:
            with self._watched(get_progress, address, len(states)):
                results = self.launcher.run(work, tasks)
        except LostWorkerError as error:
            raise describe_lost_worker(error, get_progress(), rendezvous.abort_reason(address)) from error
        finally:
            rendezvous.end(address)
        failures = [result for result in results if isinstance(result, Failure)]
        if failures:
            raise primary_failure(failures)
        return sorted((r for r in results if isinstance(r, Report)), key=lambda report: report.rank)

    def _watched(self, get_progress: GetProgress, address: Address, num_workers: int) -> AbstractContextManager[None]:
        # Peers that wait for a hung worker give up after timeout_s and report it first.
        limit_s = self.config.timeout_s + GRACE_S
        detector = HangDetector(num_workers, limit_s, first_report_s=self.config.wait_for_workers_s + limit_s)

        def end(reason: str) -> None:
            try:
                self.launcher.rendezvous.abort(address, reason)
            finally:
                self.launcher.cancel(reason)

        return watchdog(lambda: detector.check(get_progress(), time.monotonic()), end)

    def _judged(self, state: Checkpoint) -> Checkpoint:
        metric = self.config.early_stopping.metric
        is_validated = self.dataset.manifest.num_examples("validation") > 0
        *before, last = (score(metrics, metric, is_validated=is_validated) for metrics in state.history)
        if all(last > earlier for earlier in before):
            return replace(state, best_epoch=state.epoch, best_model=state.model)
        return state


def score(metrics: dict[str, float], metric: MetricName, *, is_validated: bool) -> tuple[float, float]:
    """How good an epoch is: greater is better, by a metric of the validation split, then by its loss.

    Without a validation split the training loss decides.
    """
    if not is_validated:
        return -metrics["train_loss"], 0.0
    figure = metrics[f"validation_{metric}"]
    return (-figure if metric in LOWEST_IS_BEST else figure), -metrics["validation_loss"]


def _evaluation(reports: list[Report]) -> Evaluation:
    parts = [report.evaluation for report in reports if report.evaluation is not None]
    return Evaluation.merged(parts, num_mistakes=NUM_MISTAKES)
