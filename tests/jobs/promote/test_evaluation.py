"""A registered model is evaluated as a new one is: on all workers, with progress, by its own network and normalization.

One that is damaged, deleted or away stops no training.
"""

from __future__ import annotations

import shutil
import time
from types import SimpleNamespace

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException

from shardmean.jobs.config.promote import PromoteConfig
from shardmean.jobs.promote import job as promotion
from shardmean.jobs.promote.evaluation import evaluate_registered, first_example, latency_ms, measurement_of
from shardmean.jobs.train.job import train
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.distributed.rendezvous import WorkerGroup
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.optimization.fine_tuning import PretrainedModel
from shardmean.model.optimization.replica import build_model
from shardmean.model.serving.image_model import describe, save_model
from shardmean.model.training import progress
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer

FACTORY = """
from torch import nn

def make(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))
"""
LAYERS = [{"layer": "flatten"}, {"layer": "linear", "features": 7}]


@pytest.fixture
def opened(dataset) -> Dataset:
    return Dataset(str(dataset), load_manifest(str(dataset)))


@pytest.fixture
def trainer(opened):
    """A training of LeNet, with settings that suit no other network, on workers of this process."""
    config = TrainingConfig(network="lenet", num_workers=1, fine_tuning={"freeze": ["0.*"]}, class_weights="balanced")
    with LocalLauncher(1) as launcher:
        yield Trainer(config, opened, launcher)


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A network of another package, which the environment allows."""
    (tmp_path / "nets_of_a_champion.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SHARDMEAN_FACTORIES", "nets_of_a_champion:make")


def champion_of(dataset: Dataset, **settings) -> tuple[PretrainedModel, TrainingConfig]:
    """A registered model of some network, and the config by which it can be evaluated."""
    config = TrainingConfig(**settings)
    given = config.normalization
    spec = describe(dataset.manifest, config.network, layers=config.layers, mean=given.mean, std=given.std)
    return PretrainedModel("models:/bars/1", spec, dict(build_model(config, dataset.manifest).state_dict())), config


@pytest.mark.parametrize("settings", [
    {"network": "lenet"}, {"network": "small_cnn", "normalization": {"mean": [0.9], "std": [0.1]}},
    {"network": "layers", "layers": LAYERS}, {"network": "nets_of_a_champion:make"},
])  # fmt: skip
@pytest.mark.usefixtures("factory")
def test_a_champion_of_any_network_has_the_metrics_of_its_own_training(trainer, opened, settings):
    champion, config = champion_of(opened, **settings)
    own = Trainer(config.model_copy(update={"num_workers": 1}), opened, trainer.launcher)
    assert (
        evaluate_registered(trainer, "test", champion, "champion").metrics()
        == own.evaluate(champion.state, "test").metrics()
    )


def test_other_images_or_classes_are_not_compared(trainer, opened):
    champion, _ = champion_of(opened)
    for key, value in {"image": champion.model_spec["image"] | {"height_px": 8}, "class_names": ["low", "top"]}.items():
        other = PretrainedModel(champion.uri, champion.model_spec | {key: value}, champion.state)
        assert evaluate_registered(trainer, "test", other, "champion") is None


def test_a_champion_that_does_not_fit_is_refused_before_workers_start(trainer, opened, monkeypatch):
    monkeypatch.setattr(LocalLauncher, "run", lambda *_: pytest.fail("workers were started"))
    champion, _ = champion_of(opened)
    other = PretrainedModel(champion.uri, champion.model_spec, {"body.0.weight": torch.zeros(3)})
    with pytest.raises(RuntimeError, match="loading state_dict"):
        evaluate_registered(trainer, "test", other, "champion")
    forbidden = PretrainedModel(champion.uri, champion.model_spec | {"network": "a.package:make"}, champion.state)
    with pytest.raises(UserError, match="not allowed by the environment variable SHARDMEAN_FACTORIES"):
        evaluate_registered(trainer, "test", forbidden, "champion")


def test_its_progress_is_logged(trainer, opened, monkeypatch, caplog):
    report = WorkerGroup.report
    monkeypatch.setattr(progress, "INTERVAL_S", 0.05)
    monkeypatch.setattr("shardmean.model.distributed.rendezvous.PROGRESS_INTERVAL_S", 0)
    monkeypatch.setattr("shardmean.model.training.worker.EVALUATION_BATCH", 1)
    monkeypatch.setattr(WorkerGroup, "report", lambda group, changed=None: (report(group, changed), time.sleep(0.01)))
    caplog.set_level("INFO")
    evaluate_registered(trainer, "test", champion_of(opened)[0], "champion")
    total, start = opened.manifest.num_examples("test"), "champion models:/bars/1 on the test split: "
    lines = [line.removeprefix(start) for line in caplog.messages if line.startswith(start) and " of " in line]
    seen = [int(line.split()[0]) for line in lines]
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] <= total
    assert all(f" of {total} examples (" in line and "loss" not in line for line in lines)


@pytest.mark.usefixtures("spark")
def test_a_champion_of_another_network_is_evaluated_on_all_workers_when_the_images_have_changed(
    train_job, new_store, tmp_path, make_images, vectorize_job, monkeypatch
):
    from shardmean.jobs.spark.barrier import BarrierLauncher

    images = make_images(tmp_path / "images", num_per_class=20, size=28)
    ours = vectorize_job(images, tmp_path / "set", size=28, shard_bytes=10 * 784)
    vectorize(ours)
    job = train_job(tracking=new_store(tmp_path / "mlflow"), dataset_uri=str(tmp_path / "set"), num_epochs=1)
    train(job.model_copy(update={"network": "small_cnn"}))
    make_images(images, num_per_class=40, size=28, seed=9)
    vectorize(ours)
    sent, run = [], BarrierLauncher.run

    def keep_and_run(launcher, work, tasks):
        sent.append(tasks)
        return run(launcher, work, tasks)

    monkeypatch.setattr(BarrierLauncher, "run", keep_and_run)
    train(job)
    _, model, champion = sent
    assert [[(task.split, task.config.network) for task in tasks] for tasks in (model, champion)] == [
        [("test", "lenet")] * 2, [("test", "small_cnn")] * 2,
    ]  # fmt: skip


@pytest.fixture
def champion(tmp_path, new_store, opened):
    """A registered version and its folder; MLflow's own store holds it."""
    before, tracking = mlflow.get_tracking_uri(), new_store(tmp_path / "mlflow")
    mlflow.set_tracking_uri(tracking.uri)
    client, folder = mlflow.MlflowClient(), tmp_path / "champion"
    client.create_registered_model("bars")
    model, _ = champion_of(opened, network="small_cnn")
    save_model(folder / "data" / "classifier", model.model_spec, model.state)
    yield client.create_model_version("bars", source=str(folder)), folder
    mlflow.set_tracking_uri(before)


