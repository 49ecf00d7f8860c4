"""What a training leaves in MLflow: one run, its plots, a model that classifies, aliases; and what repeats do."""

from __future__ import annotations

import ast
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from shardmean.jobs.config.airflow import AirflowConfig
from shardmean.jobs.tracking import registry
from shardmean.jobs.tracking.run import Tracker
from shardmean.jobs.train.job import train
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.report.html import make_report
from shardmean.model.config.optimizer import OptimizerConfig
from shardmean.model.dataset.manifest import load_manifest, report_uri
from shardmean.model.errors import RetryableError
from shardmean.model.serving import image_model
from shardmean.model.storage import filesystem
from shardmean.model.training import checkpoint
from shardmean.model.training.progress import EpochProgress
from tests.jobs.indexed import Made, publish_indexed

pytestmark = pytest.mark.usefixtures("spark")
HOPELESS = {"num_epochs": 1, "optimizer": OptimizerConfig(learning_rate=1e-6)}


@pytest.fixture
def client(tmp_path, new_store):
    """A client of an MLflow database of the test's own, which its jobs use by `tracking`."""
    client = mlflow.MlflowClient(new_store(tmp_path / "mlflow").uri)
    yield client
    mlflow.end_run()


@pytest.fixture
def job(tmp_path, train_job, client):
    """A function that gives a training which logs to the test's own store."""
    tracking = {"uri": client.tracking_uri, "artifact_uri": str(tmp_path / "artifacts")}
    return lambda **changes: train_job(**({"tracking": tracking} | changes))


def artifacts(client, run_id: str, folder: str) -> list[Path]:
    return sorted(Path(client.download_artifacts(run_id, folder)).iterdir())


def test_a_training_with_augmentation_shows_what_it_does(job, client):
    result = train(job(augmentation={"rotate_degrees": 30, "erase": 0.5}, num_epochs=2))
    params = client.get_run(result.run_id).data.params
    assert params["augmentation.rotate_degrees"] == "30.0"
    (plot,) = (path for path in artifacts(client, result.run_id, "plots") if path.stem == "augmentation")
    assert np.ptp(np.asarray(Image.open(plot).convert("L"))) > 100


def test_a_whole_training(job, client, dataset):
    result = train(job(num_epochs=4, seed=3))
    manifest = load_manifest(str(dataset))
    run = client.get_run(result.run_id)
    assert (run.info.status, result.aliases) == ("FINISHED", ["challenger", "champion"])

    params = run.data.params
    for key, value in {"num_epochs": "4", "seed": "3", "averaging.frequency": "3", "optimizer.name": "adam",
                       "dataset_uri": str(dataset), "dataset_digest": manifest.digest,
                       "image.height_px": "28"}.items():  # fmt: skip
        assert params[key] == value

    for name in (
        "train_loss", "validation_accuracy", "validation_loss", "validation_f1_macro", "epoch_seconds",
        "step_s", "wait_s", "average_s", "spark_s", "retry_s", "checkpoint_s", "worker_0/step_s", "worker_1/average_s",
    ):  # fmt: skip
        history = client.get_metric_history(result.run_id, name)
        assert [metric.step for metric in history] == [1, 2, 3, 4]
        assert all(math.isfinite(metric.value) for metric in history)

    assert result.split == "test"
    assert result.num_examples == manifest.num_examples("test")
    for name, value in result.metrics.items():
        assert run.data.metrics[f"test_{name}"] == value
    assert result.metrics["accuracy"] > 0.9

    (given,) = run.inputs.dataset_inputs
    assert given.dataset.digest == manifest.digest == result.dataset_digest

    plots = artifacts(client, result.run_id, "plots")
    assert [p.stem for p in plots] == [
        "calibration", "class_metrics", "confusion_matrix", "learning_curves", "roc_curves", "timeline",
        "worst_mistakes",
    ]  # fmt: skip
    for path in plots:
        with Image.open(path) as plot:
            assert len(plot.convert("L").getcolors(256)) > 10, "not blank"

    rows = f"test-{manifest.split_digest('test')}"
    evaluation = {path.name: path for path in artifacts(client, result.run_id, "evaluation")}
    assert evaluation.keys() == {"test_classes.csv", f"{rows}.json", f"{rows}.parquet"}
    recorded = json.loads(evaluation[f"{rows}.json"].read_text())
    assert recorded["metrics"] == result.metrics
    predictions = pd.read_parquet(evaluation[f"{rows}.parquet"])
    assert (predictions.label == predictions.predicted).mean() == pytest.approx(result.metrics["accuracy"])
    table = pd.read_csv(evaluation["test_classes.csv"])
    assert table["class"].tolist() == manifest.class_names
    assert table.examples.sum() == table.predicted.sum() == result.num_examples
    assert table.f1.mean() == pytest.approx(result.metrics["f1_macro"])
    assert table.roc_auc.mean() == pytest.approx(result.metrics["roc_auc_macro"])
    assert (table.roc_auc_bound == 0).all(), "few rows: the areas are exact"

    version = client.get_model_version("shardmean", result.model_version)
    assert version.run_id == result.run_id
    assert sorted(version.aliases) == ["challenger", "champion"]
    assert version.tags["dataset_digest"] == manifest.digest

    images = sorted((dataset.parent / "images").rglob("*.png"))
    model = mlflow.pyfunc.load_model("models:/shardmean@champion")
    found = model.predict(pd.DataFrame({"image": [path.read_bytes() for path in images]}))
    assert (found.label == [path.parent.name for path in images]).mean() > 0.9
    assert found.probability.between(1 / 3, 1).all()
    row = found.iloc[0]
    assert sorted(row.probabilities) == ["low", "middle", "top"]
    assert row.probabilities[row.label] == row.probability
    assert not list(Path(mlflow.artifacts.download_artifacts("models:/shardmean@champion")).rglob("*.pkl"))


