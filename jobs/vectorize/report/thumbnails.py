"""The pictures of a report: examples of classes and mean images, from a bounded number of rows and shards.

Shapes: N examples, S shards, K classes, C channels, H and W pixels.
"""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from shardmean.model.images.decoder import encode_png

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
    """An image file (PNG where small, else JPEG) for a page, and the path of the image that it was made of."""

    data: bytes
    path: str
    width_px: int
    height_px: int

    @property
    def media_type(self) -> str:
        """What the bytes are."""
        return "image/png" if self.data.startswith(b"\x89PNG") else "image/jpeg"


@dataclass(frozen=True)
class ClassPictures:
    """Examples of one class, and their mean over `num_mean` examples where those are enough."""

    name: str
    examples: list[Picture]
    mean: Picture | None
    num_mean: int


@dataclass(frozen=True)
class Pictures:
    """The pictures, and what they were drawn from: `num_read` examples of `num_shards` shards."""

    mean: Picture | None
    num_mean: int
    classes: list[ClassPictures]
    num_read: int
    num_shards: int


@dataclass
class _Sum:
    """Pixels added up. An array only once there is something in it."""

    pixels_CHW: NDArray[np.uint64] | None = None
    num: int = 0

    def add(self, features_NCHW: NDArray[np.uint8]) -> None:
        if len(features_NCHW):
            total = features_NCHW.sum(axis=0, dtype=np.uint64)
            self.pixels_CHW = total if self.pixels_CHW is None else self.pixels_CHW + total
            self.num += len(features_NCHW)

    def picture(self, limit_px: int) -> Picture | None:
        if self.pixels_CHW is None:
            return None
        mean_CHW = ((self.pixels_CHW + self.num // 2) // self.num).astype(np.uint8)
        return _picture(mean_CHW, f"mean of {self.num:,} examples", limit_px)


@dataclass
class _Collector:
    """What is gathered while examples go by: for each class the examples of the smallest ids, and sums."""

    manifest: Manifest
    labels: list[int]
    best: defaultdict[int, dict[str, tuple[NDArray[np.uint8], str]]] = field(default_factory=lambda: defaultdict(dict))
    mean: _Sum = field(default_factory=_Sum)
    class_means: defaultdict[int, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    num_read: int = 0

    def add(self, examples: Examples, num_mean: int) -> None:
        """Add some examples; the first `num_mean` count for the means."""
        self.num_read += len(examples.labels_N)
        self.mean.add(examples.features_NCHW[:num_mean])
        for label in self.labels:
            rows_N = np.flatnonzero(examples.labels_N == label)
            self._keep(label, rows_N, examples)
            if self.manifest.image.example_bytes <= MAX_CLASS_MEAN_BYTES:
                rows_N = rows_N[rows_N < num_mean]
                self.class_means[label].add(examples.features_NCHW[rows_N])

    def _keep(self, label: int, rows_N: NDArray[np.int64], examples: Examples) -> None:
        kept = self.best[label]
        for row in sorted(rows_N.tolist(), key=examples.ids.__getitem__)[:MAX_PER_CLASS]:
            kept[examples.ids[row]] = (examples.features_NCHW[row].copy(), examples.paths[row])
        for example_id in sorted(kept)[MAX_PER_CLASS:]:
            del kept[example_id]

    def pictures(self, label: int) -> ClassPictures:
        examples = [_picture(*picture, THUMBNAIL_PX) for _, picture in sorted(self.best[label].items())]
        total = self.class_means[label]
        mean = total.picture(THUMBNAIL_PX) if total.num >= MIN_CLASS_MEAN else None
        return ClassPictures(self.manifest.class_names[label], examples, mean, total.num)


def draw(dataset: Dataset) -> Pictures:
    """Read at most 16 shards and about 256 MiB of examples. Raises RetryableError for a damaged shard."""
    manifest = dataset.manifest
    spread = _spread(manifest.shards_of("train"), MAX_SHARDS // 2)
    labels = _labels(manifest, spread)
    shards = spread + _shards_for_rest(manifest, spread, labels)
    collector = _Collector(manifest, labels)
    step = max(1, WINDOW_BYTES // manifest.image.example_bytes)
    rows_a_shard = max(1, MAX_READ_BYTES // len(shards) // manifest.image.example_bytes)
    for number, shard in enumerate(shards):
        # What one shard is short of, the next ones make up for.
        left = max(0, len(spread) - number)
        wanted = -(-(MAX_MEAN_EXAMPLES - collector.mean.num) // left) if left else 0
        num_rows = min(rows_a_shard, shard.num_examples)
        for first in range(0, num_rows, step):
            examples = dataset.read(shard, first, min(first + step, num_rows))
            num_mean = min(wanted, len(examples.labels_N))
            collector.add(examples, num_mean)
            wanted -= num_mean
    classes = [collector.pictures(label) for label in labels]
    return Pictures(
        mean=collector.mean.picture(MEAN_PX),
        num_mean=collector.mean.num,
        classes=[one for one in classes if one.examples],
        num_read=collector.num_read,
        num_shards=len(shards),
    )


def _spread(items: list[T], limit: int) -> list[T]:
    """At most `limit` items of a list, evenly spaced."""
    return [items[number * len(items) // limit] for number in range(limit)] if len(items) > limit else items


def _labels(manifest: Manifest, spread: list[Shard]) -> list[int]:
    """The classes to show: all, or evenly spaced ones of those that the given shards hold."""
    labels = _labels_in(manifest.shards)
    if len(labels) > MAX_CLASSES:
        labels = _labels_in(spread) or labels
    return _spread(labels, MAX_CLASSES)


def _labels_in(shards: list[Shard]) -> list[int]:
    return sorted({label for shard in shards for label in shard.num_per_class})


def _shards_for_rest(manifest: Manifest, spread: list[Shard], labels: list[int]) -> list[Shard]:
    """Further shards, each the one that has most of what is still missing of the examples to show."""
    names = {shard.name for shard in spread}
    others = [shard for shard in manifest.shards if shard.name not in names]

    def counts_of(shard: Shard) -> list[int]:
        return [shard.num_per_class.get(label, 0) for label in labels]

    counts_SK = np.array([counts_of(shard) for shard in others], dtype=np.int64)
    missing_K = MAX_PER_CLASS - np.array([counts_of(shard) for shard in spread], np.int64).sum(axis=0)
    chosen: list[Shard] = []
    while len(chosen) < min(len(others), MAX_SHARDS - len(spread)):
        gains_S = np.minimum(counts_SK, missing_K.clip(0)).sum(axis=1)
        best = int(gains_S.argmax())
        if gains_S[best] == 0:
            break
        chosen.append(others[best])
        missing_K -= counts_SK[best]
        counts_SK[best] = 0
    return chosen


def _picture(pixels_CHW: NDArray[np.uint8], path: str, limit_px: int) -> Picture:
    _, height, width = pixels_CHW.shape
    if max(height, width) <= PNG_PX:
        return Picture(encode_png(pixels_CHW), path, width, height)
    pixels = pixels_CHW[0] if len(pixels_CHW) == 1 else np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0))
    image = Image.fromarray(pixels)
    image.thumbnail((limit_px, limit_px), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75)
    return Picture(stream.getvalue(), path, *image.size)
