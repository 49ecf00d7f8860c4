"""Makes the DAGs of pipelines: NAME_vectorize, NAME_train and NAME_promote of each file."""

from __future__ import annotations

import logging
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.sdk import DAG, CronTriggerTimetable, Param, chain
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowException

from shardmean.dags.assets import dataset_asset, model_asset
from shardmean.dags.notifications import deadline_notifiers, notifiers
from shardmean.dags.promote_operators import ApproveOperator, EvaluateOperator, GateOperator, PromoteOperator
from shardmean.dags.stage_operators import (
    CheckOperator,
    PublishOperator,
    TrainNewestOperator,
    TrainOperator,
    VectorizeOperator,
)
from shardmean.dags.trigger_form import form
from shardmean.jobs.config.loading import load_pipeline
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from shardmean.jobs.config.job import SparkJob
    from shardmean.jobs.config.pipeline import Pipeline

SUFFIXES = (".yaml", ".yml", ".json")
OF_0_1_0 = ("vectorize.yaml", "train.yaml")
VECTORIZE_MAIN = ["source.uri", "image.height_px", "image.width_px", "image.channels", "max_rejected_fraction"]
TRAIN_MAIN = [
    "num_epochs", "num_workers", "averaging.frequency", "optimizer.learning_rate", "batch_size_per_worker", "network",
]  # fmt: skip
log = logging.getLogger(__name__)


def load_pipelines(folder: str | Path) -> dict[str, DAG]:
    """The DAGs of all pipelines in a folder, by their ids; a relative path starts at the calling file.

    A file that is wrong becomes an import error of its own and takes no other pipeline with it. Raises UserError when
    the folder holds no pipeline.
    """
    caller = Path(sys._getframe(1).f_globals.get("__file__", "."))  # noqa: SLF001 - the file that Airflow parses
    root = caller.parent / folder
    files = _pipeline_files(root)
    dags: dict[str, DAG] = {}
    names: dict[str, Path] = {}
    for file in files:
        try:
            pipeline = load_pipeline(file)
            if pipeline.name in names:
                raise UserError(
                    f"pipeline {file}: name = {pipeline.name!r} is taken by {names[pipeline.name]}: choose another"
                )
            made = _dags_of(pipeline, file)
        except Exception as error:  # whatever it is, it is this pipeline's alone
            log.exception("pipeline %s", file)
            made = [_broken(file, error)]
        else:
            names[pipeline.name] = file
        dags |= {dag.dag_id: dag for dag in made}
    return dags


def _pipeline_files(folder: Path) -> list[Path]:
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
        if files:
            return files
    if any((folder.parent / name).exists() for name in OF_0_1_0):
        raise UserError(
            f"{folder}: no pipelines, but {folder.parent} holds configs of version 0.1.0: convert them by "
            f"`shardmean init --from {folder.parent}`"
        )
    raise UserError(
        f"{folder}: no pipelines (*.yaml): make one by `shardmean init NAME SOURCE`, or let SHARDMEAN_CONFIG_DIR name "
        "a folder that holds a folder pipelines"
    )


def _dags_of(pipeline: Pipeline, file: Path) -> list[DAG]:
    return [_vectorize_dag(pipeline, file), _train_dag(pipeline, file), _promote_dag(pipeline, file)]


def _vectorize_dag(pipeline: Pipeline, file: Path) -> DAG:
    """Images to the next version of the DataSet: written, checked, published.

    With nothing new all is skipped. A version that fails a check stays a candidate, which no training sees; the task
    `check` says what failed, by how much, and how to publish the version all the same.
    """
    with _dag(pipeline, "vectorize", _schedule(pipeline), _vectorize_dag) as dag:
        _ = (
            VectorizeOperator(task_id="vectorize", pipeline=pipeline, file=file)
            >> CheckOperator(task_id="check", pipeline=pipeline, file=file)
            >> PublishOperator(task_id="publish", pipeline=pipeline)
        )
    return _with_form(dag, pipeline.vectorize, VECTORIZE_MAIN)


def _train_dag(pipeline: Pipeline, file: Path) -> DAG:
    """The newest version of the DataSet to a registered model.

    A run that a new version started trains the newest one there is when it begins, and skips one that was trained with
    these settings already. A retry resumes from the last checkpoint, in the same MLflow run. At the end
    `train_newest` starts another run where a newer version was published meanwhile.
    """
    with _dag(pipeline, "train", [dataset_asset(pipeline)], _train_dag) as dag:
        train = TrainOperator(task_id="train", pipeline=pipeline, file=file)
        _ = train >> TrainNewestOperator(task_id="train_newest", pipeline=pipeline)
    return _with_form(dag, pipeline.train, TRAIN_MAIN)