def test_aliases_over_three_trainings(job, client):
    """A worse model comes first; a better one takes its place; an equal one does not."""

    def versions() -> dict[str, str]:
        return {name: str(v) for name, v in client.get_registered_model("shardmean").aliases.items()}

    bad = train(job(**HOPELESS))
    assert versions() == {"challenger": bad.model_version, "champion": bad.model_version}
    good = train(job(num_epochs=4))
    assert good.metrics["accuracy"] > bad.metrics["accuracy"]
    assert good.aliases == ["challenger", "champion"]
    former = {"previous_champion": bad.model_version}
    assert versions() == {"challenger": good.model_version, "champion": good.model_version, **former}
    equal = train(job(num_epochs=4))
    assert equal.metrics["accuracy"] == good.metrics["accuracy"]
    assert equal.aliases == ["challenger"]
    assert versions() == {"challenger": equal.model_version, "champion": good.model_version, **former}
    assert len({bad.run_id, good.run_id, equal.run_id}) == 3


def test_the_champion_is_measured_anew_when_the_images_have_changed(
    job, client, tmp_path, make_images, vectorize_job, caplog
):
    images = make_images(tmp_path / "images", num_per_class=40, size=28)
    ours = vectorize_job(images, tmp_path / "set", size=28, shard_bytes=10**6)
    vectorize(ours)
    changes = {"dataset_uri": str(tmp_path / "set")}
    good = train(job(num_epochs=5, **changes))
    for number in range(40):
        # Same classes, new images: the test split is another one.
        (images / "low" / f"{number:03d}.png").unlink()
    make_images(images, num_per_class=50, size=28, seed=9)
    vectorize(ours)
    caplog.set_level("INFO")
    bad = train(job(**HOPELESS, **changes))
    assert bad.aliases == ["challenger"]
    assert client.get_model_version_by_alias("shardmean", "champion").run_id == good.run_id
    assert f"version {bad.model_version} against champion {good.model_version}: stays challenger" in caplog.text
    assert "failed: promote.min_improvement: accuracy " in caplog.text


def test_a_run_key_that_has_finished_gives_its_result_again(job, client, monkeypatch):
    keyed = job(run_key="nightly-2026-11-23", num_epochs=1)
    first = train(keyed)

    def no_spark(*_arguments):
        raise AssertionError("nothing is trained")

    monkeypatch.setattr("shardmean.jobs.train.job.open_session", no_spark)
    assert train(keyed) == first
    assert train(keyed.model_copy(update={"airflow": AirflowConfig(pool="gpus")})) == first, "who runs it is no setting"
    assert not any(key.startswith("airflow") for key in client.get_run(first.run_id).data.params)
    assert len(client.search_runs(["1"])) == 1


def test_without_a_key_a_finished_training_is_repeated_as_a_new_run(job, client):
    first, second = train(job(num_epochs=1)), train(job(num_epochs=1))
    assert first.run_id != second.run_id
    assert first.metrics == second.metrics


def test_a_dataset_without_a_test_split(job, client, tmp_path, make_images, vectorize_job):
    """The validation split stands in; its final figures must not mix with those of the epochs."""
    images = make_images(tmp_path / "images", num_per_class=40, size=28)
    split = {"train": 0.7, "validation": 0.3, "test": 0}
    vectorize(vectorize_job(images, tmp_path / "set", size=28, split=split, shard_bytes=20_000))
    result = train(job(dataset_uri=str(tmp_path / "set")))
    assert result.split == "validation"
    history = client.get_metric_history(result.run_id, "validation_accuracy")
    assert [metric.step for metric in history] == [1, 2, 3]


