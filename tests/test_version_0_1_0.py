"""What version 0.1.0 stored is still read, resumed and served: see tests/data/v0_1_0/README.md."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from shardmean.jobs.cli.main import main
from shardmean.jobs.config.job import TrainJob
from shardmean.jobs.config.loading import load_job
from shardmean.jobs.train.run_directory import directory_of
from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.errors import RetryableError
from shardmean.model.training import checkpoint
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    from shardmean.model.training.messages import Task

DATA = Path(__file__).parent / "data" / "v0_1_0"
EXPECTED = json.loads((DATA / "expected.json").read_text())
# Rounding differs with the processor's instructions (README.md).
TOLERANCE = 1e-6


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return shutil.copytree(DATA, tmp_path / "stored")


@pytest.fixture
def dataset(stored) -> Dataset:
    return Dataset(str(stored / "dataset"), load_manifest(str(stored / "dataset")))


@pytest.fixture(scope="module")
def launcher():
    with LocalLauncher(2) as launcher:
        yield launcher


def training_config(stored: Path) -> TrainingConfig:
    job = load_job(TrainJob, stored / "train.yaml")
    return TrainingConfig.model_validate(job.model_dump(include=set(TrainingConfig.model_fields)))


@pytest.mark.parametrize("digest", EXPECTED["dataset"]["versions"])
def test_each_version_of_the_dataset_is_read(stored, digest):
    expected = EXPECTED["dataset"]["versions"][digest]
    dataset = Dataset(str(stored / "dataset"), load_manifest(str(stored / "dataset"), digest))
    assert dataset.manifest.class_names == expected["class_names"]
    for split, ids in expected["ids"].items():
        parts = [dataset.read(shard, 0, shard.num_examples) for shard in dataset.manifest.shards_of(split)]
        assert {path: one for part in parts for path, one in zip(part.paths, part.ids, strict=True)} == ids


def test_the_dataset_is_inspected_to_the_last_byte(stored, dataset):
    assert main(["inspect", dataset.uri, "--verify"]) == 0
    shard = stored / "dataset" / "shards" / dataset.manifest.shards[0].name
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert main(["inspect", dataset.uri, "--verify"]) == 1
    with pytest.raises(RetryableError, match="its BLAKE3 hash is not the manifest's"):
        dataset.read(dataset.manifest.shards[0], 0, 1)


def test_the_folder_of_its_run_is_found(stored):
    job = load_job(TrainJob, stored / "train.yaml", [f"checkpoint_uri={stored / 'run'}"])
    assert directory_of(job, "") == str(stored / "run" / EXPECTED["training"]["folder"])


def test_a_begun_epoch_goes_on_by_its_own_plan_and_sees_each_example_once(stored, dataset, launcher):
    start = checkpoint.load_latest(str(stored / "run" / EXPECTED["training"]["folder"]))
    assert start is not None
    assert start.name.replace("stage", "leg") == EXPECTED["cut"]["checkpoint"]
    ids: dict[int, list[str]] = {0: [], 1: []}
    trained = Trainer(training_config(stored), dataset, _Traced(launcher, ids))
    state = start
    while state.epoch == start.epoch:
        state = trained.next_state(state)
    for rank, of_worker in enumerate(EXPECTED["cut"]["workers"]):
        assert ids[rank] == of_worker["after"]
    finished = checkpoint.load(str(stored / "finished" / "epoch-000002.pt"))
    for name, tensor in finished.model.items():
        torch.testing.assert_close(state.model[name], tensor, rtol=0, atol=TOLERANCE)
    assert state.history[-1]["examples"] == dataset.manifest.num_examples("train")
    assert state.plan_version == 2, "the next epoch is planned anew"
    assert trained.next_state(state).name.startswith("epoch-000002-stage-001")


class _Traced:
    """A launcher whose workers note the ids that they train on."""

    def __init__(self, launcher: LocalLauncher, ids: dict[int, list[str]]) -> None:
        self._launcher = launcher
        self._ids = ids
        self.rendezvous, self.num_slots, self.cancel = launcher.rendezvous, launcher.num_slots, launcher.cancel

    def run(self, work, tasks: list[Task]):
        reports = self._launcher.run(work, [replace(task, trace_ids=True) for task in tasks])
        for report in reports:
            self._ids[report.rank] += report.ids
        return reports


def test_its_registered_model_is_served(stored, tmp_path):
    expected = json.loads((DATA / "model_expected.json").read_text())
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    name = expected["registered"]["name"]
    client.create_registered_model(name)
    version = client.create_model_version(name, source=str(stored / "model"))
    client.set_registered_model_alias(name, "champion", version.version)
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    files = [(stored / one["image"]).read_bytes() for one in expected["predictions"]]
    answer = model.predict(pd.DataFrame({"image": files}))
    assert answer["label"].tolist() == [one["label"] for one in expected["predictions"]]
    for found, one in zip(answer["probabilities"], expected["predictions"], strict=True):
        np.testing.assert_allclose(list(found.values()), list(one["probabilities"].values()), atol=TOLERANCE)