@pytest.fixture
def measure(trainer, monkeypatch):
    """Measures a version without workers: its state must fit its network."""
    job = SimpleNamespace(promote=PromoteConfig())

    def fitted(trainer, split, model, name):
        build_model(TrainingConfig(network=model.model_spec["network"]), trainer.dataset.manifest).load_state_dict(
            model.state
        )
        return trainer.evaluate(build_model(trainer.config, trainer.dataset.manifest).state_dict(), split)

    monkeypatch.setattr(promotion, "evaluate_registered", fitted)
    return lambda version: promotion.measure(trainer, "test", version, job)


def gone(folder):
    shutil.rmtree(folder)


def of_another_tool(folder):
    shutil.rmtree(folder / "data")


def cut(folder):
    weights = folder / "data" / "classifier" / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-100])


def of_another_network(folder):
    torch.save({"body.0.weight": torch.zeros(3)}, folder / "data" / "classifier" / "weights.pt")


def no_state_dict(folder):
    torch.save([torch.zeros(3)], folder / "data" / "classifier" / "weights.pt")


@pytest.mark.parametrize(("damage", "cause"), [
    (gone, "UserError: models:/bars/1 is no model of Shardmean: it has no data/classifier, or no more"),
    (of_another_tool, "UserError: models:/bars/1 is no model of Shardmean"),
    (cut, "UserError: models:/bars/1 cannot be read ("),
    (of_another_network, "RuntimeError: Error(s) in loading state_dict"), (no_state_dict, "TypeError: "),
])  # fmt: skip
def test_a_model_that_cannot_be_read_is_not_measured_and_stops_nobody(champion, measure, damage, cause, caplog):
    version, folder = champion
    assert measure(version).metrics.keys() > {"accuracy"}
    damage(folder)
    assert measure(version) is None
    assert f"version 1 of bars cannot be evaluated: {cause}" in caplog.text


def test_one_that_fails_on_the_images_neither(champion, measure, monkeypatch, caplog):
    def fails(*_):
        raise IndexError("index 3 of https://ann:secret@host/a is out of bounds")

    monkeypatch.setattr(promotion, "evaluate_registered", fails)
    assert measure(champion[0]) is None
    assert "cannot be evaluated: IndexError: index 3 of https://host/a is out of bounds" in caplog.text


def test_a_server_or_a_dataset_that_goes_away_is_no_fault_of_the_model(champion, measure, monkeypatch):
    def away(*_arguments, **_settings):
        raise MlflowException("the line is dead")

    def unreadable(*_):
        raise RetryableError("cannot read the shard")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "download_artifacts", away)
        patch.setattr(mlflow.MlflowClient, "get_model_version", away)
        with pytest.raises(MlflowException, match="the line is dead"):
            measure(champion[0])
    monkeypatch.setattr(promotion, "evaluate_registered", unreadable)
    with pytest.raises(RetryableError, match="cannot read the shard"):
        measure(champion[0])


def test_the_latency_is_of_one_image_on_one_thread(opened):
    model, _ = champion_of(opened, network="small_cnn", normalization={"mean": [0.5], "std": [0.2]})
    threads = torch.get_num_threads()
    milliseconds = latency_ms(model.model_spec, model.state, first_example(opened, "test"))
    assert 0 < milliseconds < 1000
    assert torch.get_num_threads() == threads


def test_a_measurement_holds_recalls_by_name_and_each_rows_prediction(trainer, opened):
    model, _ = champion_of(opened, network="lenet")
    evaluation = evaluate_registered(trainer, "test", model, "model")
    measured = measurement_of(evaluation, opened.manifest, "test")
    confusion = evaluation.confusion_KK
    assert measured.rows == f"test:{opened.manifest.split_digest('test')}"
    for number, name in enumerate(opened.manifest.class_names):
        assert measured.class_recall[name] == pytest.approx(confusion[number, number] / confusion[number].sum())
    rows = measured.predictions
    assert len(set(rows.ids_N.tolist())) == evaluation.num_examples
    assert (rows.predicted_N == rows.labels_N).mean() == pytest.approx(measured.metrics["accuracy"])
