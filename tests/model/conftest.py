"""What several tests of model/ share: a small DataSet that was really written and published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model.config import ImageConfig, SplitConfig
from model.manifest import Manifest, Source, publish
from model.shards import Dataset, ShardWriter

if TYPE_CHECKING:
    from collections.abc import Callable
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
    writer = ShardWriter(str(folder), num_classes=len(names), shard_bytes=shard_bytes)
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
