"""The training job: epochs on Spark, checkpoints, tracking, registration; and resuming where a driver was killed."""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from shardmean.jobs.promote.evaluation import evaluation_split, first_example
from shardmean.jobs.promote.job import judge_new
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.jobs.tracking.client import connect
from shardmean.jobs.tracking.history import finished_run
from shardmean.jobs.tracking.run import Tracker
from shardmean.jobs.train.initial_weights import find_pretrained
from shardmean.jobs.train.run_directory import RunDirectory, directory_of, has_begun, version_of
from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.manifest import Manifest, load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.errors import LeaseLostError, RetryableError, UserError
from shardmean.model.optimization.fine_tuning import normalized_as
from shardmean.model.optimization.replica import build_model
from shardmean.model.storage import filesystem
from shardmean.model.storage.lease import Lease
from shardmean.model.training.augmentation_preview import preview
from shardmean.model.training.phase_timer import PHASES
from shardmean.model.training.trainer import Trainer
from shardmean.model.training.worker import plan_training

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardmean.jobs.config.job import TrainJob
    from shardmean.jobs.tracking.run import TrainResult
    from shardmean.model.evaluation.evaluator import Evaluation
    from shardmean.model.optimization.fine_tuning import PretrainedModel
    from shardmean.model.training.checkpoint import Checkpoint
    from shardmean.model.training.progress import EpochProgress

log = logging.getLogger(__name__)


def train(job: TrainJob, *, may_promote: bool = True) -> TrainResult:
    """Train, evaluate and register; a run that was cut off is resumed from its last checkpoint.

    The new model is the challenger, and the champion too if it passes the gate (`job.promote`) and it may be promoted.
    Raises UserError and RetryableError; after a RetryableError the same command resumes the run.
    """
    manifest = load_manifest(job.dataset_uri, version_of(job))
    _check(job, manifest)
    filesystem.check_writable(job.checkpoint_uri)
    dataset = Dataset(job.dataset_uri, manifest)
    with Lease(directory_of(job, manifest.digest), what="this training") as lease:
        run = RunDirectory(job, manifest.digest, lease)
        if run.result is not None:
            log.info("run %s has finished already: its result follows", run.uri)
            return run.result
        connect(job.tracking)
        start = run.latest()
        job, pretrained = _starting_point(job, manifest, start, run.started_from)
        # Of the job, workers get what decides the training: no addresses, no names of tracking.
        config = TrainingConfig.model_validate(job.model_dump(include=set(TrainingConfig.model_fields)))
        with open_session("shardmean train", job.spark) as session:
            launcher = BarrierLauncher(
                session,
                Rendezvous(driver_host(session)),
                # A run that was cut off is resumed with fewer too, as where machines are lost on the way.
                config.num_workers if start is None else config.min_workers,
                device=config.device,
                wait_s=config.wait_for_workers_s,
            )
            tracker = Tracker(job, manifest, run.run_id)
            try:
                started_from = pretrained.uri if pretrained else run.started_from
                run.begin(tracker.run_id, started_from)
                if started_from is not None:
                    tracker.log_pretrained(started_from)
                _log_start(job, manifest, tracker, start)
                tracker.log_dataset_report()
                if config.augmentation.is_on:
                    tracker.log_augmentation(preview(config, dataset))
                trainer = Trainer(config, dataset, launcher, partial(_log_progress, tracker, lease), pretrained)
                judge = partial(judge_new, job, trainer, may_promote=may_promote)
                return _fit_and_register(trainer, tracker, run, start, judge)
            except BaseException as error:
                # A driver that took the run over uses the same run in MLflow, which is not ours to end.
                if run.result is None and not isinstance(error, LeaseLostError) and not _is_lost(lease):
                    tracker.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise


def skip_reason(job: TrainJob) -> dict[str, str] | None:
    """Why there is nothing to train: this version was trained with these settings. None where there is.

    A run that has begun goes on, whatever others have trained. Raises UserError and RetryableError.
    """
    manifest = load_manifest(job.dataset_uri, version_of(job))
    found = None if has_begun(job, manifest.digest) else finished_run(job, manifest)
    if found is None:
        return None
    reason = f"version {manifest.digest} of {job.dataset_uri} was trained with these settings already: run {found}"
    return {"skipped": reason, "run_id": found, "dataset_digest": manifest.digest, "dataset_uri": job.dataset_uri}


def _check(job: TrainJob, manifest: Manifest) -> None:
    if len(manifest.class_names) < 2:
        raise UserError(f"dataset {job.dataset_uri} has one class only: a classifier needs two or more")
    job.early_stopping.check(len(manifest.class_names))
    job.augmentation.check(manifest.image)
    plan_training(job, manifest, epoch=0, num_workers=job.num_workers)
    build_model(job, manifest)


