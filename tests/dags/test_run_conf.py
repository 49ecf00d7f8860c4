"""What a person who may only trigger a DAG can do: set the form's fields, and nothing that names code or a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.jobs.indexed import Made, publish_indexed

from .conftest import write_configs

if TYPE_CHECKING:
    from pathlib import Path

SERVER = "endpoint_override=http://127.0.0.1:9000&region=us-east-1"


def given(outcome: dict[str, Any]) -> dict[str, Any]:
    (params,) = (text for text in outcome["arguments"] if text.startswith("--params="))
    return dict(json.loads(params.removeprefix("--params=")))


def refused(outcome: dict[str, Any]) -> str:
    """The message of a task that has failed for good before it submitted anything."""
    assert (outcome["error"], outcome["arguments"]) == ("AirflowFailException", [])
    return str(outcome["message"])


def test_a_run_sets_the_forms_fields_and_its_key_alone(run: Any, home: Path) -> None:
    code = {"spark.python.daemon.module": "os"}
    hidden = {"airflow.allowed_roots": [], "config": "/etc/passwd", "optimizer": {"momentum": 0.5}}
    allowed, *outcomes = run(
        {"dag": "train", "conf": {"num_epochs": 3, "run_key": "mine"}},
        {"dag": "train", "conf": {"num_epochs": 3, "spark": code, "tracking.uri": "http://elsewhere"}},
        {"dag": "vectorize", "conf": {"spark.spark.executorEnv.X": "y", "dataset_uri": "/x"}},
        {"dag": "train", "conf": {"tracking.artifact_uri": "s3://elsewhere", **hidden}},
    )
    assert {"num_epochs": 3, "run_key": "mine", "averaging.frequency": "5"}.items() <= given(allowed).items()
    assert not {"spark", "airflow.retries", "tracking.uri", "dataset_uri", "promote.approval"} & set(given(allowed))
    messages = [refused(outcome) for outcome in outcomes]
    assert messages[0].startswith(
        "spark, tracking.uri: not in the form of digits_train, so a run may not set it: leave it"
    )
    assert messages[0].endswith(f"or change it for all runs in {home}/configs/pipelines/digits.yaml")
    assert messages[1].startswith("spark.spark.executorEnv.X, dataset_uri: not in the form of digits_vectorize")
    assert messages[2].startswith("tracking.artifact_uri, airflow.allowed_roots, config, optimizer: not in the form")


def test_wrong_values_of_a_run_are_told_before_anything_is_submitted(run: Any, home: Path) -> None:
    key, reference, momentum, server = run(
        {"dag": "train", "conf": {"run_key": "../other"}},
        {"dag": "vectorize", "conf": {"source.uri": "/x/${oc.env:AWS_SECRET_ACCESS_KEY}"}},
        {"dag": "train", "conf": {"optimizer.momentum": 0.5}},
        {"dag": "vectorize", "conf": {"source.uri": f"s3://bucket/x?{SERVER}"}},
    )
    assert "run_key = '../other': use letters, digits" in refused(key)
    assert "${...} is allowed in config files only" in refused(reference)
    assert "momentum is 0.5, but adam has none" in refused(momentum)
    assert "source.uri = 's3://bucket/x?endpoint_override=" in refused(server)
    assert "no URI of the config file names this server" in refused(server)


def test_a_former_name_of_a_field_is_taken_for_it(run: Any) -> None:
    former, wrong = run(
        {"dag": "train", "conf": {"averaging.exchange": "bfloat16", "normalisation.mean": [0.5]}},
        {"dag": "train", "conf": {"averaging.exchange": "float16"}},
    )
    assert "normalization: mean has 1 values and std 0" in refused(former)
    assert "averaging.comm_dtype = 'float16'" in refused(wrong), "it wins over the form's default"


def test_a_network_of_another_package_needs_the_deployments_leave(run: Any, home: Path) -> None:
    random = np.random.default_rng(0)
    items = [
        Made(f"{name}/{number}.png", name, random.integers(0, 256, (1, 28, 28), dtype=np.uint8))
        for name in ("cat", "dog")
        for number in range(4)
    ]
    publish_indexed(home / "dataset", items)
    conf = {"network": "os:system", "batch_size_per_worker": 1}
    (outcome,) = run({"dag": "train", "conf": conf})
    assert outcome["error"] == "AirflowFailException"
    expected = "network os:system: not allowed by the environment variable SHARDMEAN_FACTORIES (it is not set)"
    assert outcome["message"].startswith(expected)


def test_a_run_stays_below_the_roots_that_the_pipeline_allows(run: Any, home: Path, tmp_path: Path) -> None:
    write_configs(tmp_path, f"{{allowed_roots: ['{home}', 's3://bucket/pets?{SERVER}']}}")
    start = "fine_tuning.start_from"
    inside, store, outside, bucket, source = run(
        {"dag": "train", "conf": {start: str(home / "other")}},
        {"dag": "vectorize", "conf": {"source.uri": f"s3://bucket/pets/new?{SERVER}"}, "result": None},
        {"dag": "train", "conf": {start: str(home / ".." / "elsewhere")}},
        {"dag": "vectorize", "conf": {"source.uri": f"s3://bucket/pets-of-others?{SERVER}"}},
        {"dag": "vectorize", "conf": {"source.uri": "/etc"}},
        SHARDMEAN_CONFIG_DIR=str(tmp_path),
    )
    assert "lies outside" not in inside["message"]
    assert given(store)["source.uri"] == f"s3://bucket/pets/new?{SERVER}"
    for outcome, key in ((outside, start), (bucket, "source.uri"), (source, "source.uri")):
        assert f"  {key}: " in refused(outcome)
        assert f"lies outside airflow.allowed_roots ({home}, s3://bucket/pets?{SERVER})" in refused(outcome)
