"""Settings under their names of version 0.1.0: taken wherever a setting may stand, with a message of the new name."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from shardmean.jobs.config.former_names import current_key
from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.loading import load_job
from shardmean.jobs.train.run_directory import directory_of
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

TRAIN = ["dataset_uri=/data", "checkpoint_uri=/checkpoints"]
# A config of version 0.1.0, and the name that it gave the folder of this run.
OF_0_1_0 = """
dataset_uri: dataset
checkpoint_uri: run
run_key: cut
network: layers
layers:
  - {layer: conv, channels: 4, padding: 1, bias: false}
  - {layer: batch_norm}
  - {layer: relu}
  - {layer: max_pool}
  - {layer: flatten}
optimizer: {name: adam, learning_rate: 0.01, schedule: {name: cosine, final_fraction: 0.1}}
averaging: {frequency: 2, optimizer_state: average, weights: examples}
num_epochs: 3
num_workers: 2
batch_size_per_worker: 4
shuffle_buffer_bytes: 1024
checkpoint_every_rounds: 1
seed: 7
device: cpu
tracking: {experiment: fixtures, registered_model: fixture}
spark: {spark.master: "local[2]"}
"""
FOLDER = "cut-d51745c0a98047fa"


@pytest.fixture
def said(caplog):
    """What was logged of former names."""
    caplog.set_level(logging.WARNING, "shardmean.jobs.config.former_names")
    return lambda: [record.getMessage().removesuffix(": change the config") for record in caplog.records]


def load(tmp_path: Path, how: str, kind, settings: dict[str, object], *others: str):
    """A job whose settings (by dotted keys) stand in a file in levels, on the command line, or in a form's params."""
    if how == "command line":
        return load_job(kind, None, [*others, *(f"{key}={json.dumps(value)}" for key, value in settings.items())])
    if how == "params":
        return load_job(kind, None, others, json.dumps(settings))
    document: dict = {}
    for key, value in settings.items():
        *path, last = key.split(".")
        section = document
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    return load_job(kind, tmp_path / "job.yaml", others)


@pytest.mark.parametrize("how", ["file", "command line", "params"])
def test_former_keys_of_a_training(tmp_path, said, how):
    settings = {"normalisation.mean": [0.5], "normalisation.std": [0.25], "averaging.exchange": "bfloat16"}
    job = load(tmp_path, how, TrainJob, settings, *TRAIN)
    assert (job.normalization.mean, job.normalization.std, job.averaging.comm_dtype) == ([0.5], [0.25], "bfloat16")
    assert set(said()) == {
        "normalisation is now called normalization", "averaging.exchange is now called averaging.comm_dtype"
    }  # fmt: skip


@pytest.mark.parametrize("how", ["file", "command line", "params"])
def test_former_values_of_an_etl(tmp_path, said, how):
    settings = {"image.resize": "centre_crop", "image.background": "grey", "image.padding": "grey"}
    job = load(tmp_path, how, VectorizeJob, settings, "source.uri=/images", "dataset_uri=/data")
    current = {"image.resize": "center_crop", "image.background": "gray", "image.padding": "gray"}
    assert job.image == load(tmp_path, how, VectorizeJob, current, "source.uri=/x", "dataset_uri=/data").image
    assert set(said()) == {f"{key}={settings[key]} is now called {key}={current[key]}" for key in settings}


def test_current_names_are_not_mentioned(tmp_path, said):
    load(tmp_path, "file", TrainJob, {"averaging.comm_dtype": "bfloat16", "normalization.mean": []}, *TRAIN)
    assert said() == []


def test_a_key_under_both_names_is_refused(tmp_path, said):
    both = {"averaging.exchange": "float32", "averaging.comm_dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"averaging\.exchange: unknown key"):
        load(tmp_path, "file", TrainJob, both, *TRAIN)
    with pytest.raises(UserError, match=r"normalisation: unknown key; did you mean normalization\.(mean|std)\?"):
        load(tmp_path, "file", TrainJob, {"normalisation.mean": [], "normalization.std": []}, *TRAIN)
    assert said() == []


def test_a_later_setting_wins_under_either_name(tmp_path):
    job = load(tmp_path, "file", TrainJob, {"averaging.exchange": "bfloat16"}, *TRAIN, "averaging.comm_dtype=float32")
    assert job.averaging.comm_dtype == "float32"
    job = load(tmp_path, "file", TrainJob, {"averaging.comm_dtype": "float32"}, *TRAIN, "averaging.exchange=bfloat16")
    assert job.averaging.comm_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("key", "current"),
    [
        ("normalisation.mean", "normalization.mean"),
        ("normalisation", "normalization"),
        ("averaging.exchange", "averaging.comm_dtype"),
        ("averaging.frequency", "averaging.frequency"),
        ("normalisations.mean", "normalisations.mean"),
        ("seed", "seed"),
    ],
)
def test_current_keys(key, current):
    assert current_key(key) == current


def test_the_folder_of_a_run_keeps_the_name_that_version_0_1_0_gave_it(tmp_path):
    (tmp_path / "train.yaml").write_text(OF_0_1_0)
    job = load_job(TrainJob, tmp_path / "train.yaml", [f"checkpoint_uri={tmp_path}"])
    assert directory_of(job, "0" * 32) == f"{tmp_path}/{FOLDER}"
    bfloat16 = load_job(
        TrainJob, tmp_path / "train.yaml", [f"checkpoint_uri={tmp_path}", "averaging.exchange=bfloat16"]
    )
    assert directory_of(bfloat16, "0" * 32) != f"{tmp_path}/{FOLDER}"
