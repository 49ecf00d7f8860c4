"""Which version is champion, also when the present one is damaged, deleted or away; and what a repeat finds done."""

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

from shardmean.jobs.tracking import registry
from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import RetryableError
from shardmean.model.images.decoder import encode_png
from shardmean.model.networks.classifier import build_classifier
from shardmean.model.optimization.replica import build_model
from shardmean.model.serving import image_model
from shardmean.model.training.checkpoint import Checkpoint
from tests.jobs.indexed import Made, publish_indexed

if TYPE_CHECKING:
    from pathlib import Path

    from shardmean.model.dataset.manifest import Manifest
    from shardmean.model.optimization.fine_tuning import PretrainedModel

NAME = "digits"
EXAMPLE = encode_png(np.zeros((1, 8, 8), dtype=np.uint8))


def fitted(champion: PretrainedModel, manifest: Manifest) -> dict[str, float]:
    """Metrics that need no workers, of a model whose state fits its network."""
    build_model(TrainingConfig(network="small_cnn"), manifest).load_state_dict(champion.state)
    return {"accuracy": 0.6}


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
        image_model.save_model(
            classifier, image_model.describe(m, "small_cnn", layers=[], mean=m.mean, std=m.std), dict(net.state_dict())
        )
        return str(self.client.create_model_version(NAME, source=str(folder)).version)

    def set_aliases(self, version: str, champion_metrics=None) -> list[str]:
        champion_metrics = champion_metrics or (lambda champion: fitted(champion, self.manifest))
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

    def measure(champion: PretrainedModel) -> dict[str, float]:
        measured.append(champion)
        return {"accuracy": 0.6}

    assert shelf.set_aliases(second, measure) == ["challenger", "champion"]
    assert [(champion.uri, champion.model_spec["network"]) for champion in measured] == [
        (f"models:/{NAME}/1", "small_cnn")
    ]
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
    (of_another_tool, "UserError: models:/digits/1 is no model of Shardmean"),
    (cut, "UserError: models:/digits/1 cannot be read ("),
    (of_another_network, "RuntimeError: Error(s) in loading state_dict"), (no_state_dict, "TypeError: "),
])  # fmt: skip
def test_a_champion_that_cannot_be_read_stays_and_stops_nobody(shelf, second, damage, cause, caplog):
    caplog.set_level("INFO")
    damage(shelf.champion)
    for _ in range(2):
        assert shelf.set_aliases(second) == ["challenger"]
    assert shelf.champion_now() == "1"
    assert f"champion 1 of {NAME} cannot be evaluated: {cause}" in caplog.text
    assert "champion stays version 1: it cannot be evaluated, or takes other images or classes" in caplog.text


def test_a_champion_that_fails_on_the_images_stays_too(shelf, second, caplog):
    def fails(_champion: PretrainedModel) -> dict[str, float]:
        raise IndexError("index 3 of https://ann:secret@host/a is out of bounds")

    assert shelf.set_aliases(second, fails) == ["challenger"]
    assert (
        f"champion 1 of {NAME} cannot be evaluated: IndexError: index 3 of https://host/a is out of bounds"
        in caplog.text
    )


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
    def away(_champion: PretrainedModel) -> dict[str, float]:
        raise RetryableError("cannot read the shard")

    with pytest.raises(RetryableError, match="cannot read the shard"):
        shelf.set_aliases(second, away)


def test_a_repeat_gives_the_same_aliases(shelf, second):
    """SQLite's store gives versions as numbers, a server as text."""
    assert shelf.set_aliases(second) == ["challenger", "champion"]
    assert shelf.set_aliases(second) == ["challenger", "champion"]


def test_a_deleted_champion_gives_way(shelf, second, caplog):
    caplog.set_level("INFO")
    shelf.client.delete_model_version(NAME, "1")
    assert shelf.set_aliases(second) == ["challenger", "champion"]
    assert f"{NAME} has no champion: version 2 becomes it" in caplog.text
    assert shelf.champion_now() == "2"


def test_a_champion_whose_alias_outlives_it_gives_way(shelf, second, monkeypatch, caplog):
    """As in a store that leaves the alias when the version is deleted."""
    before = shelf.client.get_registered_model(NAME)
    shelf.client.delete_model_version(NAME, "1")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "get_registered_model", lambda *_: before)
        assert shelf.set_aliases(second) == ["challenger", "champion"]
    assert f"version 1 of {NAME} is champion and was deleted" in caplog.text
    assert shelf.champion_now() == "2"


@pytest.fixture
def run_id(shelf, tmp_path) -> str:
    """A run of MLflow whose model is to be registered."""
    experiment = shelf.client.create_experiment("one", artifact_location=str(tmp_path / "artifacts"))
    return shelf.client.create_run(experiment).info.run_id


@pytest.fixture
def register(shelf, run_id):
    """A function that registers the run's model and gives the version."""
    m = shelf.manifest
    net = build_classifier("small_cnn", shape=m.image.shape, num_classes=2, mean=m.mean, std=m.std)
    state, model_spec = dict(net.state_dict()), image_model.describe(m, "small_cnn", layers=[], mean=m.mean, std=m.std)
    final = Checkpoint(1, state, [None], model_spec=model_spec, best_epoch=1, best_model=state)
    return lambda: registry.register(shelf.client, run_id, NAME, final, EXAMPLE)


def logged_models(shelf, run_id: str) -> list[str]:
    experiment_id = shelf.client.get_run(run_id).info.experiment_id
    return [model.model_id for model in shelf.client.search_logged_models([experiment_id])]


def test_registering_leaves_nothing_of_the_shipped_code_in_this_process(shelf, register):
    before = list(sys.path)
    assert register() == "2"
    assert sys.path == before
    assert not [name for name in sys.modules if name.startswith("shardmean_model")]


class KilledError(BaseException):
    pass


STEPS = [
    "log_outputs",
    "log_model_artifacts",
    "finalize_logged_model",
    "_create_model_version",
    "set_logged_model_tags",
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_model_that_was_cut_off_at_any_step_is_logged_and_registered_once(
    shelf, run_id, register, monkeypatch, step, after
):
    """As by a kill: no step after it is taken, not even those that tidy up."""
    original = getattr(mlflow.MlflowClient, step)

    def killed(*arguments, **settings):
        if after:
            original(*arguments, **settings)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, step, killed)
        with pytest.raises(KilledError):
            register()
    assert register() == register() == "2"
    (model_id,) = logged_models(shelf, run_id)
    outputs = shelf.client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs].count(model_id) == 1
    (version,) = shelf.client.search_model_versions(f"run_id='{run_id}'")
    assert version.source == f"models:/{model_id}"
    served = mlflow.pyfunc.load_model(f"models:/{NAME}/2")
    assert served.predict([{"image": EXAMPLE}]).label.isin(["cat", "dog"]).all()


def test_a_version_that_was_deleted_before_a_repeat_is_registered_again(shelf, run_id, register):
    assert register() == "2"
    (model_id,) = logged_models(shelf, run_id)
    shelf.client.delete_model_version(NAME, "2")
    assert register() == "3"
    assert logged_models(shelf, run_id) == [model_id]
