"""One Spark job as an Airflow task: checks what the run gives, submits, shows the result as XCom, link, asset event."""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import Asset, BaseHook, BaseOperatorLink
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
)

import shardmean.jobs
from shardmean.dags.asset_events import published_datasets, triggering_version
from shardmean.jobs.common.local_paths import data_dir
from shardmean.jobs.config.airflow import MAX_RETRY_DELAY_S
from shardmean.jobs.config.former_names import current_key
from shardmean.jobs.config.loading import load_job
from shardmean.jobs.config.uris import check_servers
from shardmean.model.errors import UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from shardmean.jobs.config.airflow import AirflowConfig
    from shardmean.jobs.config.job import SparkJob
    from shardmean.jobs.config.loading import Job

DATASET = Asset(name="shardmean_dataset", uri="shardmean://dataset")
MODEL = Asset(name="shardmean_model", uri="shardmean://model")
MAX_NAME = 180  # characters of a run's name before its hash; a run_key may have 200
MAX_EVENTS = 100  # of any DataSet, among which the newest of this one is looked for


class ResultLink(BaseOperatorLink):
    """The button on the task's page that leads to the MLflow run."""

    name = "MLflow run"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow passes it
        """The run's address; empty when MLflow has no server."""
        return str(getattr(operator, "link_url", "") or "")


class SparkJobOperator(SparkSubmitOperator):
    """Submits `shardmean COMMAND` to the Spark connection.

    A run sets what the DAG declares as params, its form, and `run_key`; all else is the deployment's, in the config
    file: who may only trigger a DAG must not run code on the executors, or send credentials elsewhere. The job writes
    its result, or its error, to a JSON file, as any cluster and deploy mode allows. The user's mistake fails the task
    at once, other failures are left to Airflow's retries, and a version that Airflow knows already skips the task.
    """

    operator_extra_links = (ResultLink(),)

    def __init__(self, *, command: str, config_file: Path, job: Job, asset: Asset, **options: Any) -> None:
        self.command = command
        self.config_file = config_file
        self.asset = asset
        self.deployed: SparkJob = job
        self.load_job: Callable[..., SparkJob] = partial(load_job, type(job), config_file)
        self.link_url = ""
        super().__init__(
            application=str(Path(shardmean.jobs.__file__).with_name("cli") / "__main__.py"),
            application_args=[command, f"--config={config_file}"],
            name=f"shardmean {command}",
            # An inlet too: a task sees the earlier events of its inlets only.
            inlets=[asset] if asset == DATASET else [],
            outlets=[asset],
            conf=job.spark,
            **_task_options(job.airflow),
            **options,
        )

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override] # the provider's returns nothing
        """Run the job and return its result, which Airflow keeps as XCom."""
        self._check_connection()
        params = self._params_of_run(context)
        name = run_name(context["dag_run"].dag_id, context["dag_run"].run_id)
        result_uri = filesystem.join(results_uri(), self.command, f"{name}-{context['ti'].try_number}.json")
        assert isinstance(self.application_args, list)
        self.application_args += [f"--params={json.dumps(params)}", f"--result={result_uri}"]
        if self.command == "train":
            self.application_args += [] if params.get("run_key") else [f"run_key={name}"]
            self.application_args += self._version_of_run(context, params["dataset_uri"])
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
        return self._report(result, context)

    def _params_of_run(self, context: Context) -> dict[str, Any]:
        """What the run gives the job. Raises AirflowFailException for what it may not set, and for wrong values."""
        params = dict(context["params"])
        refused = [key for key in params if current_key(key) not in {*self.dag.params, "run_key"}]
        try:
            if refused:
                raise UserError(
                    f"{', '.join(refused)}: not in the form of {self.dag.dag_id}, so a run may not set it: leave it "
                    f"out of the run's conf, or change it for all runs in {self.config_file}"
                )
            job = self.load_job(params=json.dumps(params))
            check_servers(job.uris(), [*self.deployed.uris().values(), *self.deployed.airflow.allowed_roots])
        except UserError as error:
            raise AirflowFailException(str(error)) from error
        return params

    def _version_of_run(self, context: Context, trained_on: str) -> list[str]:
        """The version that the asset's event names where one started the run, as an argument."""
        dag_id, grouped = context["dag_run"].dag_id, context["triggering_asset_events"]
        events = [event for asset, group in grouped.items() if asset.name == DATASET.name for event in group]
        if not events:
            return []
        digest = triggering_version(events, trained_on)
        if digest is None:
            raise AirflowSkipException(
                f"published: {published_datasets(events)}; but {dag_id} trains on {trained_on}. To train on "
                f"another DataSet, trigger {dag_id} by hand with its dataset_uri and a "
                f"tracking.registered_model of its own, or change both in {self.config_file}"
            )
        # In quotes, or YAML would take a digest of digits alone for a number.
        return [f'dataset_digest="{digest}"']

    def _report(self, result: dict[str, Any], context: Context) -> dict[str, Any]:
        if self.asset == DATASET:
            # Not `changed`: an earlier try that was killed, or a command line, may have published this version.
            events = context["inlet_events"][self.asset].ascending(False).limit(MAX_EVENTS)
            if triggering_version(events, result["dataset_uri"]) == result["digest"]:
                raise AirflowSkipException(f"nothing new: {result['dataset_uri']} stays at version {result['digest']}")
        self.link_url = result.get("run_url") or ""
        context["outlet_events"][self.asset].extra = result
        return result

    def _check_connection(self) -> None:
        # The provider takes an unknown connection for YARN, which fails far away from the cause.
        try:
            BaseHook.get_connection(self._conn_id)
        except AirflowNotFoundException:
            raise AirflowFailException(
                f"Airflow has no connection {self._conn_id!r}: add it, for example "
                f"`airflow connections add {self._conn_id} --conn-type spark --conn-host 'local[*]'`"
            ) from None


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


def _task_options(config: AirflowConfig) -> dict[str, Any]:
    given = {"pool": config.pool, "queue": config.queue}
    return {
        **{name: value for name, value in given.items() if value is not None},
        "conn_id": config.connection_id,
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
