"""Runs the DAGs' tasks in a process that has Airflow but no Spark: each line of stdin is a case, of stdout its outcome.

In place of spark-submit, the job's command line runs in this process; or, where a case brings a `result`, that is what
the job leaves at its --result (null: nothing). Airflow's supervisor is replaced by the events that a case brings.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
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
from shardmean.dags.spark_operator import DATASET
from shardmean.dags.train_cnn import train_cnn
from shardmean.dags.vectorize_images import vectorize_images
from shardmean.model.storage import filesystem

DAGS = {"train_cnn": train_cnn, "vectorize_images": vectorize_images}


def run(case: dict[str, Any]) -> dict[str, Any]:
    dag = DAGS[case["dag"]]()
    (task,) = dag.tasks
    params = process_params(dag, task, case.get("conf"), suppress_exception=False)
    ran: list[str] = []

    def submit(self: Any, _context: Any) -> None:
        ran.extend(self.application_args)
        if case.get("result"):
            place = next(argument for argument in ran if argument.startswith("--result="))
            filesystem.write_bytes(place.removeprefix("--result="), json.dumps(case["result"]).encode())
        elif "result" not in case and shardmean.jobs.cli.main.main(ran):
            raise AirflowException("spark-submit ended with another code than 0")

    SparkSubmitOperator.execute = submit
    task_runner.SUPERVISOR_COMMS = SimpleNamespace(send=lambda question: asked(question, case.get("known", [])))
    outlets = OutletEventAccessors()
    context = {
        "params": params,
        "dag_run": SimpleNamespace(dag_id=dag.dag_id, run_id=case.get("run_id", "manual__2026-11-26T02:03:04+00:00")),
        "ti": SimpleNamespace(try_number=case.get("try_number", 1)),
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
    return outcome | {"arguments": ran, "announced": outlets[task.outlets[0]].extra}


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
