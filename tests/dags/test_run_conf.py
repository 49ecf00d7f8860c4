"""What a person who may only trigger a DAG can do: set the form's fields, and nothing that names code or a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.jobs.indexed import Made, publish_indexed

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
        {"dag": "train_cnn", "conf": {"num_epochs": 3, "run_key": "mine"}},
        {"dag": "train_cnn", "conf": {"num_epochs": 3, "spark": code, "tracking.uri": "http://elsewhere"}},
        {"dag": "vectorize_images", "conf": {"spark.spark.executorEnv.X": "y", "schedule": None}},
        {"dag": "train_cnn", "conf": {"tracking.artifact_uri": "s3://elsewhere", **hidden}},
    )
    assert {"num_epochs": 3, "run_key": "mine", "averaging.frequency": "5"}.items() <= given(allowed).items()
    assert not {"spark", "airflow.retries", "tracking.uri", "schedule"} & set(given(allowed))
    messages = [refused(outcome) for outcome in outcomes]
    assert messages[0].startswith(
        "spark, tracking.uri: not in the form of train_cnn, so a run may not set it: leave it"
    )
    assert messages[0].endswith(f"or change it for all runs in {home}/configs/train.yaml")
    assert messages[1].startswith("spark.spark.executorEnv.X, schedule: not in the form of vectorize_images")
    assert messages[2].startswith("tracking.artifact_uri, airflow.allowed_roots, config, optimizer: not in the form")


def test_wrong_values_of_a_run_are_told_before_anything_is_submitted(run: Any, home: Path) -> None:
    key, reference, momentum, server = run(
        {"dag": "train_cnn", "conf": {"run_key": "../other"}},
        {"dag": "train_cnn", "conf": {"dataset_uri": "/x/${oc.env:AWS_SECRET_ACCESS_KEY}"}},
        {"dag": "train_cnn", "conf": {"optimizer.momentum": 0.5}},
        {"dag": "train_cnn", "conf": {"dataset_uri": f"s3://bucket/x?{SERVER}"}},
    )
    assert "run_key = '../other': use letters, digits" in refused(key)
    assert "${...} is allowed in config files only" in refused(reference)
    assert "momentum is 0.5, but adam has none" in refused(momentum)
    assert "dataset_uri = 's3://bucket/x?endpoint_override=" in refused(server)
    assert "no URI of the config file names this server" in refused(server)


def test_a_former_name_of_a_field_is_taken_for_it(run: Any) -> None:
    former, wrong = run(
        {"dag": "train_cnn", "conf": {"averaging.exchange": "bfloat16", "normalisation.mean": [0.5]}},
        {"dag": "train_cnn", "conf": {"averaging.exchange": "float16"}},
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
    publish_indexed(home / "cats", items)
    conf = {"dataset_uri": str(home / "cats"), "network": "os:system", "batch_size_per_worker": 1}
    (outcome,) = run({"dag": "train_cnn", "conf": conf})
    assert outcome["error"] == "AirflowFailException"
    expected = "network os:system: not allowed by the environment variable SHARDMEAN_FACTORIES (it is not set)"
    assert outcome["message"].startswith(expected)


def test_a_run_stays_below_the_roots_that_the_config_file_allows(run: Any, home: Path, tmp_path: Path) -> None:
    roots = f"airflow: {{allowed_roots: ['{home}', 's3://bucket/pets?{SERVER}']}}\n"
    for name in ("train.yaml", "vectorize.yaml"):
        (tmp_path / name).write_text((home / "configs" / name).read_text() + roots)
    inside, store, outside, bucket, source = run(
        {"dag": "train_cnn", "conf": {"dataset_uri": str(home / "other")}},
        {"dag": "vectorize_images", "conf": {"dataset_uri": f"s3://bucket/pets/new?{SERVER}"}, "result": None},
        {"dag": "train_cnn", "conf": {"checkpoint_uri": str(home / ".." / "elsewhere")}},
        {"dag": "vectorize_images", "conf": {"dataset_uri": f"s3://bucket/pets-of-others?{SERVER}"}},
        {"dag": "vectorize_images", "conf": {"source.uri": "/etc"}},
        SHARDMEAN_CONFIG_DIR=str(tmp_path),
    )
    assert f"{home}/other/manifest.json: not found" in inside["message"]
    assert given(store)["dataset_uri"] == f"s3://bucket/pets/new?{SERVER}"
    for outcome, key in ((outside, "checkpoint_uri"), (bucket, "dataset_uri"), (source, "source.uri")):
        assert f"  {key}: " in refused(outcome)
        assert f"lies outside airflow.allowed_roots ({home}, s3://bucket/pets?{SERVER})" in refused(outcome)
