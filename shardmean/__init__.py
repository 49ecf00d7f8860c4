"""Images to a trained CNN in one pipeline: Spark vectorizes and trains, Airflow schedules, MLflow keeps the models.

The names below are the public API (docs/python.md); everything else is private by convention. Each is imported when it
is first used, so that `import shardmean` is quick and needs no other package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardmean.jobs.config.job import TrainJob, VectorizeJob
    from shardmean.jobs.tracking.run import TrainResult
    from shardmean.jobs.train.job import train
    from shardmean.jobs.vectorize.job import VectorizeResult, vectorize
    from shardmean.model.config.training import TrainingConfig
    from shardmean.model.dataset.manifest import load_manifest
    from shardmean.model.dataset.reader import Dataset
    from shardmean.model.dataset.torch_shards import TorchShards
    from shardmean.model.errors import RetryableError, UserError
    from shardmean.model.images.decoder import decode
    from shardmean.model.serving.image_model import ImageModel
    from shardmean.model.training.trainer import Trainer

__all__ = [
    "Dataset", "ImageModel", "RetryableError", "TorchShards", "TrainJob", "TrainResult", "Trainer", "TrainingConfig",
    "UserError", "VectorizeJob", "VectorizeResult", "decode", "load_manifest", "train", "vectorize",
]  # fmt: skip
# Where each name is, and the extra that installs what its module imports.
_EXPORTS = {
    "Dataset": ("model.dataset.reader", ""),
    "ImageModel": ("model.serving.image_model", "[serving]"),
    "RetryableError": ("model.errors", ""),
    "TorchShards": ("model.dataset.torch_shards", "[serving]"),
    "TrainJob": ("jobs.config.job", ""),
    "TrainResult": ("jobs.tracking.run", "[train]"),
    "Trainer": ("model.training.trainer", "[train]"),
    "TrainingConfig": ("model.config.training", ""),
    "UserError": ("model.errors", ""),
    "VectorizeJob": ("jobs.config.job", ""),
    "VectorizeResult": ("jobs.vectorize.job", "[spark]"),
    "decode": ("model.images.decoder", "[serving]"),
    "load_manifest": ("model.dataset.manifest", ""),
    "train": ("jobs.train.job", "[train]"),
    "vectorize": ("jobs.vectorize.job", "[spark]"),
}

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _EXPORTS:
            raise AttributeError(f"module 'shardmean' has no attribute {name!r}")
        module, extra = _EXPORTS[name]
        try:
            found = globals()[name] = getattr(import_module(f"shardmean.{module}"), name)
        except ModuleNotFoundError as error:
            remedy = f"pip install 'shardmean{extra}'"
            raise ModuleNotFoundError(f"shardmean.{name} needs {error.name}: {remedy}", name=error.name) from error
        return found


def __dir__() -> list[str]:
    return __all__
