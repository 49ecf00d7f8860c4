"""What one run is: a later try finds it where MLflow was corrected, and on the DataSet's version on which it began."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from shardmean.jobs.config.job import TrackingConfig
from shardmean.jobs.train.job import train
from shardmean.jobs.train.run_directory import RunDirectory, directory_of
from shardmean.model.errors import RetryableError
from shardmean.model.storage.lease import Lease
from tests.jobs.indexed import Made, publish_indexed

if TYPE_CHECKING:
    from pathlib import Path


def publish(folder: Path, *, num_images: int) -> str:
    """Publish a version of a DataSet of two classes, dark and bright, and give its digest."""
    generator = np.random.default_rng(num_images)
    items = [
        Made(f"{name}/{split}{i}.png", name, generator.integers(low, low + 128, (1, 8, 8), dtype=np.uint8), split)
        for name, low in (("dark", 0), ("bright", 128))
        for split, num in (("train", num_images), ("validation", 4), ("test", 4))
        for i in range(num)
    ]
    return publish_indexed(folder, items)[0].manifest.digest


@pytest.fixture
def job(spark, tmp_path, train_job, new_store):
    """A function that gives a training on a DataSet of the test's own, which is not published yet."""
    settings = {
        "dataset_uri": str(tmp_path / "set"), "network": "small_cnn", "tracking": new_store(tmp_path / "first"),
    }  # fmt: skip
    return lambda **changes: train_job(**(settings | changes))


def away(*_arguments, **_settings):
    raise MlflowException("the line is dead")


def test_where_mlflow_is_corrected_at_the_end_no_epoch_is_trained_again(job, tmp_path, new_store, monkeypatch, caplog):
    publish(tmp_path / "set", num_images=40)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", away)
        with pytest.raises(RetryableError, match=r"correct tracking.uri .* then repeat the command: nothing is lost"):
            train(job())

    def trained(*_arguments):
        raise AssertionError("an epoch was trained")

    caplog.set_level("INFO")
    other = new_store(tmp_path / "second")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", trained)
        result = train(job(tracking=other))
    assert "resuming after epoch 3 of 3 from the last checkpoint" in caplog.text
    client = mlflow.MlflowClient(other.uri)
    assert client.get_run(result.run_id).info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(result.run_id, "train_loss")]
    assert sorted(steps) == [1, 2, 3]
    assert client.get_model_version_by_alias("shardmean", "champion").run_id == result.run_id


def test_a_run_with_a_key_stays_on_the_version_on_which_it_began(job, tmp_path, monkeypatch, caplog):
    """As a DAG run by hand: it names no version, and a newer one is published before Airflow's retry."""
    first = publish(tmp_path / "set", num_images=40)
    keyed, save = job(run_key="manual-1"), RunDirectory.save

    def save_and_fail(run, state):
        save(run, state)
        if state.epoch == 2:
            raise RetryableError("the world failed")

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", save_and_fail)
        with pytest.raises(RetryableError, match="the world failed"):
            train(keyed)
    second = publish(tmp_path / "set", num_images=50)
    caplog.set_level("INFO")
    result = train(keyed)
    assert "resuming after epoch 2 of 3 from the last checkpoint" in caplog.text
    assert result.dataset_digest == first
    assert len(mlflow.MlflowClient(keyed.tracking.uri).search_runs(["1"])) == 1
    assert train(keyed) == result, "finished: its result again"
    assert train(job(run_key="manual-2")).dataset_digest == second


def test_one_that_began_on_another_version_meanwhile_is_not_gone_on_with(job):
    keyed = job(run_key="manual-1")
    with Lease(directory_of(keyed, "a" * 32), what="this training") as lease:
        RunDirectory(keyed, "a" * 32, lease).begin("run", None)
        with pytest.raises(RetryableError, match=f"begun on version {'a' * 32}; repeat the command"):
            RunDirectory(keyed, "b" * 32, lease)


def test_what_makes_a_run_another_one(job):
    one, two = "a" * 32, "b" * 32
    elsewhere = TrackingConfig(uri="http://127.0.0.1:9", artifact_uri="/elsewhere")
    assert directory_of(job(), one) == directory_of(job(tracking=elsewhere), one)
    assert directory_of(job(), one) != directory_of(job(), two)
    assert directory_of(job(), one) != directory_of(job(tracking=TrackingConfig(registered_model="other")), one)
    assert directory_of(job(run_key="k"), one) == directory_of(job(run_key="k"), two)
    named = [job(run_key="k", dataset_digest=digest) for digest in (one, two)]
    assert directory_of(named[0], one) != directory_of(named[1], two)


def test_a_finished_run_keeps_its_checkpoints_until_the_next_one_begins(job, tmp_path, monkeypatch):
    publish(tmp_path / "set", num_images=40)
    train(job())
    (folder,) = (folder for folder in (tmp_path / "checkpoints").iterdir() if folder.is_dir())
    kept = sorted(file.name for file in folder.glob("epoch-*.pt"))
    assert kept
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "search_experiments", away)
        with pytest.raises(RetryableError, match="the line is dead"):
            train(job())
    assert sorted(file.name for file in folder.glob("epoch-*.pt")) == kept
    first = {run.info.run_id for run in mlflow.search_runs(search_all_experiments=True, output_format="list")}
    assert train(job()).run_id not in first, "without a key the command means a new training"
