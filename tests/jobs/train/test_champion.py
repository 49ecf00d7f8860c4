"""The champion is evaluated as a new model is: on all workers, with progress, by its own network and normalization."""

from __future__ import annotations

import time

import pytest
import torch

from shardmean.jobs.train.champion import champion_metrics
from shardmean.jobs.train.job import train
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.distributed.rendezvous import WorkerGroup
from shardmean.model.errors import UserError
from shardmean.model.optimization.fine_tuning import PretrainedModel
from shardmean.model.optimization.replica import build_model
from shardmean.model.serving.image_model import describe
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
    assert champion_metrics(trainer, "test", champion) == own.evaluate(champion.state, "test").metrics()


def test_other_images_or_classes_are_not_compared(trainer, opened):
    champion, _ = champion_of(opened)
    for key, value in {"image": champion.model_spec["image"] | {"height_px": 8}, "class_names": ["low", "top"]}.items():
        other = PretrainedModel(champion.uri, champion.model_spec | {key: value}, champion.state)
        assert champion_metrics(trainer, "test", other) is None


def test_a_champion_that_does_not_fit_is_refused_before_workers_start(trainer, opened, monkeypatch):
    monkeypatch.setattr(LocalLauncher, "run", lambda *_: pytest.fail("workers were started"))
    champion, _ = champion_of(opened)
    other = PretrainedModel(champion.uri, champion.model_spec, {"body.0.weight": torch.zeros(3)})
    with pytest.raises(RuntimeError, match="loading state_dict"):
        champion_metrics(trainer, "test", other)
    forbidden = PretrainedModel(champion.uri, champion.model_spec | {"network": "a.package:make"}, champion.state)
    with pytest.raises(UserError, match="not allowed by the environment variable SHARDMEAN_FACTORIES"):
        champion_metrics(trainer, "test", forbidden)


def test_its_progress_is_logged(trainer, opened, monkeypatch, caplog):
    report = WorkerGroup.report
    monkeypatch.setattr(progress, "INTERVAL_S", 0.05)
    monkeypatch.setattr("shardmean.model.distributed.rendezvous.PROGRESS_INTERVAL_S", 0)
    monkeypatch.setattr("shardmean.model.training.worker.EVALUATION_BATCH", 1)
    monkeypatch.setattr(WorkerGroup, "report", lambda group, changed=None: (report(group, changed), time.sleep(0.01)))
    caplog.set_level("INFO")
    champion_metrics(trainer, "test", champion_of(opened)[0])
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