def _starting_point(
    job: TrainJob, manifest: Manifest, start: Checkpoint | None, found_before: str | None
) -> tuple[TrainJob, PretrainedModel | None]:
    """The job with the normalization of the model that it starts from, and that model unless a checkpoint has it."""
    uri = job.fine_tuning.start_from
    if uri is None:
        return job, None
    if start is not None:
        return normalized_as(job, start.model_spec), None
    pretrained = find_pretrained(found_before or uri)
    pretrained.check(job, manifest)
    log.info("starting from %s%s", pretrained.uri, " with a new head" if job.fine_tuning.replace_head else "")
    return normalized_as(job, pretrained.model_spec), pretrained


def _log_start(job: TrainJob, manifest: Manifest, tracker: Tracker, start: Checkpoint | None) -> None:
    log.info("MLflow run %s at %s", tracker.run_id, tracker.tracking_uri)
    log.info(
        "training %s on %d examples of %s (%s): %d workers, averaging every %s minibatches of %d",
        job.network, manifest.num_examples("train"), job.dataset_uri, manifest.digest[:8],
        job.num_workers, job.averaging.frequency, job.batch_size_per_worker,
    )  # fmt: skip
    if start is not None:
        within = "" if start.ends_epoch else f" and {start.running['rounds']:.0f} rounds"
        log.info("resuming after epoch %d%s of %d from the last checkpoint", start.epoch, within, job.num_epochs)


def _is_lost(lease: Lease) -> bool:
    try:
        return lease.is_lost()
    except RetryableError as problem:
        # The first error is the one to raise.
        log.warning("cannot tell whether another driver took the run over: %s", problem)
        return False


def _log_progress(tracker: Tracker, lease: Lease, progress: EpochProgress) -> None:
    # The next write stops a driver that lost the run; until then it must not send metrics to the winner's run.
    with contextlib.suppress(RetryableError):
        lease.check()
        tracker.log_progress(progress)


def _fit_and_register(
    trainer: Trainer, tracker: Tracker, run: RunDirectory, start: Checkpoint | None, judge: Callable[..., list[str]]
) -> TrainResult:
    def on_state(state: Checkpoint) -> None:
        saving = time.monotonic()
        run.save(state)
        epoch = state.epoch if state.ends_epoch else state.epoch + 1
        tracker.checkpoint_s[epoch] = tracker.checkpoint_s.get(epoch, 0.0) + time.monotonic() - saving
        if state.ends_epoch:
            tracker.log_epochs(state.history)
            _log_epoch(state, trainer.config, tracker.checkpoint_s[state.epoch])

    try:
        final = trainer.fit(start, on_state)
        split = evaluation_split(trainer.dataset.manifest)
        evaluation = trainer.evaluate(final.best_model, split)
    except LeaseLostError:
        raise
    except RetryableError as error:
        raise RetryableError(f"{error}; run the same command to resume from the last checkpoint") from error
    run.lease.check()
    example = first_example(trainer.dataset, split)
    result = tracker.finish(final, evaluation, split, example, partial(judge, evaluation, split))
    run.finish(result)
    _log_result(result, evaluation)
    return result


def _log_epoch(state: Checkpoint, config: TrainingConfig, checkpoint_s: float) -> None:
    h, num_epochs = state.history[-1], config.num_epochs
    log.info(
        "epoch %d/%d: loss %.4f, %s, %.1f s, %.0f examples/s%s",
        state.epoch, num_epochs, h["train_loss"], _validation(h, config.early_stopping.metric), h["epoch_seconds"],
        h["examples_per_second"], ", best" if state.best_epoch == state.epoch else "",
    )  # fmt: skip
    phases = ", ".join(f"{phase} {h.get(f'{phase}_s', 0.0):.2f}" for phase in PHASES)
    log.info(
        "epoch %d/%d: seconds of a worker: %s; Spark %.2f; checkpoint %.2f%s",
        state.epoch, num_epochs, phases, h["spark_s"], checkpoint_s,
        f"; failed tries {h['retry_s']:.2f}" if h["retry_s"] else "",
    )  # fmt: skip


def _validation(h: dict[str, float], metric: str) -> str:
    if "validation_loss" not in h:
        return "no validation"
    deciding = "" if metric in ("accuracy", "loss") else f"{metric} {h[f'validation_{metric}']:.4f}, "
    return f"validation {100 * h['validation_accuracy']:.2f} % ({deciding}loss {h['validation_loss']:.4f})"


def _log_result(result: TrainResult, evaluation: Evaluation) -> None:
    accuracy = 100 * result.metrics["accuracy"]
    log.info(
        "%s accuracy %.2f %% (%d wrong of %d)", result.split, accuracy, evaluation.num_wrong, evaluation.num_examples
    )
    log.info("model %s version %s: %s", result.model_name, result.model_version, ", ".join(result.aliases))
    log.info("plots: %s", result.plots_uri)
    if result.run_url:
        log.info("MLflow run: %s", result.run_url)
