"""A driver that is cut off while it finishes, at any step: the next try leaves each metric, model and version once."""

from __future__ import annotations

import socket
import time

import mlflow
import pytest

from shardmean.jobs.common.local_paths import data_dir
from shardmean.jobs.local.stack import components, prepare
from shardmean.jobs.tracking.run import Tracker
from shardmean.jobs.train.job import train
from shardmean.jobs.train.run_directory import RunDirectory
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import UserError

pytestmark = pytest.mark.usefixtures("spark")


class KilledError(BaseException):
    pass


@pytest.fixture
def tracking(tmp_path, new_store):
    before = mlflow.get_tracking_uri()
    yield new_store(tmp_path / "mlflow")
    mlflow.set_tracking_uri(before)


@pytest.fixture
def client(tracking):
    return mlflow.MlflowClient(tracking.uri)


def no_epoch(_run, _state):
    raise AssertionError("an epoch was trained")


def logs_finals(_client, _run_id, metrics=(), **_) -> bool:
    return any(metric.key == "test_accuracy" for metric in metrics)


def finishes(_client, _run_id, status=None, *_) -> bool:
    return status == "FINISHED"


STEPS = [
    (mlflow.MlflowClient, "log_figure", None), (mlflow.MlflowClient, "log_batch", logs_finals),
    (mlflow.MlflowClient, "log_text", None), (mlflow.MlflowClient, "finalize_logged_model", None),
    (mlflow.MlflowClient, "_create_model_version", None), (mlflow.MlflowClient, "set_model_version_tag", None),
    (mlflow.MlflowClient, "set_registered_model_alias", None), (mlflow.MlflowClient, "set_terminated", finishes),
    (RunDirectory, "finish", None),
]  # fmt: skip


def kill_after(patch, owner, name: str, when) -> None:
    """Make a method kill the driver when it has done its work."""
    original = getattr(owner, name)

    def killed(*arguments, **settings):
        original(*arguments, **settings)
        if when is None or when(*arguments, **settings):
            raise KilledError

    patch.setattr(owner, name, killed)


def test_a_driver_that_is_killed_after_each_step_in_turn_leaves_everything_once(
    train_job, tracking, client, monkeypatch
):
    job = train_job(num_epochs=1, tracking=tracking, run_key="one")
    for owner, name, when in STEPS:
        with monkeypatch.context() as patch:
            kill_after(patch, owner, name, when)
            with pytest.raises(KilledError):
                train(job)
        monkeypatch.setattr(RunDirectory, "save", no_epoch)
    result = train(job)
    (run,) = client.search_runs(["1"])
    assert (run.info.run_id, run.info.status) == (result.run_id, "FINISHED")
    for name in run.data.metrics:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        assert name.startswith("progress/") or len(steps) == len(set(steps)), name
    assert run.data.metrics["test_accuracy"] == result.metrics["accuracy"]
    assert len(client.search_logged_models(["1"])) == 1
    (version,) = client.search_model_versions("name='shardmean'")
    assert str(version.version) == result.model_version
    assert client.get_registered_model("shardmean").aliases.keys() == {"challenger", "champion"}


def test_a_deleted_experiment_is_the_users_to_restore_or_rename(train_job, tracking, client, monkeypatch):
    """Deleted while the training runs, and before the next try: no epoch is trained again once it is restored."""
    job, save = train_job(num_epochs=1, tracking=tracking), RunDirectory.save

    def save_then_delete(run, state):
        save(run, state)
        client.delete_experiment("1")

    remedies = (
        r"experiment shardmean is deleted in MLflow at sqlite:.*: restore it \(mlflow experiments restore "
        r"--experiment-id 1\) and repeat the command, nothing is lost; or set tracking.experiment to another name"
    )
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", save_then_delete)
        with pytest.raises(UserError, match=remedies):
            train(job)
    monkeypatch.setattr(RunDirectory, "save", no_epoch)
    with pytest.raises(UserError, match=remedies):
        train(job)
    client.restore_experiment("1")
    result = train(job)
    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert len(client.search_runs(["1"])) == 1


@pytest.fixture
def refusing_server(tmp_path, monkeypatch):
    """An MLflow server that refuses all names of its host but `localhost`: its port."""
    for name in ("SHARDMEAN_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server, *_ = components("127.0.0.1", 1, port)
    server.command += ["--allowed-hosts", f"localhost:{port}"]
    data_dir().mkdir(parents=True)
    server.start(prepare() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    while not server.is_ready():
        server.check_alive()
        time.sleep(0.1)
    yield port
    server.process.terminate()
    server.stop(time.monotonic() + 20)
    mlflow.set_tracking_uri(before)


def test_a_server_that_refuses_its_host_name_says_what_to_do_and_loses_no_model(
    train_job, dataset, refusing_server, monkeypatch
):
    allowed, refused = (f"http://{host}:{refusing_server}" for host in ("localhost", "127.0.0.1"))
    said = rf"MLflow at {refused} cannot be used: .*Invalid Host header.*--allowed-hosts .*nothing is lost"
    with pytest.raises(UserError, match=said):
        Tracker(train_job(tracking={"uri": refused}), load_manifest(str(dataset)), None)
    job, finish = train_job(num_epochs=1, tracking={"uri": allowed}), Tracker.finish

    def finish_refused(tracker, *arguments):
        monkeypatch.setattr(tracker, "_client", mlflow.MlflowClient(refused))
        monkeypatch.setattr(tracker, "tracking_uri", refused)
        return finish(tracker, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "finish", finish_refused)
        with pytest.raises(UserError, match=said):
            train(job)
    monkeypatch.setattr(RunDirectory, "save", no_epoch)
    result = train(job)
    client = mlflow.MlflowClient(allowed)
    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert len(client.search_model_versions("name='shardmean'")) == 1
