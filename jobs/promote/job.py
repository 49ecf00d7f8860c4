"""Evaluates models for the gate, at the end of a training or as the Spark job `evaluate`, and applies the gate."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException

from shardmean.jobs.promote.evaluation import (
    evaluate_registered,
    evaluation_split,
    first_example,
    latency_ms,
    measurement_of,
    rows_of,
)
from shardmean.jobs.promote.gate import needs_predictions
from shardmean.jobs.promote.promotion import CHALLENGER, Promoter
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.jobs.tracking.client import connect, mlflow_error
from shardmean.jobs.tracking.measurement import record, recorded
from shardmean.jobs.tracking.registry import cause_of, load_version
from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from shardmean.jobs.config.job import TrainJob
    from shardmean.jobs.promote.promotion import Decision
    from shardmean.jobs.tracking.measurement import Measurement
    from shardmean.model.dataset.manifest import Split
    from shardmean.model.evaluation.evaluator import Evaluation

log = logging.getLogger(__name__)


def judge_new(
    job: TrainJob, trainer: Trainer, evaluation: Evaluation, split: Split, client: mlflow.MlflowClient,
    version: ModelVersion, *, may_promote: bool,
) -> list[str]:  # fmt: skip
    """Make a new version challenger with its measurement; where it may, champion too if it passes the gate.

    Gives the version's aliases. Safe to repeat. Raises RetryableError where the champion can't be evaluated now.
    """
    manifest, number = trainer.dataset.manifest, str(version.version)
    measured = measurement_of(evaluation, manifest, split, _latency(job, trainer, split, version))
    record(client, version, manifest.digest, measured)
    client.set_registered_model_alias(version.name, CHALLENGER, number)
    if may_promote:
        promoter = Promoter(client, version.name, job.promote)
        decision = promoter.decide(number, measured, lambda other: measure(trainer, split, other, job))
        log_decision(version.name, decision, promoter.hold())
        if decision.has_passed and decision.champion != number and job.promote.approval == "none":
            promoter.promote_by_gate(decision, measured)
    return sorted(client.get_model_version(version.name, number).aliases)


def log_decision(name: str, decision: Decision, hold: str | None) -> None:
    """Log what the gate says, a line for each criterion."""
    against = f"champion {decision.champion}" if decision.champion else "no champion"
    held = ", held there by a rollback until a better one comes" if hold else ""
    verdict = "passes the gate" if decision.has_passed else "stays challenger"
    log.info("%s version %s against %s%s: %s", name, decision.version, against, held, verdict)
    for criterion in decision.criteria:
        log.info("  %s", criterion)


def measure(trainer: Trainer, split: Split, version: ModelVersion, job: TrainJob) -> Measurement | None:
    """A registered version on a split; None where it takes other images or classes, or cannot be evaluated."""
    try:
        model = load_version(f"models:/{version.name}/{version.version}")
        evaluation = evaluate_registered(trainer, split, model, "model")
        if evaluation is None:
            log.info("version %s of %s takes other images or classes", version.version, version.name)
            return None
        return measurement_of(evaluation, trainer.dataset.manifest, split, _latency(job, trainer, split, version))
    except RetryableError:
        raise
    except Exception as error:
        # It must not stop every later training at its end. Whether the server is away, a question to it tells.
        mlflow.MlflowClient().get_model_version(version.name, str(version.version))
        log.warning("version %s of %s cannot be evaluated: %s", version.version, version.name, cause_of(error))
        return None


def _latency(job: TrainJob, trainer: Trainer, split: Split, version: ModelVersion) -> float | None:
    """Milliseconds for one image, where the gate asks for them."""
    if job.promote.max_latency_ms is None:
        return None
    model = load_version(f"models:/{version.name}/{version.version}")
    return latency_ms(model.model_spec, model.state, first_example(trainer.dataset, split))


def evaluate(job: TrainJob, version: str | None = None) -> dict[str, Any]:
    """Measure a version (else the challenger) and the champion on the published DataSet, and say what the gate says.

    Workers start only where a measurement is missing. Promotes no challenger. Raises UserError and RetryableError.
    """
    name, uri = job.tracking.registered_model, connect(job.tracking)
    client = mlflow.MlflowClient()
    try:
        with _Evaluator(job) as evaluator:
            if version is None:
                found = client.get_model_version_by_alias(name, CHALLENGER)
            else:
                found = client.get_model_version(name, version)
            ours = recorded(client, found, evaluator.rows)
            is_whole = (
                ours is not None
                and ours.metrics.keys() > {"accuracy"}
                and (ours.predictions is not None or not needs_predictions(job.promote))
            )
            if not is_whole or ours is None:
                ours = evaluator.measure(found)
                if ours is None:
                    raise UserError(
                        f"{name} version {found.version} cannot be evaluated on {job.dataset_uri}: see the log"
                    )
                record(client, found, evaluator.dataset.manifest.digest, ours)
            promoter = Promoter(client, name, job.promote)
            decision = promoter.decide(str(found.version), ours, evaluator.measure)
            log_decision(name, decision, promoter.hold())
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(
                f"{name}: MLflow at {uri} has no version {version or CHALLENGER} ({error.message})"
            ) from error
        raise mlflow_error(uri, error) from error
    return {
        "model_name": name,
        "model_version": str(found.version),
        "champion": decision.champion,
        "rows": ours.rows,
        "dataset_uri": job.dataset_uri,
        "dataset_digest": evaluator.dataset.manifest.digest,
        "has_passed": decision.has_passed,
        "criteria": [str(criterion) for criterion in decision.criteria],
        "metrics": ours.metrics,
        "tracking_uri": uri,
        "run_id": found.run_id,
    }


class _Evaluator:
    """Evaluates registered versions on the published DataSet; Spark starts with the first."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self.dataset = Dataset(job.dataset_uri, load_manifest(job.dataset_uri))
        self._split = evaluation_split(self.dataset.manifest)
        self.rows = rows_of(self.dataset.manifest, self._split)
        self._ends = ExitStack()

    def __enter__(self) -> _Evaluator:
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.close()

    def measure(self, version: ModelVersion) -> Measurement | None:
        return measure(self._trainer, self._split, version, self._job)

    @cached_property
    def _trainer(self) -> Trainer:
        job = self._job
        config = TrainingConfig.model_validate(job.model_dump(include=set(TrainingConfig.model_fields)))
        session = self._ends.enter_context(open_session("shardmean evaluate", job.spark))
        launcher = BarrierLauncher(
            session, Rendezvous(driver_host(session)), job.min_workers, device=job.device, wait_s=job.wait_for_workers_s
        )
        return Trainer(config, self.dataset, launcher)