def _promote_dag(pipeline: Pipeline, file: Path) -> DAG:
    """The challenger to champion: measured on the same rows, judged by the gate, approved where the pipeline says so.

    Runs for each new challenger. By hand it takes any version of the registered model. `shardmean rollback` is the way
    back.
    """
    # Several at once: one that waits for approval must not hold back the next challenger, which supersedes it.
    with _dag(pipeline, "promote", [model_asset(pipeline)], _promote_dag, max_active_runs=16) as dag:
        tasks = [
            EvaluateOperator(task_id="evaluate", pipeline=pipeline, file=file),
            GateOperator(task_id="gate", pipeline=pipeline),
        ]
        if pipeline.train.promote.approval == "required":
            tasks.append(ApproveOperator(task_id="approve", pipeline=pipeline))
        chain(*tasks, PromoteOperator(task_id="promote", pipeline=pipeline))
    version = Param(
        None,
        type=["null", "string"],
        pattern="^[1-9][0-9]{0,8}$",
        title="version",
        description_md="Version of the registered model; empty: the challenger.",
    )
    object.__setattr__(dag, "params", ParamsDict({"version": version}))
    return dag


def _dag(pipeline: Pipeline, stage: str, schedule: Any, describes: Any, max_active_runs: int = 1) -> DAG:
    airflow = pipeline.airflow
    return DAG(
        dag_id=f"{pipeline.name}_{stage}",
        schedule=schedule,
        start_date=pendulum.datetime(2026, 1, 1, tz=airflow.timezone),
        catchup=False,
        max_active_runs=max_active_runs,
        tags=["shardmean", pipeline.name, *airflow.tags],
        default_args={"owner": airflow.owner, "on_failure_callback": notifiers(pipeline, "failure")},
        deadline=_deadlines(pipeline) or None,
        access_control={role: {"DAGs": set(rights)} for role, rights in airflow.access_control.items()} or None,
        doc_md=_documentation(pipeline, describes),
    )


def _deadlines(pipeline: Pipeline) -> list[DeadlineAlert]:
    """An alert for each who wants to know that a run has not ended in time; the triggerer sends it."""
    seconds = pipeline.airflow.deadline_s
    if seconds is None:
        return []
    return [
        DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=timedelta(seconds=seconds),
            callback=AsyncCallback(kind, kwargs=arguments),
        )
        for kind, arguments in deadline_notifiers(pipeline)
    ]


def _with_form(dag: DAG, job: SparkJob, main: list[str]) -> DAG:
    # After its tasks, each of which would get a copy of all params, and past the check of values that pydantic has
    # checked: for 50 pipelines these two took 2 of 4 seconds, and their serialization 8 seconds in place of 0.3.
    object.__setattr__(dag, "params", ParamsDict(form(job, main)))
    return dag


def _schedule(pipeline: Pipeline) -> CronTriggerTimetable | None:
    cron = pipeline.airflow.schedule
    if cron is None:
        return None
    try:
        timetable = CronTriggerTimetable(cron, timezone=pipeline.airflow.timezone)
        timetable.validate()
    except (AirflowException, ValueError) as error:
        raise UserError(f"airflow.schedule = {cron!r}: not a cron expression ({error}); such as 0 3 * * *") from error
    return timetable


def _documentation(pipeline: Pipeline, describes: Any) -> str:
    lines = [" ".join(part.split()) for part in str(describes.__doc__).split("\n\n")]
    places = {
        "source": pipeline.vectorize.source.uri,
        "DataSet": pipeline.vectorize.dataset_uri,
        "registered model": pipeline.train.tracking.registered_model,
    }
    return "\n\n".join([*lines, *(f"**{what}:** `{where}`" for what, where in places.items())])


class _BrokenPipeline(DAG):
    """In place of a broken pipeline's DAGs: it cannot be serialized, and Airflow reports why under the file's name.

    An import error of the file that calls `load_pipelines` would take all other pipelines out.
    """

    error: Exception
    file: Path

    def validate(self) -> None:
        """Called for each DAG of a file, after Airflow has named the file that it came from."""
        self.relative_fileloc = str(self.file)
        object.__setattr__(self, "doc_md", _Unprintable(self.error))


class _Unprintable:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __str__(self) -> str:
        raise self._error


def _broken(file: Path, error: Exception) -> DAG:
    dag = _BrokenPipeline(dag_id=f"{re.sub('[^A-Za-z0-9_.-]', '-', file.stem)}_broken", schedule=None)
    dag.error, dag.file = error, file
    return dag
