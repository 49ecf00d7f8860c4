"""Runs the DAGs' tasks in a process that has Airflow but no Spark: each line of stdin is a case, of stdout its outcome.

In place of spark-submit, the job's command line runs in this process; or, where a case brings a `result`, that is what
the job leaves at its --result (null: nothing). Airflow's supervisor is replaced by the events that a case brings.
"""

from __future__ import annotations

import copy
import json
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.definitions.param import process_params
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult, AssetEventsResult
from airflow.sdk.execution_time.context import (
    InletEventsAccessors,
    OutletEventAccessors,
    TriggeringAssetEventsAccessor,
)

import shardmean.jobs.cli.main
from shardmean.dags import load_pipelines
from shardmean.dags.assets import dataset_asset
from shardmean.jobs.config.loading import load_pipeline, pipelines_folder
from shardmean.model.storage import filesystem

DAGS = load_pipelines(pipelines_folder())
FORMS = {name: copy.deepcopy(dag.params) for name, dag in DAGS.items()}
DATASET = dataset_asset(load_pipeline(pipelines_folder() / "digits.yaml"))


class TaskInstance:
    """What a task asks of its own instance; `xcoms` by task and key are what others have left."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.try_number = case.get("try_number", 1)
        self.xcoms = case.get("xcoms", {})
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self.xcoms.get(task_ids, {}).get(key)


def run(case: dict[str, Any]) -> dict[str, Any]:
    dag = DAGS[f"digits_{case['dag']}"]
    # A task that has run is not run again: each has arguments of its own.
    first = {"promote": "evaluate"}.get(case["dag"], case["dag"])
    task = copy.copy(dag.get_task(case.get("task", first)))
    if hasattr(task, "application_args"):
        task.application_args = list(task.application_args)
    # A task has a process of its own: what a run sets must not stay for the next case.
    object.__setattr__(dag, "params", copy.deepcopy(FORMS[dag.dag_id]))
    params = process_params(dag, task, case.get("conf"), suppress_exception=False)
    ran: list[str] = []

    def submit(self: Any, _context: Any) -> None:
        ran.extend(self.application_args)
        if case.get("result"):
            place = next(argument for argument in ran if argument.startswith("--result="))
            filesystem.write_bytes(place.removeprefix("--result="), json.dumps(case["result"]).encode())
        elif "result" not in case and shardmean.jobs.cli.main.main(ran):
            raise AirflowException("spark-submit ended with another code than 0")

    def trigger(self: Any, _context: Any) -> None:
        started.append([self.trigger_dag_id, self.conf])

    started: list[Any] = []
    SparkSubmitOperator.execute = submit
    TriggerDagRunOperator.execute = trigger
    task_runner.SUPERVISOR_COMMS = SimpleNamespace(send=lambda question: asked(question, case.get("known", [])))
    outlets, instance = OutletEventAccessors(), TaskInstance(case)
    context = {
        "params": params,
        "dag_run": SimpleNamespace(
            dag_id=dag.dag_id, run_id=case.get("run_id", "manual__2026-11-26T02:03:04+00:00"), conf=case.get("conf")
        ),
        "ti": instance,
        "triggering_asset_events": TriggeringAssetEventsAccessor.build(
            AssetEventDagRunReferenceResult.model_validate(event) for event in described(case.get("events", []))
        ),
        "inlet_events": InletEventsAccessors(task.inlets),
        "outlet_events": outlets,
    }
    outcome = {"error": None, "message": "", "result": None}
    try:
        outcome["result"] = task.execute(context)
    except (AirflowSkipException, AirflowFailException, RuntimeError) as error:
        outcome |= {"error": type(error).__name__, "message": str(error)}
    announced = outlets[task.outlets[0]].extra if task.outlets else {}
    return outcome | {"arguments": ran, "announced": announced, "started": started, "pushed": instance.pushed}


def described(extras: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events of the DataSet asset, an hour apart, as Airflow describes them to a task."""
    empty = dict.fromkeys(["source_task_id", "source_dag_id", "source_run_id", "source_map_index"])
    first, asset = datetime(2026, 1, 1, tzinfo=UTC), {"name": DATASET.name, "uri": DATASET.uri, "extra": {}}
    return [
        {**empty, "asset": asset, "extra": extra, "source_aliases": [], "timestamp": first + timedelta(hours=number)}
        for number, extra in enumerate(extras)
    ]


def asked(question: Any, extras: list[dict[str, Any]]) -> AssetEventsResult:
    events = [
        {"id": number, "created_dagruns": [], **{key: event[key] for key in ("timestamp", "extra")}}
        | {"asset": {"name": question.name, "uri": question.uri, "group": "asset"}}
        for number, event in enumerate(described(extras))
    ]
    in_order = events if question.ascending else events[::-1]
    return AssetEventsResult.model_validate({"asset_events": in_order[: question.limit]})


if __name__ == "__main__":
    answers = [run(json.loads(line)) for line in sys.stdin]
    sys.stdout.write("".join(f"{json.dumps(answer)}\n" for answer in answers))
