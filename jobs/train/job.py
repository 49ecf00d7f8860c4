"""The training job: the epoch loop over Spark, with checkpoints, tracking, and resuming after the driver died."""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.jobs.tracking.client import connect
from shardmean.jobs.tracking.run import Tracker
from shardmean.jobs.train.initial_weights import find
from shardmean.jobs.train.run_directory import RunDirectory, directory_of, version_of
from shardmean.model.dataset.manifest import Manifest, load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.dataset.sampler import plan_evaluation
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.errors import LeaseLostError, RetryableError, UserError
from shardmean.model.evaluation.evaluator import evaluate
from shardmean.model.images.decoder import encode_png
from shardmean.model.optimization.fine_tuning import normalized_as
from shardmean.model.optimization.replica import build_model
from shardmean.model.storage import filesystem
from shardmean.model.storage.lease import Lease
from shardmean.model.training.augmentation_preview import preview
from shardmean.model.training.phase_timer import PHASES
from shardmean.model.training.trainer import Trainer
from shardmean.model.training.worker import EVALUATION_BATCH, plan_training

if TYPE_CHECKING:
    from shardmean.jobs.config.job import TrainJob
    from shardmean.jobs.tracking.run import TrainResult
    from shardmean.model.config.training import TrainingConfig
    from shardmean.model.dataset.manifest import Split
    from shardmean.model.evaluation.evaluator import Evaluation
    from shardmean.model.optimization.fine_tuning import PretrainedModel
    from shardmean.model.serving.image_model import ImageModel
    from shardmean.model.training.checkpoint import Checkpoint
    from shardmean.model.training.progress import EpochProgress

log = logging.getLogger(__name__)


