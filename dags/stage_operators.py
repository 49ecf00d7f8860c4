"""The tasks of a pipeline's DAGs: what each gives its job, and what becomes of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from shardmean.dags.asset_events import newest_version
from shardmean.dags.assets import dataset_asset, model_asset
from shardmean.dags.spark_operator import SparkJobOperator, params_of_run, result_of, task_options
from shardmean.jobs.checks.candidate import publish_candidate
from shardmean.jobs.checks.dataset import check
from shardmean.model.dataset.manifest import load_current, load_manifest
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Context

    from shardmean.jobs.config.pipeline import Pipeline

SKIP_TRAINED = "skip_trained"
MAX_EVENTS = 100


class VectorizeOperator(SparkJobOperator):
    """Makes the next version of the DataSet as a candidate; skipped when there is nothing new to publish."""

    def __init__(self, *, pipeline: Pipeline, file: Path, **options: Any) -> None:
        self.dataset = dataset_asset(pipeline)
        # An inlet: a task sees the earlier events of its inlets only.
        super().__init__(command="vectorize", file=file, job=pipeline.vectorize, inlets=[self.dataset], **options)

    def run_arguments(self, context: Context, params: dict[str, Any]) -> list[str]:  # noqa: ARG002 - as all jobs
        """Leave the new version unpublished."""
        return ["--candidate"]

    def report(self, result: dict[str, Any], context: Context) -> None:
        """Skip the rest when Airflow has announced this version, whoever published it."""
        events = context["inlet_events"][self.dataset].ascending(False).limit(MAX_EVENTS)
        if result["is_published"] and newest_version(events) == result["digest"]:
            raise AirflowSkipException(f"nothing new: {result['dataset_uri']} stays at version {result['digest']}")


class _CandidateOperator(BaseOperator):
    """Works on the version that `vectorize` made, in Airflow's worker: it reads manifests only."""

    def __init__(self, *, pipeline: Pipeline, **options: Any) -> None:
        super().__init__(**task_options(pipeline.vectorize.airflow), **options)


class CheckOperator(_CandidateOperator):
    """Holds the candidate against the published version; fails by what the checks say."""

    def __init__(self, *, pipeline: Pipeline, file: Path, **options: Any) -> None:
        self.job = pipeline.vectorize
        self.file = file
        super().__init__(pipeline=pipeline, **options)

    def execute(self, context: Context) -> list[str]:
        """Run the checks and return what each found."""
        made = result_of(context, "vectorize")
        try:
            job = params_of_run(context, self.dag, self.job, self.file)[1]
            candidate, published = load_manifest(made["dataset_uri"], made["digest"]), load_current(made["dataset_uri"])
            if published is not None and published.digest == candidate.digest:
                self.log.info("version %s is published already", candidate.digest)
                return []
            return [str(finding) for finding in check(job.checks, candidate, published, made["dataset_uri"])]
        except UserError as error:
            raise AirflowFailException(str(error)) from error


class PublishOperator(_CandidateOperator):
    """Makes the candidate the current version and announces it."""

    def __init__(self, *, pipeline: Pipeline, **options: Any) -> None:
        self.dataset = dataset_asset(pipeline)
        super().__init__(pipeline=pipeline, outlets=[self.dataset], **options)

    def execute(self, context: Context) -> dict[str, Any]:
        """Publish; one that is published already is announced once more."""
        made = result_of(context, "vectorize")
        try:
            publish_candidate(made["dataset_uri"], made["digest"])
        except UserError as error:
            raise AirflowFailException(str(error)) from error
        result = made | {"is_published": True}
        context["outlet_events"][self.dataset].extra = result
        return result


class TrainOperator(SparkJobOperator):
    """Trains the newest version, or the one that the run's form names, and announces the registered model."""

    def __init__(self, *, pipeline: Pipeline, file: Path, **options: Any) -> None:
        self.model = model_asset(pipeline)
        super().__init__(command="train", file=file, job=pipeline.train, outlets=[self.model], **options)

    def run_arguments(self, context: Context, params: dict[str, Any]) -> list[str]:
        """The run's key, by which a retry resumes; a run that an event started trains no version twice."""
        arguments = [] if params.get("run_key") else [f"run_key={self.run_name(context)}"]
        is_automatic = bool(context["triggering_asset_events"]) or bool(
            (context["dag_run"].conf or {}).get(SKIP_TRAINED)
        )
        # NAME_promote decides, so that a model that waits for approval holds back no training.
        return [*arguments, "--register-only", *(["--skip-trained"] if is_automatic else [])]

    def report(self, result: dict[str, Any], context: Context) -> None:
        """Say which version was trained, and announce the model."""
        context["ti"].xcom_push(key="digest", value=result["dataset_digest"])
        events = [event for group in context["triggering_asset_events"].values() for event in group]
        announced = newest_version(events) if events else None
        if announced not in (None, result["dataset_digest"]):
            self.log.info("version %s was newer than %s, which started this run", result["dataset_digest"], announced)
        if result.get("skipped"):
            raise AirflowSkipException(result["skipped"])
        context["outlet_events"][self.model].extra = result


class TrainNewestOperator(TriggerDagRunOperator):
    """Starts one more run where a newer version was published while this run trained.

    Airflow keeps the events that come while a run is active, and gives them to no run before the next event comes.
    """

    def __init__(self, *, pipeline: Pipeline, **options: Any) -> None:
        self.dataset_uri = pipeline.train.dataset_uri
        super().__init__(
            trigger_dag_id=f"{pipeline.name}_train",
            conf={SKIP_TRAINED: True},
            # After a training that was skipped too; a training that failed starts none.
            trigger_rule="none_failed",
            retries=pipeline.airflow.retries,
            **options,
        )

    def execute(self, context: Context) -> None:
        """Start the run, or be skipped."""
        trained = context["ti"].xcom_pull(task_ids="train", key="digest")
        if context["params"].get("dataset_digest"):
            raise AirflowSkipException("this run was told which version to train")
        current = load_current(self.dataset_uri)
        if current is None or current.digest == trained:
            raise AirflowSkipException(f"{self.dataset_uri}: no version newer than {trained}")
        super().execute(context)
