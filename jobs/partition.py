"""What one ETL task does: read its images, decode them, write its shards. A pure function of its items."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jobs.sources import Item, read_item
from model.errors import ImageRejectedError, UserError, WorldError
from model.images import decode
from model.shards import ShardWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from jobs.config import VectorizeJob
    from model.config import SplitConfig
    from model.manifest import Shard, Split

HASH_BYTES = 16


@dataclass(frozen=True)
class Rejected:
    """One image that became no example, and why."""

    path: str
    reason: str
    detail: str
    size_bytes: int


@dataclass
class Moments:
    """Exact sums over the training split's pixels, per channel; they merge by addition."""

    num_values: int = 0
    sums: list[int] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)

    def add(self, other: Moments) -> None:
        """Add another's sums to this one's."""
        if not other.sums:
            return
        self.num_values += other.num_values
        self.sums = [a + b for a, b in zip(self.sums or [0] * len(other.sums), other.sums, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares or [0] * len(other.squares), other.squares, strict=True)]

    def add_pixels(self, pixels_CHW: NDArray[np.uint8]) -> None:
        """Add one image's values."""
        wide_CN = pixels_CHW.reshape(pixels_CHW.shape[0], -1).astype(np.uint32)
        sums, squares = wide_CN.sum(axis=1).tolist(), (wide_CN * wide_CN).sum(axis=1).tolist()
        self.add(Moments(wide_CN.shape[1], sums, squares))

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Mean and (population) standard deviation per channel, of values divided by 255."""
        means = [s / self.num_values for s in self.sums]
        variances = [
            (self.num_values * q - s * s) / self.num_values**2 for s, q in zip(self.sums, self.squares, strict=True)
        ]
        return [mean / 255 for mean in means], [float(variance**0.5) / 255 for variance in variances]


@dataclass(frozen=True)
class PartitionReport:
    """What became of a partition's items. `hashes` has a row of 16 bytes per accepted item, `rows` its place."""

    index: int
    shards: list[Shard]
    rejected: list[Rejected]
    moments: Moments
    hashes: NDArray[np.uint8]
    rows: NDArray[np.int64]
    error: str | None = None


def vectorize_partition(
    index: int, items: Sequence[Item], job: VectorizeJob, class_names: Sequence[str], conflicting: frozenset[str]
) -> PartitionReport:
    """Make one partition's shards. `conflicting` names paths whose bytes stand in another class too: rejected."""
    labels = {name: number for number, name in enumerate(class_names)}
    writer = ShardWriter(job.dataset_uri, num_classes=len(class_names), shard_bytes=job.shard_bytes)
    rejected, hashes, rows, moments = [], [], [], Moments()
    try:
        for row, item in enumerate(items):
            try:
                content = _read(item, conflicting)
                pixels_CHW = decode(content, job.image)
            except ImageRejectedError as error:
                rejected.append(Rejected(item.path, error.reason, error.detail, item.size_bytes))
                continue
            content_hash = hashlib.blake2b(content, digest_size=HASH_BYTES).digest()
            split = split_of(content_hash, job.split)
            writer.add(split, pixels_CHW, labels[item.class_name], example_id(content_hash, item.path), item.path)
            hashes.append(content_hash)
            rows.append(row)
            if split == "train":
                moments.add_pixels(pixels_CHW)
        shards = writer.close()
    except (WorldError, UserError) as error:
        return PartitionReport(index, [], [], Moments(), _hash_rows([]), np.zeros(0, np.int64), str(error))
    return PartitionReport(index, shards, rejected, moments, _hash_rows(hashes), np.array(rows, np.int64))


def split_of(content_hash: bytes, config: SplitConfig) -> Split:
    """The split of an image: by its bytes and the seed alone, so copies share it and it stays when others come."""
    salted = hashlib.blake2b(content_hash, digest_size=8, salt=config.seed.to_bytes(8, "big")).digest()
    place = int.from_bytes(salted, "big") / 2**64
    if place < config.train:
        return "train"
    return "validation" if place < config.train + config.validation else "test"


def example_id(content_hash: bytes, path: str) -> str:
    """Unique name of an example: the hash of its bytes, then of its path, so that copies differ and can be seen."""
    return f"{content_hash.hex()}-{hashlib.blake2b(path.encode(errors='surrogateescape'), digest_size=4).hexdigest()}"


def _read(item: Item, conflicting: frozenset[str]) -> bytes:
    if item.path in conflicting:
        raise ImageRejectedError("conflicting_labels", "the same bytes stand in another class too")
    try:
        return read_item(item)
    except FileNotFoundError:
        raise ImageRejectedError("vanished", "the file was there when the source was listed") from None
    except WorldError as error:
        if isinstance(error.__cause__, PermissionError):
            raise ImageRejectedError("no_permission", "the file may not be read") from error
        raise


def _hash_rows(hashes: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES)
