"""Which version is champion, when the present one is damaged, gone, or can't be asked for; and what a repeat says."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from shardmean.jobs.config.job import TrainJob
from shardmean.jobs.tracking import registry
from shardmean.model.errors import RetryableError
from shardmean.model.images.decoder import encode_png
from shardmean.model.networks.classifier import build_classifier
from shardmean.model.serving import image_model
from tests.jobs.indexed import Made, publish_indexed

if TYPE_CHECKING:
    from pathlib import Path

    from shardmean.model.dataset.manifest import Manifest

NAME = "digits"


def publish(folder: Path, seed: int) -> Manifest:
    """A DataSet of two classes, whose test split is another one for each seed."""
    generator = np.random.default_rng(seed)
    items = [
        Made(f"{name}/{split}.png", name, generator.integers(0, 256, (1, 8, 8), dtype=np.uint8), split)
        for name in ("cat", "dog")
        for split in ("train", "test")
    ]
    return publish_indexed(folder, items)[0].manifest


@dataclass
class Shelf:
    """A store with a champion, version 1, that was measured on another test split than `manifest` has."""

    client: mlflow.MlflowClient
    manifest: Manifest
    champion: Path

    def add(self, manifest: Manifest, folder: Path) -> str:
        m, classifier = manifest, folder / "data" / "classifier"
        net = build_classifier("small_cnn", shape=m.image.shape, num_classes=2, mean=m.mean, std=m.std)
        image_model.save_model(classifier, m, "small_cnn", dict(net.state_dict()))
        return str(self.client.create_model_version(NAME, source=str(folder)).version)

    def set_aliases(self, version: str, champion_metrics=lambda _rival: 0.6) -> list[str]:
        return registry.set_aliases(self.client, NAME, version, self.manifest, "test", 0.7, champion_metrics)

    def champion_now(self) -> str:
        return str(self.client.get_model_version_by_alias(NAME, "champion").version)


@pytest.fixture
def shelf(tmp_path, new_store):
    before, tracking = mlflow.get_tracking_uri(), new_store(tmp_path / "mlflow")
    mlflow.set_tracking_uri(tracking.uri)
    client = mlflow.MlflowClient()
    client.create_registered_model(NAME)
    earlier, manifest = (publish(tmp_path / f"set-{seed}", seed) for seed in (0, 1))
    shelf = Shelf(client, manifest, tmp_path / "champion")
    first = shelf.add(earlier, shelf.champion)
    assert registry.set_aliases(client, NAME, first, earlier, "test", 0.9, lambda _: None) == ["challenger", "champion"]
    yield shelf
    mlflow.set_tracking_uri(before)


@pytest.fixture
def second(shelf, tmp_path) -> str:
    return shelf.add(shelf.manifest, tmp_path / "second")


def test_a_champion_of_other_rows_is_measured_and_leaves_no_files(shelf, second, monkeypatch, tmp_path):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    measured = []
    assert shelf.set_aliases(second, lambda rival: measured.append(rival) or 0.6) == ["challenger", "champion"]
    assert [type(rival) for rival in measured] == [image_model.ImageModel]
    assert list((tmp_path / "tmp").iterdir()) == []


def gone(champion: Path) -> None:
    shutil.rmtree(champion)


def of_another_tool(champion: Path) -> None:
    shutil.rmtree(champion / "data")


def cut(champion: Path) -> None:
    weights = champion / "data" / "classifier" / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-100])


def of_another_network(champion: Path) -> None:
    torch.save({"body.0.weight": torch.zeros(3)}, champion / "data" / "classifier" / "weights.pt")


def no_state_dict(champion: Path) -> None:
    torch.save([torch.zeros(3)], champion / "data" / "classifier" / "weights.pt")


@pytest.mark.parametrize(("damage", "cause"), [
    (gone, "UserError: models:/digits/1 is no model of Shardmean: it has no data/classifier, or no more"),
    (of_another_tool, "UserError: models:/digits/1 is no model of Shardmean"), (cut, ""),
    (of_another_network, "RuntimeError: Error(s) in loading state_dict"), (no_state_dict, "TypeError: "),
])  # fmt: skip
def test_a_champion_that_cannot_be_read_stays_and_stops_nobody(shelf, second, damage, cause, caplog):
    caplog.set_level("INFO")
    damage(shelf.champion)
    for _ in range(2):
        assert shelf.set_aliases(second) == ["challenger"]
    assert shelf.champion_now() == "1"
    assert f"version 1 of {NAME} cannot be used: {cause}" in caplog.text
    assert "champion stays version 1: it can't be used, or takes other images or classes" in caplog.text


def test_a_champion_that_fails_on_the_images_stays_too(shelf, second, caplog):
    def fails(_rival: image_model.ImageModel) -> float:
        raise IndexError("index 3 of https://ann:secret@host/a is out of bounds")

    assert shelf.set_aliases(second, fails) == ["challenger"]
    assert f"version 1 of {NAME} cannot be used: IndexError: index 3 of https://host/a is out of bounds" in caplog.text


def test_a_server_that_goes_away_is_no_fault_of_the_champion(shelf, second, monkeypatch):
    def away(*_arguments, **_settings):
        raise MlflowException("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.artifacts, "download_artifacts", away)
        patch.setattr(mlflow.MlflowClient, "get_model_version", away)
        with pytest.raises(MlflowException, match="the line is dead"):
            shelf.set_aliases(second)
    assert shelf.set_aliases(second) == ["challenger", "champion"]


def test_a_dataset_that_goes_away_is_no_fault_of_the_champion(shelf, second):
    def away(_rival: image_model.ImageModel) -> float:
        raise RetryableError("cannot read the shard")

    with pytest.raises(RetryableError, match="cannot read the shard"):
        shelf.set_aliases(second, away)


def test_a_repeat_gives_the_same_aliases(shelf, second):
    """SQLite's store gives versions as numbers, a server as text."""
    assert shelf.set_aliases(second) == ["challenger", "champion"]
    assert shelf.set_aliases(second) == ["challenger", "champion"]


def test_registering_leaves_nothing_of_the_shipped_code_in_this_process(shelf, tmp_path):
    m = shelf.manifest
    net = build_classifier("small_cnn", shape=m.image.shape, num_classes=2, mean=m.mean, std=m.std)
    job = TrainJob(
        dataset_uri=str(tmp_path / "set"), checkpoint_uri=str(tmp_path), network="small_cnn",
        tracking={"registered_model": NAME},
    )  # fmt: skip
    run = shelf.client.create_run(shelf.client.create_experiment("one", artifact_location=str(tmp_path / "artifacts")))
    before = list(sys.path)
    example = encode_png(np.zeros((1, 8, 8), dtype=np.uint8))
    assert registry.register(run.info.run_id, job, m, dict(net.state_dict()), example) == "2"
    assert sys.path == before
    assert not [name for name in sys.modules if name.startswith("shardmean_model")]