def test_a_dataset_of_training_images_alone(job, client, tmp_path, make_images, vectorize_job, caplog):
    images = make_images(tmp_path / "images", num_per_class=20, size=28)
    split = {"train": 1, "validation": 0, "test": 0}
    vectorize(vectorize_job(images, tmp_path / "set", size=28, split=split, shard_bytes=20_000))
    result = train(job(dataset_uri=str(tmp_path / "set")))
    assert (result.split, result.num_examples) == ("train", 60)
    assert "the final metrics are of the training split" in caplog.text
    assert [m.step for m in client.get_metric_history(result.run_id, "train_loss")] == [1, 2, 3]


def interrupted(job, monkeypatch, *, after_epoch: int) -> None:
    """Train until the world fails after an epoch."""
    save = checkpoint.save

    def save_and_fail(folder, state, **policy):
        save(folder, state, **policy)
        if state.epoch == after_epoch:
            raise RetryableError("the world failed")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_fail)
        with pytest.raises(RetryableError, match="the world failed"):
            train(job)


def test_a_longer_timeout_may_be_set_when_a_run_goes_on(job, client, monkeypatch):
    """`timeout_s` is no part of what comes out, so a run that ran into it resumes with a greater one."""
    interrupted(job(timeout_s=60), monkeypatch, after_epoch=2)
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FAILED"
    assert train(job(timeout_s=120)).run_id == run.info.run_id


def test_an_interrupted_run_whose_mlflow_run_was_deleted(job, client, monkeypatch):
    """Someone cleared MLflow: the checkpoints are still good, and their figures go to a new run."""
    interrupted(job(), monkeypatch, after_epoch=2)
    (run,) = client.search_runs(["1"])
    client.delete_run(run.info.run_id)
    assert train(job()).run_id != run.info.run_id
    assert [r.info.status for r in client.search_runs(["1"])] == ["FINISHED"]


@pytest.mark.parametrize("place", ["file/checkpoints", "/proc/checkpoints"])
def test_a_checkpoint_folder_that_cannot_be_written(job, client, tmp_path, place):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RetryableError) as caught:
        train(job(checkpoint_uri=str(tmp_path / place)))
    assert place in str(caught.value)
    assert "check permission and free space there" in str(caught.value)
    assert all(run.info.status == "FAILED" for run in client.search_runs(["1"])), "no run is left as if it ran"


def test_progress_within_an_epoch_is_shown_live(job, client, dataset):
    tracker = Tracker(job(), load_manifest(str(dataset)), None)
    for seen in (500, 900):
        tracker.log_progress(
            EpochProgress(
                epoch=1, num_examples=seen, total_examples=1000 + seen, loss=0.5, examples_per_second=80.0,
                worker_rates={0: 50.0, 1: 30.0},
            )
        )  # fmt: skip
    mlflow.flush_async_logging()
    for name, value in {
        "loss": 0.5, "examples_per_second": 80, "epoch": 2, "worker_1/examples_per_second": 30,
    }.items():  # fmt: skip
        history = client.get_metric_history(tracker.run_id, f"progress/{name}")
        assert [(metric.step, metric.value) for metric in history] == [(1500, value), (1900, value)]


def test_a_stored_model_asks_for_all_that_its_code_imports():
    """Pinned to the versions here, so that a served model decodes as the ETL did."""
    imported = set()
    for file in image_model.shipped_files().values():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Import):
                imported.update(alias.name.split(".")[0] for alias in node.names)
    wanted = {{"PIL": "pillow"}.get(name, name) for name in imported - sys.stdlib_module_names}
    pinned = dict(requirement.split("==") for requirement in registry._requirements())
    assert wanted <= pinned.keys()
    assert pinned["simplejpeg"] == version("simplejpeg")


def test_the_report_of_the_dataset_stands_beside_the_run(job, client, tmp_path, caplog):
    caplog.set_level("INFO")
    pixels_CHW = np.zeros((1, 8, 8), dtype=np.uint8)
    dataset, index = publish_indexed(tmp_path / "set", [Made("写真/0.png", "写真", pixels_CHW)])
    tracker = Tracker(job(dataset_uri=dataset.uri), dataset.manifest, None)
    tracker.log_dataset_report()
    uri = report_uri(dataset.uri, dataset.manifest.digest)
    assert f"{uri}: no such report, so the run in MLflow has none" in caplog.text
    report = make_report(dataset, index)
    filesystem.write_bytes(uri, report)
    tracker.log_dataset_report()
    (path,) = artifacts(client, tracker.run_id, "dataset")
    assert (path.name, path.read_bytes()) == ("report.html", report)
