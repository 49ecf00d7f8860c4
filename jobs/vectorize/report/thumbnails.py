"""The pictures of a report: examples of classes and mean images, from a bounded number of rows and shards.

Shapes: N examples, S shards, K classes, C channels, H and W pixels.
"""

from __future__ import annotations

import base64
import heapq
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardmean.model.dataset.manifest import Manifest, Shard
    from shardmean.model.dataset.reader import Dataset, Examples

T = TypeVar("T")
MAX_CLASSES, MAX_PER_CLASS = 30, 8
MAX_MEAN_EXAMPLES = 2000
# Half are spread over the training split, half are for the classes that those lack.
MAX_SHARDS = 16
MAX_READ_BYTES = 256 * 2**20
WINDOW_BYTES = 4 * 2**20
MAX_CLASS_MEAN_BYTES = 2**20
MIN_CLASS_MEAN = 10
THUMBNAIL_PX, MEAN_PX, PNG_PX = 112, 256, 48


@dataclass(frozen=True)
class Picture:
    """An image file (PNG where small, else JPEG) as a page holds it, and the path of the image that it was made of."""

    data_uri: str
    path: str
    width_px: int
    height_px: int


@dataclass(frozen=True)
class ClassPictures:
    """Examples of one class, and their mean where they are enough for one."""

    name: str
    examples: list[Picture]
    mean: Picture | None


@dataclass(frozen=True)
class Pictures:
    """The pictures, and what they were drawn from: `num_read` examples of `num_shards` shards."""

    mean: Picture | None
    num_mean: int
    classes: list[ClassPictures]
    num_read: int
    num_shards: int


@dataclass
class _Mean:
    """Pixels added up; of no shape until there are some."""

    total_CHW: NDArray[np.uint64] = field(default_factory=lambda: np.zeros((), np.uint64))
    num: int = 0

    def add(self, features_NCHW: NDArray[np.uint8]) -> None:
        if len(features_NCHW):
            self.total_CHW = self.total_CHW + features_NCHW.sum(axis=0, dtype=np.uint64)
            self.num += len(features_NCHW)

    def picture(self, limit_px: int, min_num: int = 1) -> Picture | None:
        if self.num < min_num:
            return None
        mean_CHW = ((self.total_CHW + self.num // 2) // self.num).astype(np.uint8)
        return _picture(mean_CHW, f"mean of {self.num:,} examples", limit_px)


@dataclass
class _Sample:
    """What is gathered of a class while examples go by: those of the smallest ids, and the mean."""

    mean: _Mean = field(default_factory=_Mean)
    by_id: dict[str, tuple[NDArray[np.uint8], str]] = field(default_factory=dict)

    def add(self, examples: Examples, rows_N: NDArray[np.int64]) -> None:
        for row in rows_N.tolist():
            self.by_id[examples.ids[row]] = (examples.features_NCHW[row].copy(), examples.paths[row])
        self.by_id = dict(heapq.nsmallest(MAX_PER_CLASS, self.by_id.items()))


def draw(dataset: Dataset) -> Pictures:
    """Read at most 16 shards and about 256 MiB of examples. Raises RetryableError for a damaged shard."""
    manifest, example_bytes = dataset.manifest, dataset.manifest.image.example_bytes
    spread = _spread(manifest.shards_of("train"), MAX_SHARDS // 2)
    labels = _labels(manifest, spread)
    shards = spread + _shards_for_rest(manifest, spread, labels)
    mean, samples, num_read = _Mean(), {label: _Sample() for label in labels}, 0
    step, max_rows = max(1, WINDOW_BYTES // example_bytes), max(1, MAX_READ_BYTES // len(shards) // example_bytes)
    for number, shard in enumerate(shards):
        num_rows = min(max_rows, shard.num_examples)
        stop_mean = MAX_MEAN_EXAMPLES // len(spread) if number < len(spread) else 0
        for first in range(0, num_rows, step):
            examples = dataset.read(shard, first, min(first + step, num_rows))
            num_mean = max(0, stop_mean - first)
            num_read += len(examples.labels_N)
            mean.add(examples.features_NCHW[:num_mean])
            for label, sample in samples.items():
                rows_N = np.flatnonzero(examples.labels_N == label)
                sample.add(examples, rows_N)
                if example_bytes <= MAX_CLASS_MEAN_BYTES:
                    sample.mean.add(examples.features_NCHW[rows_N[rows_N < num_mean]])
    classes = [
        ClassPictures(
            manifest.class_names[label],
            [_picture(pixels_CHW, path, THUMBNAIL_PX) for pixels_CHW, path in sample.by_id.values()],
            sample.mean.picture(THUMBNAIL_PX, MIN_CLASS_MEAN),
        )
        for label, sample in samples.items()
        if sample.by_id
    ]
    return Pictures(mean.picture(MEAN_PX), mean.num, classes, num_read, len(shards))


def _spread(items: list[T], limit: int) -> list[T]:
    """At most `limit` items of a list, evenly spaced."""
    return [items[number * len(items) // limit] for number in range(limit)] if len(items) > limit else items


def _labels(manifest: Manifest, spread: list[Shard]) -> list[int]:
    """The classes to show: all, or evenly spaced ones of those that the given shards hold."""
    labels: set[int] = set().union(*(shard.num_per_class for shard in manifest.shards))
    if len(labels) > MAX_CLASSES and spread:
        labels = set().union(*(shard.num_per_class for shard in spread))
    return _spread(sorted(labels), MAX_CLASSES)


def _shards_for_rest(manifest: Manifest, spread: list[Shard], labels: list[int]) -> list[Shard]:
    """Further shards, each the one that has most of what is still missing of the examples to show."""
    missing = Counter(dict.fromkeys(labels, MAX_PER_CLASS))
    for shard in spread:
        missing -= Counter(shard.num_per_class)

    def gain(shard: Shard) -> int:
        return sum(min(num, shard.num_per_class.get(label, 0)) for label, num in missing.items())

    others = [shard for shard in manifest.shards if shard not in spread]
    chosen: list[Shard] = []
    while others and len(chosen) < MAX_SHARDS - len(spread) and gain(best := max(others, key=gain)):
        others.remove(best)
        chosen.append(best)
        missing -= Counter(best.num_per_class)
    return chosen


def _picture(pixels_CHW: NDArray[np.uint8], path: str, limit_px: int) -> Picture:
    image = Image.fromarray(pixels_CHW[0] if len(pixels_CHW) == 1 else pixels_CHW.transpose(1, 2, 0))
    image.thumbnail((limit_px, limit_px), Image.Resampling.BOX)
    kind = "png" if max(image.size) <= PNG_PX else "jpeg"
    stream = io.BytesIO()
    image.save(stream, kind, quality=75)
    data_uri = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Picture(data_uri, path, *image.size)
