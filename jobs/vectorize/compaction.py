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
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.model.dataset.manifest import Shard

MAX_SMALL = 4  # small shards of a split that are left alone
# A shard is small below this share of a whole one, or of what a task makes at most. The shares of validation and test
# in a task's images lie above it, so that a first run writes nothing twice, unless large files make its tasks small.
SMALL = 1 / 16


@dataclass(frozen=True)
class RewriteTask:
    """Shards of one split to make new ones of, and for each the rows that stay: path, split code, label, position."""

    shards: list[Shard]
    wanted: list[pa.Table]


@dataclass(frozen=True)
class RewriteReport:
    """New shards, and for each the positions (in the source) of its examples."""

    shards: list[Shard]
    positions: list[NDArray[np.int64]]


def rewrite(task: RewriteTask, job: VectorizeJob) -> RewriteReport:
    """Read shards, and write their wanted rows to shards of the right splits. Raises RetryableError."""
    parts, facts = [], []
    for shard, wanted in zip(task.shards, task.wanted, strict=True):
        rows = read_shard(job.dataset_uri, shard)
        # Of a shard's rows, unlike of a whole source's, the paths are no column of a large type.
        wanted_rows = pc.index_in(rows["path"], value_set=wanted["path"].cast(pa.string()).combine_chunks())
        is_wanted = pc.is_valid(wanted_rows)
        parts.append(rows.filter(is_wanted))
        facts.append(wanted.take(wanted_rows.filter(is_wanted)))
        assert facts[-1].num_rows == wanted.num_rows, "every wanted example is in its shard, once"
    table, fact = pa.concat_tables(parts), pa.concat_tables(facts)
    table = table.set_column(1, table.schema.field("label"), fact["label"])
    report = RewriteReport([], [])
    rows_per_shard = max(1, job.shard_bytes // job.image.example_bytes)
    codes, positions = fact["split"].to_numpy(), fact["position"].to_numpy()
    for code, split in enumerate(SPLITS):
        mine = np.flatnonzero(codes == code)
        for first in range(0, len(mine), rows_per_shard):
            chosen = mine[first : first + rows_per_shard]
            part = table.take(pa.array(chosen))
            report.shards.append(write_shard(job.dataset_uri, split, part, shape=job.image.shape))
            report.positions.append(positions[chosen])
    return report


def renumbered(shards: Mapping[int, Shard], before: Sequence[str], now: Sequence[str]) -> set[int]:
    """Numbers of the shards that hold a class whose label was another in the last version."""
    labels = {name: label for label, name in enumerate(now)}
    is_same = [labels.get(name) == label for label, name in enumerate(before)]
    return {number for number, shard in shards.items() if not all(is_same[label] for label in shard.num_per_class)}


def plan_rewrites(
    shards: Mapping[int, Shard],
    shard_N: NDArray[np.int32],
    wanted: pa.Table,
    stale: Collection[int],
    *,
    rows_per_shard: int,
    rows_per_task: int,
) -> list[RewriteTask]:
    """What must be rewritten; `wanted` has a row for each image: path, split code, label, position.

    Shards that hold an example which is gone or belongs to another split, those in `stale`, and small ones where a
    split has more than MAX_SMALL of them. Depends on what is in the shards alone, not on when they were written.
    """
    codes_N = wanted["split"].to_numpy()
    order = np.argsort(shard_N, kind="stable")
    numbers = sorted(shards)
    starts, ends = (np.searchsorted(shard_N[order], numbers, side) for side in ("left", "right"))
    rows = {number: order[start:end] for number, start, end in zip(numbers, starts, ends, strict=True)}
    num_rows = {number: len(rows[number]) for number in numbers}
    tasks: list[RewriteTask] = []
    for code, split in enumerate(SPLITS):
        mine = sorted((n for n in numbers if shards[n].split == split), key=lambda n: shards[n].name)
        dirty = {
            n for n in mine if n in stale or num_rows[n] < shards[n].num_examples or (codes_N[rows[n]] != code).any()
        }
        small = {n for n in mine if num_rows[n] < SMALL * min(rows_per_shard, rows_per_task)}
        chosen = dirty | small if len(small) > MAX_SMALL else dirty
        tasks += [
            RewriteTask([shards[n] for n in group], [wanted.take(pa.array(rows[n])) for n in group])
            for group in _groups([n for n in mine if n in chosen], num_rows, rows_per_shard)
        ]
    return tasks


def _groups(numbers: Sequence[int], num_rows: Mapping[int, int], max_rows: int) -> Iterator[list[int]]:
    """Shards in groups of a whole shard at most; a large one is a group of its own."""
    group: list[int] = []
    for number in sorted(numbers, key=lambda n: 2 * num_rows[n] < max_rows):
        if group and sum(num_rows[n] for n in [*group, number]) > max_rows:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
