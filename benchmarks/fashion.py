"""Fashion-MNIST for the benchmarks: IDX files to DataSets, each made once in a folder. N examples, 28 x 28 px, gray."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.pictures import made_once
from shardmean.jobs.config.job import VectorizeJob
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.dataset.manifest import Manifest, Source, load_manifest, publish
from shardmean.model.dataset.reader import Dataset
from shardmean.model.errors import UserError
from tests.model.dataset_writer import DatasetWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from shardmean.model.dataset.manifest import Split

    Rows = tuple[NDArray[np.uint8], NDArray[np.uint8]]

DEFAULT_SOURCE = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
MEAN, STD = 0.2860, 0.3530
NUM_VALIDATION = 5_000
SHARD_BYTES = 8 * 2**20


def fashion_dataset(folder: Path, source: Path = DEFAULT_SOURCE) -> Dataset:
    """The 60,000 training images by way of PNG files and the ETL, with nothing held out."""
    uri = str(folder / "fashion-train")
    try:
        return Dataset(uri, load_manifest(uri))
    except UserError:  # not published yet
        images = fashion_pngs(folder, "train", source)
        job = VectorizeJob.model_validate(
            {
                "source": {"uri": str(images)},
                "split": {"train": 1, "validation": 0, "test": 0},
                "dataset_uri": uri,
                "max_rejected_fraction": 1,
            }
        )
        vectorize(job)
    return Dataset(uri, load_manifest(uri))


def official_dataset(folder: Path, source: Path = DEFAULT_SOURCE) -> Dataset:
    """The official test images as test, the last 5,000 training images as validation, the other 55,000 to train on."""
    uri = str(folder / "fashion-official")
    try:
        return Dataset(uri, load_manifest(uri))
    except UserError:  # not published yet
        images_NHW, labels_N = read_idx(source, "train")
        return write_dataset(
            uri,
            {
                "train": (images_NHW[:-NUM_VALIDATION], labels_N[:-NUM_VALIDATION]),
                "validation": (images_NHW[-NUM_VALIDATION:], labels_N[-NUM_VALIDATION:]),
                "test": read_idx(source, "t10k"),
            },
        )


def write_dataset(uri: str, rows: Mapping[Split, Rows], *, copies: int = 1) -> Dataset:
    """Publish images (N, 28, 28) and labels (N,) of each split, `copies` times over, without the ETL."""
    writer = DatasetWriter(uri, shard_bytes=SHARD_BYTES)
    for split, (images_NHW, labels_N) in rows.items():
        for number in range(copies * len(labels_N)):
            row = number % len(labels_N)
            writer.add(split, images_NHW[row][None], int(labels_N[row]), f"{split}-{number}", "")
    manifest = Manifest(
        image=ImageConfig(height_px=28, width_px=28, channels=1),
        split=SplitConfig(),
        class_names=[str(label) for label in range(10)],
        mean=[MEAN],
        std=[STD],
        shards=writer.close(),
        source=Source(uri="fashion-mnist", layout="idx", fingerprint="fashion-mnist", num_files=4),
    ).sealed()
    publish(manifest, uri)
    return Dataset(uri, manifest)


def read_idx(source: Path, part: str) -> Rows:
    """Images uint8 (N, 28, 28) and labels uint8 (N,) of `train` or `t10k`."""
    images = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def fashion_pngs(folder: Path, part: str, source: Path = DEFAULT_SOURCE) -> Path:
    """A folder of PNG files in a folder per class, of `train` (60,000) or `t10k` (10,000)."""
    return made_once(folder / f"fashion-png-{part}", lambda images: _write_pngs(source, part, images))


def _write_pngs(source: Path, part: str, folder: Path) -> None:
    images_NHW, labels_N = read_idx(source, part)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    for number, (image_HW, label) in enumerate(zip(images_NHW, labels_N, strict=True)):
        Image.fromarray(image_HW).save(folder / str(label) / f"{part}-{number:05d}.png", compress_level=1)
