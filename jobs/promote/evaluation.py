"""Measures models for the gate: each on all workers, with progress, by its own network and normalization."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shardmean.jobs.tracking.measurement import Measurement
from shardmean.model.config.image import ImageConfig
from shardmean.model.config.training import TrainingConfig
from shardmean.model.images.decoder import encode_png
from shardmean.model.optimization.replica import build_model
from shardmean.model.serving import image_model

if TYPE_CHECKING:
    from shardmean.model.dataset.manifest import Manifest, Split
    from shardmean.model.dataset.reader import Dataset
    from shardmean.model.evaluation.evaluator import Evaluation
    from shardmean.model.optimization.fine_tuning import PretrainedModel
    from shardmean.model.training.trainer import Trainer

NUM_TIMED = 20
log = logging.getLogger(__name__)


def evaluation_split(manifest: Manifest) -> Split:
    """The split of the final metrics: test, or where it is empty validation."""
    splits: tuple[Split, ...] = ("test", "validation")
    for split in splits:
        if manifest.num_examples(split):
            return split
    log.warning("no held-out examples: the final metrics are of the training split and say little of new images")
    return "train"


def rows_of(manifest: Manifest, split: str) -> str:
    """What two models must share to be compared: the same examples and classes."""
    return f"{split}:{manifest.split_digest(split)}"


def measurement_of(
    evaluation: Evaluation, manifest: Manifest, split: str, latency_ms: float | None = None
) -> Measurement:
    """An evaluation as what the gate looks at."""
    recalls = evaluation.per_class()["recall"].tolist()
    return Measurement(
        rows=rows_of(manifest, split),
        metrics=evaluation.metrics(),
        class_recall=dict(zip(manifest.class_names, recalls, strict=True)),
        latency_ms=latency_ms,
        predictions=evaluation.predictions,
    )


def evaluate_registered(trainer: Trainer, split: Split, model: PretrainedModel, name: str) -> Evaluation | None:
    """A registered model on a split; None where it takes other images or classes.

    Raises UserError and others where the model can't be used, RetryableError where workers or the DataSet failed.
    """
    spec, manifest = model.model_spec, trainer.dataset.manifest
    if (ImageConfig.model_validate(spec["image"]), spec["class_names"]) != (manifest.image, manifest.class_names):
        return None
    own = {
        "network": spec["network"],
        "layers": spec["layers"],
        "normalization": {"mean": spec["mean"], "std": spec["std"]},
        "fine_tuning": {},
    }
    config = TrainingConfig.model_validate(trainer.config.model_dump() | own)
    # On the driver first: a state that does not fit the network would fail on every worker.
    build_model(config, manifest).load_state_dict(model.state)
    return replace(trainer, config=config).evaluate(model.state, split, f"{name} {model.uri}")


def latency_ms(spec: dict[str, Any], state: dict[str, Any], example: bytes) -> float:
    """Milliseconds to predict one image file on one CPU thread, as it is served: the median of some tries."""
    num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        image_model.save_model(Path(folder) / "model", spec, state)
        model = image_model.ImageModel.load(Path(folder) / "model")
    torch.set_num_threads(1)
    try:
        return statistics.median(_seconds(model, example) for _ in range(NUM_TIMED)) * 1000
    finally:
        torch.set_num_threads(num_threads)


def first_example(dataset: Dataset, split: Split) -> bytes:
    """One image of a split as a PNG file."""
    first = dataset.read(dataset.manifest.shards_of(split)[0], 0, 1)
    return encode_png(first.features_NCHW[0])


def _seconds(model: image_model.ImageModel, example: bytes) -> float:
    started = time.perf_counter()
    model.predict([example])
    return time.perf_counter() - started
