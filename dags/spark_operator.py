"""One Spark job as an Airflow task: checks what the run gives, submits, shows the result as XCom, link, asset event."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import abstractmethod
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG, BaseHook, BaseOperatorLink
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
)

import shardmean.jobs
from shardmean.jobs.common.local_paths import data_dir
from shardmean.jobs.common.parent_process import mark
from shardmean.jobs.config.airflow import MAX_RETRY_DELAY_S
from shardmean.jobs.config.former_names import current_key
from shardmean.jobs.config.loading import load_stage
from shardmean.jobs.config.uris import check_servers
from shardmean.model.errors import UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from shardmean.jobs.config.airflow import AirflowConfig
    from shardmean.jobs.config.job import SparkJob
    from shardmean.jobs.config.loading import Job

NOT_OF_THE_JOB = {"skip_trained", "version"}  # keys of a run's conf that our own DAGs set
MAX_NAME = 180  # characters of a run's name before its hash; a run_key may have 200


class ResultLink(BaseOperatorLink):
    """The button on the task's page that leads to the MLflow run."""

    name = "MLflow run"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow passes it
        """The run's address; empty when MLflow has no server."""
        return str(getattr(operator, "link_url", "") or "")


class SparkJobOperator(SparkSubmitOperator):
    """Submits `shardmean COMMAND --pipeline FILE` to the Spark connection.

    A run sets what the DAG declares as params, its form, and `run_key`; all else is the deployment's, in the pipeline's
    file: who may only trigger a DAG must not run code on the executors, or send credentials elsewhere. The job writes
    its result, or its error, to a JSON file, as any cluster and deploy mode allows. The user's mistake fails the task
    at once, other failures are left to Airflow's retries.
    """

    operator_extra_links = (ResultLink(),)

    def __init__(self, *, command: str, file: Path, job: SparkJob, **options: Any) -> None:
        self.command = command
        self.file = file
        self.job = job
        self.link_url = ""
        super().__init__(
            application=str(Path(shardmean.jobs.__file__).with_name("cli") / "__main__.py"),
            application_args=[command, f"--pipeline={file}"],
            name=f"shardmean {command}",
            conn_id=job.airflow.connection_id,
            conf=job.spark,
            **task_options(job.airflow),
            **options,
        )

    @abstractmethod
    def run_arguments(self, context: Context, params: dict[str, Any]) -> list[str]:
        """Arguments of the command that only the run knows."""

    @abstractmethod
    def report(self, result: dict[str, Any], context: Context) -> None:
        """Announce the result; may raise AirflowSkipException."""

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override] # the provider's returns nothing
        """Run the job and return its result, which Airflow keeps as XCom."""
        self._check_connection()
        try:
            params, _ = params_of_run(context, self.dag, self.job, self.file)
        except UserError as error:
            raise AirflowFailException(str(error)) from error
        result_uri = filesystem.join(
            results_uri(), self.command, f"{self.run_name(context)}-{context['ti'].try_number}.json"
        )
        assert isinstance(self.application_args, list)
        self.application_args += [f"--params={json.dumps(params)}", f"--result={result_uri}"]
        self.application_args += self.run_arguments(context, params)
        self.env_vars = {**(self.env_vars or {}), **mark()}
        try:
            super().execute(context)
        except AirflowException as error:
            problem = _result(result_uri)
            if problem.get("kind") == "user":
                raise AirflowFailException(problem["error"]) from error
            raise RuntimeError(problem.get("error") or f"the job left no result at {result_uri}: {error}") from error
        result = _result(result_uri)
        if not result:
            raise RuntimeError(
                f"the job ended well, but there is no result at {result_uri}: set SHARDMEAN_RESULTS_URI to a place "
                "that Spark's drivers and Airflow's workers both reach"
            )
        self.link_url = result.get("run_url") or ""
        self.report(result, context)
        return result

    def run_name(self, context: Context) -> str:
        """The run's name as part of a path."""
        return run_name(context["dag_run"].dag_id, context["dag_run"].run_id)

    def _check_connection(self) -> None:
        # The provider takes an unknown connection for YARN, which fails far away from the cause.
        try:
            BaseHook.get_connection(self._conn_id)
        except AirflowNotFoundException:
            raise AirflowFailException(
                f"Airflow has no connection {self._conn_id!r}: add it, for example "
                f"`airflow connections add {self._conn_id} --conn-type spark --conn-host 'local[*]'`"
            ) from None


def params_of_run(context: Context, dag: DAG, deployed: Job, file: Path) -> tuple[dict[str, Any], Job]:
    """What the run gives the job, and the job. Raises UserError for what it may not set, and for wrong values."""
    params = {key: value for key, value in context["params"].items() if key not in NOT_OF_THE_JOB}
    refused = [key for key in params if current_key(key) not in {*dag.params, "run_key"}]
    if refused:
        raise UserError(
            f"{', '.join(refused)}: not in the form of {dag.dag_id}, so a run may not set it: leave it out of the "
            f"run's conf, or change it for all runs in {file}"
        )
    job = load_stage(type(deployed), file, params=json.dumps(params))
    check_servers(job.uris(), [*deployed.uris().values(), *deployed.airflow.allowed_roots])
    return params, job


def run_name(dag_id: str, run_id: str) -> str:
    """A run's name as part of a path. Ids hold ':' and '+', which HDFS refuses in paths; a hash keeps names apart."""
    given = f"{dag_id}-{run_id}"
    return f"{re.sub('[^A-Za-z0-9._-]', '-', given)[:MAX_NAME]}-{hashlib.sha256(given.encode()).hexdigest()[:8]}"


def results_uri() -> str:
    """Where jobs leave results: SHARDMEAN_RESULTS_URI, which Spark drivers and Airflow's workers must both reach."""
    airflow_home = os.environ.get("AIRFLOW_HOME")
    # `data_dir` would use the working directory, which differs between Airflow's services.
    folder = Path(airflow_home).absolute() if airflow_home and not os.environ.get("SHARDMEAN_HOME") else data_dir()
    try:
        return filesystem.absolute(os.environ.get("SHARDMEAN_RESULTS_URI") or str(folder / "results"))
    except UserError as error:
        raise AirflowFailException(f"SHARDMEAN_RESULTS_URI: {error}") from error


def result_of(context: Context, task_id: str) -> dict[str, Any]:
    """What another task of this run returned. Raises AirflowFailException where it returned nothing."""
    result: dict[str, Any] | None = context["ti"].xcom_pull(task_ids=task_id)
    if result is None:
        raise AirflowFailException(f"the task {task_id} left no result in this run: clear it, and it runs again")
    return result


def task_options(config: AirflowConfig) -> dict[str, Any]:
    """What a task takes from a job's section `airflow`."""
    given = {"pool": config.pool, "queue": config.queue}
    return {
        **{name: value for name, value in given.items() if value is not None},
        "retries": config.retries,
        "retry_delay": timedelta(seconds=config.retry_delay_s),
        # A factor: True would be 1 and so no backoff.
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(seconds=MAX_RETRY_DELAY_S),
        "execution_timeout": None if config.timeout_s is None else timedelta(seconds=config.timeout_s),
    }


def _result(result_uri: str) -> dict[str, Any]:
    """The job's result or error, read by the code that wrote it: Airflow's own needs a package for each store."""
    try:
        document: dict[str, Any] = json.loads(filesystem.read_bytes(result_uri))
    except FileNotFoundError:
        return {}
    except UserError as error:
        raise AirflowFailException(f"SHARDMEAN_RESULTS_URI: {error}") from error
    return document