def train(job: TrainJob) -> TrainResult:
    """Train, evaluate and register; or go on with the same run where a killed driver left it.

    Raises UserError and RetryableError; after a RetryableError the same command goes on from the last checkpoint.
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
        job, origin = _started(job, manifest, start, run.started_from)
        with open_session("shardmean train", job.spark) as session:
            launcher = BarrierLauncher(
                session,
                Rendezvous(driver_host(session)),
                # A training that was cut off goes on with fewer, as one does that loses machines on the way.
                job.num_workers if start is None else job.min_workers,
                device=job.device,
                wait_s=job.wait_for_workers_s,
            )
            tracker = Tracker(job, manifest, run.run_id)
            try:
                started_from = origin.uri if origin else run.started_from
                run.begin(tracker.run_id, started_from)
                if started_from is not None:
                    tracker.log_origin(started_from)
                _announce(job, manifest, tracker, start)
                tracker.log_dataset_report()
                if job.augmentation.is_on:
                    tracker.log_augmentation(preview(job, dataset))
                training = Trainer(job, dataset, launcher, partial(_log_progress, tracker, lease), origin)
                return _to_the_end(training, tracker, run, start)
            except BaseException as error:
                # Whoever took the run over goes on with the same run in MLflow, which is not ours to end.
                if not (isinstance(error, LeaseLostError) or _is_lost(lease)):
                    tracker.fail()
                raise


def _check(job: TrainJob, manifest: Manifest) -> None:
    if len(manifest.class_names) < 2:
        raise UserError(f"dataset {job.dataset_uri} has one class only: a classifier needs two or more")
    job.early_stopping.check(len(manifest.class_names))
    job.augmentation.check(manifest.image)
    plan_training(job, manifest, epoch=0, num_workers=job.num_workers)
    build_model(job, manifest)


def _started(
    job: TrainJob, manifest: Manifest, start: Checkpoint | None, found_before: str | None
) -> tuple[TrainJob, PretrainedModel | None]:
    """The job with the normalization of what it starts from, and that, unless a checkpoint goes on from there."""
    uri = job.fine_tuning.start_from
    if uri is None:
        return job, None
    if start is not None:
        return normalized_as(job, start.model_spec), None
    origin = find(found_before or uri)
    origin.check(job, manifest)
    log.info("starting from %s%s", origin.uri, " with a new head" if job.fine_tuning.replace_head else "")
    return normalized_as(job, origin.model_spec), origin


def _announce(job: TrainJob, manifest: Manifest, tracker: Tracker, start: Checkpoint | None) -> None:
    log.info("MLflow run %s at %s", tracker.run_id, tracker.tracking_uri)
    log.info(
        "training %s on %d examples of %s (%s): %d workers, averaging every %s minibatches of %d",
        job.network, manifest.num_examples("train"), job.dataset_uri, manifest.digest[:8],
        job.num_workers, job.averaging.frequency, job.batch_size_per_worker,
    )  # fmt: skip
    if start is not None:
        within = "" if start.ends_epoch else f" and {start.running['rounds']:.0f} rounds"
        log.info("going on after epoch %d%s of %d from the last checkpoint", start.epoch, within, job.num_epochs)


def _is_lost(lease: Lease) -> bool:
    try:
        return lease.is_lost()
    except RetryableError as problem:
        # The first error is the one to tell; and the winner, if there is one, says at its end how its run went.
        log.warning("whether another took the run over could not be seen: %s", problem)
        return False


def _log_progress(tracker: Tracker, lease: Lease, progress: EpochProgress) -> None:
    # The next write stops a driver that lost the run; until then it may not disturb the winner's figures.
    with contextlib.suppress(RetryableError):
        lease.check()
        tracker.log_progress(progress)


def _to_the_end(training: Trainer, tracker: Tracker, run: RunDirectory, start: Checkpoint | None) -> TrainResult:
    def on_state(state: Checkpoint) -> None:
        saving = time.monotonic()
        run.save(state)
        epoch = state.epoch if state.ends_epoch else state.epoch + 1
        tracker.checkpoint_s[epoch] = tracker.checkpoint_s.get(epoch, 0.0) + time.monotonic() - saving
        if state.ends_epoch:
            tracker.log_epochs(state.history)
            _say_epoch(state, training.config, tracker.checkpoint_s[state.epoch])

    try:
        final = training.fit(start, on_state)
    except LeaseLostError:
        raise
    except RetryableError as error:
        raise RetryableError(f"{error}; the same command goes on from the last checkpoint") from error
    split = _evaluation_split(training.dataset.manifest)
    evaluation = training.evaluate(final.best_model, split)

    def champion_metrics(rival: ImageModel) -> float | None:
        return _rival_accuracy(rival, training.dataset, split)

    run.lease.check()
    result = tracker.finish(final, evaluation, split, _example(training.dataset, split), champion_metrics)
    run.finish(result)
    _summarize(result, evaluation)
    return result


def _say_epoch(state: Checkpoint, config: TrainingConfig, checkpoint_s: float) -> None:
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


def _evaluation_split(manifest: Manifest) -> Split:
    splits: tuple[Split, ...] = ("test", "validation")
    for split in splits:
        if manifest.num_examples(split):
            return split
    log.warning("no held-out examples: the final figures are of the training split and say little")
    return "train"


def _rival_accuracy(rival: ImageModel, dataset: Dataset, split: Split) -> float | None:
    manifest = dataset.manifest
    if rival.image != manifest.image or rival.class_names != manifest.class_names:
        return None
    rows = [shard.num_examples for shard in manifest.shards_of(split)]
    plan = plan_evaluation(rows, num_workers=1, batch_size=EVALUATION_BATCH)
    return evaluate(rival.classifier, dataset, plan, 0, split, num_mistakes=0).accuracy


def _example(dataset: Dataset, split: Split) -> bytes:
    first = dataset.read(dataset.manifest.shards_of(split)[0], 0, 1)
    return encode_png(first.features_NCHW[0])


def _summarize(result: TrainResult, evaluation: Evaluation) -> None:
    accuracy = 100 * result.metrics["accuracy"]
    log.info(
        "%s accuracy %.2f %% (%d wrong of %d)", result.split, accuracy, evaluation.num_wrong, evaluation.num_examples
    )
    log.info("model %s version %s: %s", result.model_name, result.model_version, ", ".join(result.aliases))
    log.info("pictures: %s", result.pictures_uri)
    if result.run_url:
        log.info("MLflow run: %s", result.run_url)
