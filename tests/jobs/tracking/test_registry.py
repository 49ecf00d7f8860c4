"""A model is logged and registered once, wherever an earlier try was cut off."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pytest

from shardmean.jobs.tracking import registry
from shardmean.model.images.decoder import encode_png
from shardmean.model.networks.classifier import build_classifier
from shardmean.model.serving import image_model
from shardmean.model.training.checkpoint import Checkpoint
from tests.jobs.indexed import Made, publish_indexed

if TYPE_CHECKING:
    from pathlib import Path

    from shardmean.model.dataset.manifest import Manifest

NAME = "digits"
EXAMPLE = encode_png(np.zeros((1, 8, 8), dtype=np.uint8))


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
    """A store with a registered model that has no version yet."""

    client: mlflow.MlflowClient
    manifest: Manifest


@pytest.fixture
def shelf(tmp_path, new_store):
    before, tracking = mlflow.get_tracking_uri(), new_store(tmp_path / "mlflow")
    mlflow.set_tracking_uri(tracking.uri)
    client = mlflow.MlflowClient()
    client.create_registered_model(NAME)
    yield Shelf(client, publish(tmp_path / "set", 1))
    mlflow.set_tracking_uri(before)


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
    assert register() == "1"
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
    assert register() == register() == "1"
    (model_id,) = logged_models(shelf, run_id)
    outputs = shelf.client.get_run(run_id).outputs.model_outputs
    assert [output.model_id for output in outputs].count(model_id) == 1
    (version,) = shelf.client.search_model_versions(f"run_id='{run_id}'")
    assert version.source == f"models:/{model_id}"
    served = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    assert served.predict([{"image": EXAMPLE}]).label.isin(["cat", "dog"]).all()


def test_a_version_that_was_deleted_before_a_repeat_is_registered_again(shelf, run_id, register):
    assert register() == "1"
    (model_id,) = logged_models(shelf, run_id)
    shelf.client.delete_model_version(NAME, "1")
    assert register() == "2"
    assert logged_models(shelf, run_id) == [model_id]
