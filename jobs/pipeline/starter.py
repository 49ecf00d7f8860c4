"""`shardmean init`: writes a pipeline's file with sensible values for a pile of images, and a comment for each key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf

from shardmean.jobs.config.loading import load_pipeline
from shardmean.jobs.pipeline.source_survey import survey
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from shardmean.jobs.pipeline.source_survey import Survey

# Sides that networks take well; the largest that does not enlarge most images is chosen.
SIDES = (28, 32, 64, 96, 128, 160, 224)
# Above this ratio of sides, stretching distorts what an image shows.
MAX_STRETCH = 1.15
MIN_PER_WORKER = 64
HOME = "${oc.env:SHARDMEAN_HOME,.shardmean}"
OF_0_1_0 = {"vectorize": "vectorize.yaml", "train": "train.yaml"}


def write_pipeline(name: str, source_uri: str, folder: Path) -> Path:
    """Look at a source and write `folder/NAME.yaml`; gives the file. Raises UserError and RetryableError."""
    return _write(folder, name, _starter(name, survey(source_uri)))


def convert_configs(configs: Path, folder: Path) -> Path:
    """Write a pipeline's file of the vectorize.yaml and train.yaml of version 0.1.0, with their values and references.

    It has the name of the registered model, so that MLflow's experiment and model stay. Raises UserError.
    """
    documents: dict[str, Any] = {}
    for stage, file in OF_0_1_0.items():
        path = configs / file
        if not path.exists():
            raise UserError(f"{path}: not found; --from takes the folder with vectorize.yaml and train.yaml")
        documents[stage] = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(documents[stage], dict):
            raise UserError(f"config file {path}: expected keys with values")
    vectorize, train = documents["vectorize"], documents["train"]
    model = str((train.get("tracking") or {}).get("registered_model", "shardmean"))
    name = re.sub(r"[^a-z0-9_-]+", "-", model.lower()).strip("-_")[:50] or "shardmean"
    document: dict[str, Any] = {"name": name, "vectorize": vectorize, "train": train}
    # 0.1.0 ran at three by default.
    document["airflow"] = {"schedule": vectorize.pop("schedule", "0 3 * * *")}
    text = f"# Made of {configs}/vectorize.yaml and train.yaml, which are read no more.\n{OmegaConf.to_yaml(document)}"
    return _write(folder, name, text)


def _write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    try:
        with file.open("x") as stream:
            stream.write(text)
    except FileExistsError:
        raise UserError(f"{file} is there already: choose another name, or remove it") from None
    try:
        load_pipeline(file)
    except UserError:
        file.unlink()
        raise
    return file


def _starter(name: str, found: Survey) -> str:
    width, height, resize = _shape(found)
    side, channels = min(width, height), 1 if found.is_gray else 3
    fewest, num_train = min(found.num_per_class.values()), int(0.8 * found.num_images)
    network = "small_cnn" if side < 64 else "resnet18"
    num_workers, batch = 2, 32 if num_train >= 2000 else 16
    epochs = 10 if num_train >= 20_000 else 20
    source = f"  uri: {_quoted(found.source.uri)}\n    layout: {found.source.layout}"
    for key in ("split_folders", "split_files"):
        if getattr(found.source, key):
            source += f"\n    {key}: true  # its own splits are used"
    split = "" if found.num_per_split else "  split: {train: 0.8, validation: 0.1, test: 0.1}  # by each image's hash\n"
    return f"""# Made by `shardmean init` for {found.num_images} images in {len(found.num_per_class)} classes \
({_counts(found)}).
# Sizes of a sample: {_sizes(found)}{_unreadable(found)}
name: {name}  # begins the DAGs' ids; the MLflow experiment and the registered model have it too
vectorize:
  source:  # where the images are
  {source}
  image:  # every example gets this shape
    height_px: {height}
    width_px: {width}
    channels: {channels}  # {"gray" if channels == 1 else "RGB"}
    resize: {resize}  # stretch, fit (pad), center_crop, or none (reject other sizes)
{split}  dataset_uri: {HOME}/datasets/{name}  # where the DataSet is published
  max_rejected_fraction: 0.05  # with more broken images than this nothing is published
train:
  checkpoint_uri: {HOME}/checkpoints
  network: {network}  # lenet, small_cnn, vgg_small, resnet18, resnet50, layers, or your own factory
  optimizer: {{name: adam, learning_rate: 0.001, schedule: {{name: cosine}}}}
  averaging: {{frequency: 5}}  # minibatches between averagings, or epoch
  num_epochs: {epochs}
  num_workers: {num_workers}  # one task of Spark each
  batch_size_per_worker: {batch}
checks:  # a version that fails one is not published
  min_images_per_class: {max(1, fewest // 2)}  # half of the smallest class today
  max_class_share_change: 0.2  # against the published version
promote:
  metric: accuracy  # by which a new model replaces the champion, on the same rows
airflow:
  schedule: null  # a cron expression such as "0 3 * * *"; null: by hand
  timezone: UTC
"""


def _shape(found: Survey) -> tuple[int, int, str]:
    """Width, height and how images of other sizes are fitted."""
    width, height = (int(value) for value in np.median(found.sizes_S2, axis=0))
    if (found.sizes_S2 == found.sizes_S2[0]).all() and max(width, height) <= SIDES[-1]:
        return width, height, "none" if found.num_unreadable == 0 else "stretch"
    side = max((side for side in SIDES if side <= min(width, height)), default=SIDES[0])
    ratios = found.sizes_S2[:, 0] / found.sizes_S2[:, 1]
    is_square = bool((np.maximum(ratios, 1 / ratios) <= MAX_STRETCH).all())
    return side, side, "stretch" if is_square else "center_crop"


def _counts(found: Survey) -> str:
    numbers = found.num_per_class.values()
    text = f"{min(numbers)} to {max(numbers)} each"
    return text + "".join(f"; {number} in {split}" for split, number in sorted(found.num_per_split.items()))


def _sizes(found: Survey) -> str:
    smallest, largest = found.sizes_S2.min(axis=0), found.sizes_S2.max(axis=0)
    text = f"{smallest[0]} x {smallest[1]}"
    return text if (smallest == largest).all() else f"{text} to {largest[0]} x {largest[1]} pixels"


def _unreadable(found: Survey) -> str:
    return f"; {found.num_unreadable} of the sample cannot be read" if found.num_unreadable else ""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
