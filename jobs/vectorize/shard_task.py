"""What one ETL task does: read its images, decode them, write its shards. A pure function of its items."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from shardmean.jobs.vectorize.index.duplicates import HASH_BYTES
from shardmean.jobs.vectorize.index.split_assignment import split_code
from shardmean.jobs.vectorize.index.table import INDEX, REMEMBERED
from shardmean.jobs.vectorize.source.items import path_hashes
from shardmean.jobs.vectorize.source.reader import read_ahead
from shardmean.model.dataset.manifest import SPLITS
from shardmean.model.dataset.shard import one_chunk
from shardmean.model.dataset.shard_writer import ShardWriter
from shardmean.model.errors import ImageRejectedError
from shardmean.model.images.decoder import decode_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.jobs.vectorize.source.items import Item, Items
    from shardmean.model.dataset.manifest import Shard

MAX_PARTITION_ITEMS = 4096
# What a lost task costs, and the time between its signs of life: some seconds of decoding.
MAX_PARTITION_BYTES = 256 * 2**20
CORES = (64, 32, 16, 8, 4, 2, 1)
REPORT = pa.schema(
    [
        ("position", pa.int64()),
        ("shard_number", pa.int32()),
        ("is_same", pa.bool_()),
        *(INDEX.field(name) for name in REMEMBERED),
    ]
)


@dataclass(frozen=True)
class PartitionTask:
    """Items, and for each its position in the source, the hash of its last example's bytes, and its fixed split.

    An item whose bytes still have that hash is not decoded; None: it is decoded in any case. -1: no split is fixed.
    """

    items: Sequence[Item]
    positions: NDArray[np.int64]
    known: Sequence[bytes | None]
    fixed: NDArray[np.int8]


@dataclass(frozen=True)
class PartitionReport:
    """The shards of a task, and a row for each of its items: see REPORT. `shard_number` counts among `shards`."""

    shards: list[Shard]
    rows: pa.Table

    @property
    def num_rejected(self) -> int:
        """Items that became no example."""
        num_accepted = int(self.rows["reason"].null_count)
        return int(self.rows.num_rows) - num_accepted


def plan_tasks(
    items: Items, is_read_N: NDArray[np.bool_], known: pa.Array, fixed_N: NDArray[np.int8], *, rows_per_shard: int
) -> list[PartitionTask]:
    """The tasks that read some of a source's items. They depend on the source alone.

    `known` has the hash of each item's last example, null where it is to be decoded in any case; `fixed_N` the split
    that does not depend on its bytes.
    """
    positions = np.flatnonzero(is_read_N)
    # In the order of a hash, classes are mixed in every shard.
    high, low = path_hashes(one_chunk(items.table["path"]).take(pa.array(positions)))
    positions = positions[np.lexsort((low, high))]
    sizes_bytes = items.table["size_bytes"].to_numpy()[positions]
    parts = partitions(sizes_bytes, num_items=max(1, min(rows_per_shard, MAX_PARTITION_ITEMS)))
    return [
        PartitionTask(items.take(mine), mine, known.take(pa.array(mine)).to_pylist(), fixed_N[mine])
        for mine in (positions[part] for part in parts)
    ]


def partitions(sizes_bytes_N: NDArray[np.int64], *, num_items: int) -> Iterator[slice]:
    """The items of each task: `num_items` at most, of files of MAX_PARTITION_BYTES at most (or one file).

    All have about as many, but for a rest where files are large. Where one task more, or an eighth more, make it so,
    their number is a multiple of a power of two, as that of cores often is, so that these end at about the same time;
    tasks may not depend on the cores themselves.
    """
    fewest = max(1, sum(1 for _ in _filled(sizes_bytes_N, num_items)))
    multiples = (ceil(fewest / cores) * cores for cores in CORES)
    most = fewest + max(fewest // 8, 1 if fewest > 1 else 0)
    num_tasks = next(num for num in multiples if num <= most)
    return _filled(sizes_bytes_N, ceil(len(sizes_bytes_N) / num_tasks))


def _filled(sizes_bytes_N: NDArray[np.int64], num_items: int) -> Iterator[slice]:
    ends_N = np.cumsum(sizes_bytes_N)
    first = before_bytes = 0
    while first < len(ends_N):
        end = int(np.searchsorted(ends_N, before_bytes + MAX_PARTITION_BYTES, side="right"))
        end = min(max(end, first + 1), first + num_items, len(ends_N))
        yield slice(first, end)
        first, before_bytes = end, int(ends_N[end - 1])


def vectorize_partition(task: PartitionTask, job: VectorizeJob, class_names: Sequence[str]) -> PartitionReport:
    """Make one partition's shards. Raises UserError and RetryableError when what it needs can't be read or written."""
    contents = zip(task.items, read_ahead(task.items, job.image), strict=True)
    with ShardBuilder(task, job, class_names) as builder:
        for number, (item, content) in enumerate(contents):
            try:
                if isinstance(content, Exception):
                    raise content
                builder.add(number, item, content)
            except ImageRejectedError as error:
                builder.rows[number] |= {"reason": error.reason, "detail": error.detail}
        shards = builder.publish()
    return PartitionReport(shards, pa.Table.from_pylist(builder.rows, schema=REPORT))


class ShardBuilder(ExitStack):
    """Makes examples of a task's items: a shard of each split that has some. `rows` has what is known of each item."""

    def __init__(self, task: PartitionTask, job: VectorizeJob, class_names: Sequence[str]) -> None:
        super().__init__()
        self._task = task
        self._job = job
        self._labels = {name: label for label, name in enumerate(class_names)}
        self._shards: dict[int, ShardWriter] = {}
        self._codes = np.full(len(task.items), -1)
        self.rows: list[dict[str, Any]] = [
            {"position": position, "shard_number": -1, "is_same": False} for position in task.positions.tolist()
        ]

    def add(self, number: int, item: Item, content: bytes) -> None:
        """Make an example of an item's bytes, unless they are known. Raises ImageRejectedError."""
        row = self.rows[number]
        row["content_hash"] = content_hash = blake3(content).digest(length=HASH_BYTES)
        row["is_same"] = content_hash == self._task.known[number]
        if row["is_same"]:
            return
        decoded = decode_image(content, self._job.image)
        row |= {"width": decoded.width_px, "height": decoded.height_px, "has_more_frames": decoded.has_more_frames}
        self._codes[number] = code = self._first_split(number, content_hash)
        if code not in self._shards:
            writer = ShardWriter(
                self._job.dataset_uri,
                SPLITS[code],
                shape=self._job.image.shape,
                extra_columns=self._job.source.extra_columns,
            )
            self._shards[code] = self.enter_context(writer)
        label, example = self._labels[item.class_name], example_id(content_hash, item.path)
        self._shards[code].add(decoded.pixels_CHW, label, example, item.path, item.extra)

    def _first_split(self, number: int, content_hash: bytes) -> int:
        """Where an example is until all are known: most stay there."""
        code = int(self._task.fixed[number])
        if code < 0:
            code = split_code(content_hash, self._job.split) if self._job.split.method == "random" else 0
        return code

    def publish(self) -> list[Shard]:
        """Publish the shards. Raises RetryableError."""
        codes = sorted(self._shards)
        for row, code in zip(self.rows, self._codes.tolist(), strict=True):
            row["shard_number"] = codes.index(code) if code >= 0 else -1
        return [self._shards[code].publish() for code in codes]


def example_id(content_hash: bytes, path: str) -> str:
    """Unique name of an example: the hash of its bytes, then of its path, so that copies differ and can be seen."""
    return f"{content_hash.hex()}-{hashlib.blake2b(path.encode(errors='surrogateescape'), digest_size=8).hexdigest()}"
