"""Where a training without settings keeps what it makes: one folder, which the server of `make up` shows too."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from shardmean.dags.spark_operator import results_uri
from shardmean.jobs.common.local_paths import data_dir, store_uri
from shardmean.jobs.local.stack import components, prepare
from shardmean.jobs.tracking.run import Tracker
from shardmean.jobs.train.job import train
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import RetryableError


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory, and an environment that says nothing of places."""
    for name in ("SHARDMEAN_HOME", "MLFLOW_TRACKING_URI", "SHARDMEAN_RESULTS_URI", "AIRFLOW_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = mlflow.get_tracking_uri()
    yield folder
    mlflow.end_run()
    mlflow.set_tracking_uri(before)


def test_the_folder(here, monkeypatch):
    assert data_dir() == here / ".shardmean"
    for given, meant in {"": here / ".shardmean", "x/y": here / "x" / "y", "~/z": Path.home() / "z"}.items():
        monkeypatch.setenv("SHARDMEAN_HOME", given)
        assert data_dir() == meant


def test_results_lie_there_or_where_airflow_is(here, monkeypatch):
    assert results_uri() == f"{here}/.shardmean/results"
    monkeypatch.setenv("AIRFLOW_HOME", "/airflow")
    assert results_uri() == "/airflow/results"
    monkeypatch.setenv("SHARDMEAN_HOME", "x")
    assert results_uri() == f"{here}/x/results"


def test_the_stack_ties_its_parts_together_and_leaves_all_else(here, monkeypatch):
    given = {"AIRFLOW_HOME": "/mine", "MLFLOW_TRACKING_URI": "http://mine", "AIRFLOW__CORE__PARALLELISM": "9",
             "AIRFLOW_CONN_SPARK_DEFAULT": "spark://mine"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    environment = prepare()
    assert environment["AIRFLOW_HOME"] == f"{here}/.shardmean/airflow"
    assert environment["MLFLOW_TRACKING_URI"] == store_uri()
    assert environment["AIRFLOW__CORE__PARALLELISM"] == "9"
    assert environment["AIRFLOW_CONN_SPARK_DEFAULT"] == "spark://mine"
    assert "SPARK_CONF_DIR" not in environment.keys() - os.environ.keys()


@pytest.mark.usefixtures("spark")
def test_a_training_without_settings(here, train_job, dataset, monkeypatch):
    result = train(train_job(num_epochs=1))
    folder = here / ".shardmean"
    assert result.tracking_uri == f"sqlite:///{folder}/mlflow.db" == prepare()["MLFLOW_TRACKING_URI"]
    assert result.plots_uri == f"{folder}/artifacts/{result.run_id}/artifacts/plots"
    assert (Path(result.plots_uri) / "confusion_matrix.png").exists()
    assert [path.name for path in here.iterdir()] == [".shardmean"]
    monkeypatch.chdir("/")
    model = mlflow.pyfunc.load_model("models:/shardmean@champion")
    image = next((dataset.parent / "images" / "top").iterdir()).read_bytes()
    assert model.predict(pd.DataFrame({"image": [image]})).label.isin(["low", "middle", "top"]).all()


@pytest.mark.usefixtures("spark")
def test_the_server_and_a_training_without_it_share_a_store(here, train_job, server):
    """An experiment of the one is the other's, and so are its plots and models."""
    first = train(train_job(num_epochs=1, tracking={"experiment": "without"}))
    client = mlflow.MlflowClient(server)
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert client.download_artifacts(first.run_id, "plots/confusion_matrix.png", str(here))
    client.create_experiment("served")
    second = train(train_job(num_epochs=1, tracking={"experiment": "served"}))
    assert Path(second.plots_uri).is_relative_to(here / ".shardmean" / "artifacts")
    third = train(train_job(num_epochs=1, tracking={"experiment": "served", "uri": server}))
    assert third.run_url.startswith(f"{server}/#/experiments/")
    assert [run.info.run_id for run in client.search_runs([third.run_url.split("/")[-3]])] == [
        third.run_id,
        second.run_id,
    ]


@pytest.fixture
def server(here) -> str:
    """The address of an MLflow server as `up` starts it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    served, *_ = components("127.0.0.1", 1, port)
    served.start(prepare() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    while not served.is_ready():
        served.check_alive()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    served.process.terminate()
    served.stop(time.monotonic() + 20)


def test_a_server_that_others_reach_hands_out_artifacts_itself(here):
    """Without a root of its own MLflow's server stands between its clients and the folder, which they may not have."""
    (inside, *_), (outside, *_) = components("127.0.0.1", 1, 2), components("0.0.0.0", 1, 2)
    assert set(inside.command) - set(outside.command) == {"--default-artifact-root", "127.0.0.1"}
    assert "--artifacts-destination" in outside.command


@pytest.mark.usefixtures("spark")
def test_a_password_in_the_environment_is_used_and_never_shown(here, train_job, server, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("://", "://me:secret@"))
    result = train(train_job(num_epochs=1))
    assert (result.tracking_uri, mlflow.get_tracking_uri()) == (server, os.environ["MLFLOW_TRACKING_URI"])
    assert f"at {server}" in caplog.text
    assert "secret" not in caplog.text + repr(result)
    assert mlflow.MlflowClient(server).get_run(result.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:9", "nonsense://me:secret@h/db"])
def test_an_error_does_not_show_the_password(here, train_job, dataset, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RetryableError, match="cannot be used") as caught:
        Tracker(train_job(), load_manifest(str(dataset)), None)
    assert "secret" not in str(caught.value)


def test_another_server_decides_where_its_artifacts_lie(here, train_job, dataset, server, caplog):
    manifest, client = load_manifest(str(dataset)), mlflow.MlflowClient(server)

    def location(**tracking: str) -> str:
        tracker = Tracker(train_job(tracking={"uri": server, **tracking}), manifest, None)
        return client.get_experiment(client.get_run(tracker.run_id).info.experiment_id).artifact_location

    assert location(experiment="theirs").startswith(f"{here}/.shardmean/artifacts/"), "as the server was told"
    assert location(experiment="remote", artifact_uri="s3://bucket/x") == "s3://bucket/x"
    assert "other machines can't read" not in caplog.text
    assert location(experiment="local", artifact_uri="mine") == f"{here}/mine"
    warning = f"experiment local of {server} keeps its artifacts in this machine's {here}/mine from now on"
    assert warning in caplog.text
    caplog.clear()
    location(experiment="local", artifact_uri="mine")
    assert warning not in caplog.text, "nothing is decided any more"


def test_another_store_keeps_its_artifacts_where_mlflow_puts_them(here, train_job, dataset, new_store, tmp_path):
    uri = new_store(tmp_path / "other").uri
    tracker = Tracker(train_job(tracking={"uri": uri}), load_manifest(str(dataset)), None)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment(client.get_run(tracker.run_id).info.experiment_id)
    assert experiment.artifact_location == f"{here}/mlruns/{experiment.experiment_id}"
    assert not data_dir().exists()


def test_a_folder_that_cannot_be_made(here, train_job, dataset, monkeypatch):
    (here / "file").write_text("no folder")
    monkeypatch.setenv("SHARDMEAN_HOME", "file")
    with pytest.raises(RetryableError, match="let SHARDMEAN_HOME be a folder you may write to, or set tracking"):
        Tracker(train_job(), load_manifest(str(dataset)), None)
    assert store_uri() == f"sqlite:///{here}/file/mlflow.db"
