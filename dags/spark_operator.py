"""One Spark job of Shardmean as an Airflow task: submits it, then shows its result as XCom, link and asset event."""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import timedelta
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

import shardmean.jobs.config.job
from shardmean.dags.asset_events import published_datasets, triggering_version
from shardmean.jobs.common.local_paths import data_dir
from shardmean.jobs.config.airflow import MAX_RETRY_DELAY_S
from shardmean.model.errors import UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from shardmean.jobs.config.airflow import AirflowConfig
    from shardmean.jobs.config.loading import Job

DATASET = Asset(name="shardmean_dataset", uri="shardmean://dataset")
MODEL = Asset(name="shardmean_model", uri="shardmean://model")
MAX_NAME = 180  # characters of a run's name before its hash; a run_key may have 200
MAX_EVENTS = 100  # that are looked back to, since those of other DataSets lie between


class ResultLink(BaseOperatorLink):
    """The button on the task's page that leads to the MLflow run."""

    name = "MLflow run"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow passes it
        """The run's address; empty when MLflow has no server."""
        return str(getattr(operator, "link_url", "") or "")


class SparkJobOperator(SparkSubmitOperator):
    """Submits `shardmean COMMAND` to the Spark connection.

    The job writes its result, or its error, to a JSON file: that holds on any cluster and in any deploy mode. The
    user's mistake fails the task at once, the world's leaves it to Airflow's retries, and a DataSet's version of which
    Airflow has heard already skips it.
    """

    operator_extra_links = (ResultLink(),)

    def __init__(self, *, command: str, config_file: Path, job: Job, asset: Asset, **options: Any) -> None:
        self.command = command
        self.config_file = config_file
        self.asset = asset
        self.link_url = ""
        super().__init__(
            application=str(Path(shardmean.jobs.config.job.__file__).parents[1] / "cli" / "__main__.py"),
            application_args=[
                command,
                f"--config={config_file}",
                "--params={{ params | tojson }}",
            ],
            name=f"shardmean {command}",
            # An inlet too: a task sees earlier events of its inlets alone.
            inlets=[asset] if asset == DATASET else [],
            outlets=[asset],
            conf=job.spark,
            **_task_options(job.airflow),
            **options,
        )

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override] # the provider's returns nothing
        """Run the job and return its result, which Airflow keeps as XCom."""
        self._check_connection()
        assert isinstance(self.application_args, list)
        name = run_name(context["dag_run"].dag_id, context["dag_run"].run_id)
        result_uri = filesystem.join(results_uri(), self.command, f"{name}-{context['ti'].try_number}.json")
        self.application_args.append(f"--result={result_uri}")
        if self.command == "train":
            self.application_args += self._settings_of_run(context, run_key=name)
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

    def _settings_of_run(self, context: Context, *, run_key: str) -> list[str]:
        """The run's key, and the version that the asset's event tells where one started the run."""
        params, dag_run = context["params"], context["dag_run"]
        settings = [] if params.get("run_key") else [f"run_key={run_key}"]
        grouped = context["triggering_asset_events"]
        events = [event for asset, group in grouped.items() if asset.name == DATASET.name for event in group]
        if not events:
            return settings
        trained_on = params["dataset_uri"]
        try:
            digest = triggering_version(events, trained_on)
        except UserError as error:
            raise AirflowFailException(f"dataset_uri: {error}") from error
        if digest is None:
            raise AirflowSkipException(
                f"published: {published_datasets(events)}; but {dag_run.dag_id} trains on {trained_on}. To train on "
                f"another DataSet, trigger {dag_run.dag_id} by hand with its dataset_uri and a "
                f"tracking.registered_model of its own, or change both in {self.config_file}"
            )
        # In quotes, or YAML would take a digest of digits alone for a number.
        return [*settings, f'dataset_digest="{digest}"']

    def _report(self, result: dict[str, Any], context: Context) -> dict[str, Any]:
        if self.asset == DATASET:
            # Not whether this try has published: one that was cut off may have, or a command line.
            events = context["inlet_events"][self.asset].ascending(False).limit(MAX_EVENTS)
            if triggering_version(events, result["dataset_uri"]) == result["digest"]:
                raise AirflowSkipException(f"nothing new: {result['dataset_uri']} stays at version {result['digest']}")
        self.link_url = result.get("run_url") or ""
        context["outlet_events"][self.asset].extra = result
        return result

    def _check_connection(self) -> None:
        # The provider takes an unknown connection for YARN, and that fails far away from the cause.
        try:
            BaseHook.get_connection(self._conn_id)
        except AirflowNotFoundException:
            raise AirflowFailException(
                f"Airflow has no connection {self._conn_id!r}: add it, for example "
                f"`airflow connections add {self._conn_id} --conn-type spark --conn-host 'local[*]'`"
            ) from None


def run_name(dag_id: str, run_id: str) -> str:
    """A run's name as part of a path: ids hold ':' and '+', which HDFS takes in none. A hash keeps names apart."""
    given = f"{dag_id}-{run_id}"
    return f"{re.sub('[^A-Za-z0-9._-]', '-', given)[:MAX_NAME]}-{hashlib.sha256(given.encode()).hexdigest()[:8]}"


def results_uri() -> str:
    """Where jobs leave results: SHARDMEAN_RESULTS_URI, which Spark drivers and Airflow's workers must both reach."""
    airflow_home = os.environ.get("AIRFLOW_HOME")
    # A service of Airflow's may have any working directory, where `home` would look.
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
    """What the job has left, by the code that wrote it: Airflow's own would need a package for each store."""
    try:
        document: dict[str, Any] = json.loads(filesystem.read_bytes(result_uri))
    except FileNotFoundError:
        return {}
    except UserError as error:
        raise AirflowFailException(f"SHARDMEAN_RESULTS_URI: {error}") from error
    return document
