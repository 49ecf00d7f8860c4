"""What was measured of a model version on the rows of one split, kept with its MLflow run.

Imports MLflow's client alone, no torch: Airflow's workers read it too.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardmean.jobs.tracking.artifacts import read_artifact, write_artifact
from shardmean.model.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities.model_registry import ModelVersion

ROWS, ACCURACY, DATASET = "evaluated_on", "accuracy", "dataset_digest"  # tags of a version


@dataclass(frozen=True)
class Measurement:
    """A model on the rows `SPLIT:DIGEST`: metrics by name, recall by class name, and how long one image takes.

    Version 0.1.0 recorded the accuracy alone.
    """

    rows: str
    metrics: dict[str, float]
    class_recall: dict[str, float] = field(default_factory=dict)
    latency_ms: float | None = None
    predictions: Predictions | None = None


def record(client: mlflow.MlflowClient, version: ModelVersion, dataset_digest: str, measured: Measurement) -> None:
    """Keep a measurement with the version's run, and say in its tags on which rows it was made."""
    run_id = str(version.run_id)
    if measured.predictions is not None:
        rows = measured.predictions.sorted()
        stream = pa.BufferOutputStream()
        columns = {"id": rows.ids_N.astype(str), "label": rows.labels_N, "predicted": rows.predicted_N}
        pq.write_table(pa.table(columns), stream, compression="zstd")
        write_artifact(client, run_id, _path(measured.rows, "parquet"), stream.getvalue().to_pybytes())
    document = {
        "rows": measured.rows,
        "metrics": measured.metrics,
        "class_recall": measured.class_recall,
        "latency_ms": measured.latency_ms,
        "has_predictions": measured.predictions is not None,
    }
    write_artifact(client, run_id, _path(measured.rows, "json"), json.dumps(document, indent=1).encode())
    tags = {DATASET: dataset_digest, ROWS: measured.rows, ACCURACY: repr(measured.metrics[ACCURACY])}
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)


def recorded(client: mlflow.MlflowClient, version: ModelVersion, rows: str) -> Measurement | None:
    """What was measured of a version on these rows; None where nothing was. Raises MlflowException."""
    text = read_artifact(client, version.run_id, _path(rows, "json")) if version.run_id else None
    if text is None:
        if version.tags.get(ROWS) != rows:
            return None
        return Measurement(rows, {ACCURACY: float(version.tags[ACCURACY])})
    document: dict[str, Any] = json.loads(text)
    predictions = None
    if document["has_predictions"]:
        data = read_artifact(client, str(version.run_id), _path(rows, "parquet"))
        predictions = None if data is None else _predictions(data)
    return Measurement(rows, document["metrics"], document["class_recall"], document["latency_ms"], predictions)


def _predictions(data: bytes) -> Predictions:
    table = pq.read_table(pa.BufferReader(data))
    ids, labels, predicted = (table[name].to_numpy() for name in ("id", "label", "predicted"))
    return Predictions(ids.astype(np.bytes_), labels, predicted)


def _path(rows: str, suffix: str) -> str:
    return f"evaluation/{re.sub('[^A-Za-z0-9]', '-', rows)}.{suffix}"
