"""Fashion-MNIST for the benchmarks: IDX files to PNG files to a DataSet, made once in a folder."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.config import VectorizeJob
from jobs.vectorize import vectorize
from model.manifest import load_manifest, manifest_uri
from model.shards import Dataset

DEFAULT_SOURCE = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def fashion_dataset(folder: Path, source: Path = DEFAULT_SOURCE) -> Dataset:
    """The 60,000 training images as a DataSet with nothing held out."""
    uri = str(folder / "fashion-train")
    if not Path(manifest_uri(uri)).exists():
        images = folder / "fashion-png"
        _write_pngs(source, "train", images)
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


def read_idx(source: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 28, 28) and labels uint8 (N,)."""
    images = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def _write_pngs(source: Path, part: str, folder: Path) -> None:
    images_NHW, labels_N = read_idx(source, part)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    for number, (image_HW, label) in enumerate(zip(images_NHW, labels_N, strict=True)):
        Image.fromarray(image_HW).save(folder / str(label) / f"{number:05d}.png", compress_level=1)
