"""What several tests of model/ share: small DataSets that were really published, launchers of workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.dataset.manifest import Manifest, Source, publish
from shardmean.model.dataset.reader import Dataset
from shardmean.model.training.local_launcher import LocalLauncher
from tests.model.dataset_writer import DatasetWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def random_dataset(
    folder: Path,
    *,
    rows: dict[str, int],
    num_classes: int = 3,
    shape: tuple[int, int, int] = (1, 8, 8),
    shard_bytes: int = 1000,
    seed: int = 0,
    class_names: list[str] | None = None,
    source: str = "random",
) -> Dataset:
    """Publish random uint8 images under `folder`; `rows` gives the number of examples of each split."""
    generator = np.random.default_rng(seed)
    names = class_names or [f"class {number}" for number in range(num_classes)]
    writer = DatasetWriter(str(folder), shard_bytes=shard_bytes)
    for split, num_rows in rows.items():
        for row in range(num_rows):
            pixels_CHW = generator.integers(0, 256, shape, dtype=np.uint8)
            label = int(generator.integers(len(names)))
            writer.add(split, pixels_CHW, label, f"{split}-{row:05d}", f"{names[label]}/{split}/{row:05d}.png")
    channels, height, width = shape
    manifest = Manifest(
        image=ImageConfig(height_px=height, width_px=width, channels=channels),
        split=SplitConfig(),
        class_names=names,
        mean=[0.5] * channels,
        std=[0.29] * channels,
        shards=writer.close(),
        source=Source(uri=source, layout="folders", fingerprint=source, num_files=sum(rows.values())),
    ).sealed()
    publish(manifest, str(folder))
    return Dataset(str(folder), manifest)


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """`random_dataset`, for tests that choose their own folder, rows, classes, shape and shard size."""
    return random_dataset


@pytest.fixture(scope="session")
def launchers() -> Iterator[dict[int, LocalLauncher]]:
    """One worker in this process, two or three in processes that all tests share (starting one takes seconds)."""
    with LocalLauncher(1) as alone, LocalLauncher(3) as pool:
        yield {1: alone, 2: pool, 3: pool}


@pytest.fixture(scope="session")
def lenet_data(make_dataset, tmp_path_factory) -> Dataset:
    rows = {"train": 61, "validation": 13}
    return make_dataset(tmp_path_factory.mktemp("lenet"), rows=rows, shape=(1, 18, 18), shard_bytes=324 * 17)


@pytest.fixture(scope="session")
def tiny_data(make_dataset, tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("tiny"), rows={"train": 50, "validation": 10}, shape=(3, 8, 8))


@pytest.fixture(scope="session")
def gray_data(make_dataset, tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("gray"), rows={"train": 120}, shape=(1, 8, 8), shard_bytes=2000)


@pytest.fixture
def one_thread():
    """As many threads as the workers have: sums split over threads round otherwise."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
