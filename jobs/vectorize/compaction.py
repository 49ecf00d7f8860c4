"""Shards made of shards: without examples that are gone, moved to other splits, or merged where they are small.

Shapes: N images of the source. Shards are numbered; an image that is no example is in shard -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardmean.model.dataset.manifest import SPLITS
from shardmean.model.dataset.shard import read_shard
from shardmean.model.dataset.shard_writer import write_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.model.dataset.manifest import Shard

MAX_SMALL = 4  # small shards of a split that are left alone
# A shard is small below this share of a whole one, or of what a task makes at most. The shares of validation and test
# in a task's images lie above it, so that a first run writes nothing twice, unless large files make its tasks small.
SMALL = 1 / 16


@dataclass(frozen=True)
class RewriteTask:
    """Shards of one split to make new ones of, and for each the rows that stay: path, split code, label, place."""

    shards: list[Shard]
    wanted: list[pa.Table]


@dataclass(frozen=True)
class RewriteReport:
    """New shards, and for each the places (in the source) of its examples."""

    shards: list[Shard]
    places: list[NDArray[np.int64]]


def rewrite(task: RewriteTask, job: VectorizeJob) -> RewriteReport:
    """Read shards, and write their wanted rows to shards of the right splits. Raises RetryableError."""
    parts, facts = [], []
    for shard, wanted in zip(task.shards, task.wanted, strict=True):
        rows = read_shard(job.dataset_uri, shard)
        # Of a shard's rows, unlike of a whole source's, the paths are no column of a large type.
        found = pc.index_in(rows["path"], value_set=wanted["path"].cast(pa.string()).combine_chunks())
        is_wanted = pc.is_valid(found)
        parts.append(rows.filter(is_wanted))
        facts.append(wanted.take(found.filter(is_wanted)))
        assert facts[-1].num_rows == wanted.num_rows, "every wanted example is in its shard, once"
    table, fact = pa.concat_tables(parts), pa.concat_tables(facts)
    table = table.set_column(1, table.schema.field("label"), fact["label"])
    report = RewriteReport([], [])
    rows_per_shard = max(1, job.shard_bytes // job.image.example_bytes)
    codes, places = fact["split"].to_numpy(), fact["place"].to_numpy()
    for code, split in enumerate(SPLITS):
        mine = np.flatnonzero(codes == code)
        for first in range(0, len(mine), rows_per_shard):
            chosen = mine[first : first + rows_per_shard]
            part = table.take(pa.array(chosen))
            report.shards.append(write_shard(job.dataset_uri, split, part, shape=job.image.shape))
            report.places.append(places[chosen])
    return report


def renumbered(shards: Mapping[int, Shard], before: Sequence[str], now: Sequence[str]) -> list[int]:
    """Numbers of the shards whose labels, places in `before`, are other places in `now`."""
    places = {name: place for place, name in enumerate(now)}
    to = [places.get(name, -1) for name in before]
    return [number for number, shard in shards.items() if any(to[label] != label for label in shard.num_per_class)]


def plan_rewrites(
    shards: Mapping[int, Shard],
    shard_N: NDArray[np.int32],
    wanted: pa.Table,
    is_stale: Sequence[int],
    *,
    rows_per_shard: int,
    rows_per_task: int,
) -> list[RewriteTask]:
    """What must be rewritten; `wanted` has a row for each image: path, split code, label, place.

    Shards that hold an example which is gone or belongs to another split, those in `is_stale`, and small ones where a
    split has more than MAX_SMALL of them. Depends on what is in the shards alone, not on when they were written.
    """
    codes_N = wanted["split"].to_numpy()
    order = np.argsort(shard_N, kind="stable")
    numbers = sorted(shards)
    starts, ends = (np.searchsorted(shard_N[order], numbers, side) for side in ("left", "right"))
    rows = {number: order[start:end] for number, start, end in zip(numbers, starts, ends, strict=True)}
    stale = set(is_stale)
    chosen: dict[str, list[int]] = {split: [] for split in SPLITS}
    for code, split in enumerate(SPLITS):
        mine = [number for number in numbers if shards[number].split == split]
        mine.sort(key=lambda number: shards[number].name)
        dirty = {
            number
            for number in mine
            if number in stale
            or len(rows[number]) < shards[number].num_examples
            or (codes_N[rows[number]] != code).any()
        }
        small = [number for number in mine if len(rows[number]) < SMALL * min(rows_per_shard, rows_per_task)]
        chosen[split] = [n for n in mine if n in dirty or (len(small) > MAX_SMALL and n in small)]
    return [
        RewriteTask([shards[n] for n in numbers], [wanted.take(pa.array(rows[n])) for n in numbers])
        for split in SPLITS
        for numbers in _bins(chosen[split], {n: len(rows[n]) for n in chosen[split]}, rows_per_shard)
    ]


def _bins(numbers: Sequence[int], num_rows: Mapping[int, int], rows_per_bin: int) -> Iterator[list[int]]:
    """Shards in lots of a whole shard at most; a large one is a lot of its own."""
    lot: list[int] = []
    for number in sorted(numbers, key=lambda n: 2 * num_rows[n] < rows_per_bin):
        if lot and sum(num_rows[n] for n in lot) + num_rows[number] > rows_per_bin:
            yield lot
            lot = []
        lot.append(number)
    if lot:
        yield lot
