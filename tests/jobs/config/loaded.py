"""Jobs loaded from settings of tests, and what is said of settings that are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from shardmean.jobs.config.job import TrainJob
from shardmean.jobs.config.loading import load_job
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

YAML = "dataset_uri: /data\ncheckpoint_uri: /checkpoints\naveraging: {frequency: 7, weights: uniform}\nnum_epochs: 9\n"
TRAIN = {"dataset_uri": "/data", "checkpoint_uri": "/checkpoints"}
VECTORIZE = {"source": {"uri": "/images"}, "dataset_uri": "/data"}


def train_job(*overrides: str, **params) -> TrainJob:
    return load_job(TrainJob, None, overrides, json.dumps(TRAIN | params))


def refusal(kind=TrainJob, file: Path | None = None, overrides=(), params="{}") -> str:
    with pytest.raises(UserError) as caught:
        load_job(kind, file, overrides, params)
    return str(caught.value)


def train_refusal(*overrides: str) -> str:
    return refusal(overrides=[*(f"{key}={value}" for key, value in TRAIN.items()), *overrides])
