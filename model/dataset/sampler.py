"""The plan of an epoch: which worker reads which rows, in which order, and how many examples each round holds.

A pure function of (shards, workers, batch size, seed, epoch, buffer): every process computes the same one, so nothing
about it is ever sent. Every row is in exactly one minibatch of exactly one worker, and two workers' loads differ by at
most one minibatch. The number of workers that an epoch begins with decides which rows share a minibatch; when it
changes within the epoch (a machine was lost), the minibatches that are left are reassigned as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ..errors import UserError
from .epoch_layout import (
    PLAN_VERSION,
    EpochLayout,
    Part,
    ShardRows,
    Window,
    in_order,
    piece_rows,
    spread_pieces,
    whole_shards,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Stage(NamedTuple):
    """A part of an epoch by one number of workers: how many there were, and the rounds they have done."""

    num_workers: int
    num_rounds: int


@dataclass(frozen=True)
class EpochPlan:
    """What each worker of a stage is assigned: parts of the epoch's layout, in its order.

    `num_before` counts the examples of earlier stages.
    """

    layout: EpochLayout
    assignments: tuple[tuple[Part, ...], ...]
    frequency: int | Literal["epoch"]
    num_before: int = 0

    @property
    def num_workers(self) -> int:
        """Workers of this stage."""
        return len(self.assignments)

    @property
    def num_rounds(self) -> int:
        """Rounds until the last worker has no minibatch left."""
        return -(-self.num_steps // self.minibatches_per_round)

    @property
    def minibatches_per_round(self) -> int:
        """Minibatches of each worker in every round but perhaps the last."""
        return max(1, self.num_steps if self.frequency == "epoch" else min(self.frequency, self.num_steps))

    @cached_property
    def num_steps(self) -> int:
        """Minibatches of the worker that has most."""
        return max(self.num_minibatches(rank) for rank in range(self.num_workers))

    def num_minibatches(self, rank: int) -> int:
        """Optimizer steps of one worker in this stage."""
        return sum(part.stop - part.start for part in self.assignments[rank])

    def examples_in_round(self, rank: int, round_index: int) -> int:
        """Examples that one worker sees in one round; 0 when it has none left."""
        start = round_index * self.minibatches_per_round
        return self._examples_between(rank, start, start + self.minibatches_per_round)

    def examples_in_step(self, rank: int, step: int) -> int:
        """Examples of one worker's minibatch number `step`; 0 when it has none left."""
        return self._examples_between(rank, step, step + 1)

    def examples_after(self, num_steps: int) -> int:
        """Examples of the epoch seen by all workers together when each has taken `num_steps` steps of this stage."""
        return self.num_before + sum(self._examples_between(rank, 0, num_steps) for rank in range(self.num_workers))

    def _examples_between(self, rank: int, start: int, stop: int) -> int:
        return sum(self.layout.num_examples(part) for part in _cut(self.assignments[rank], start, stop))

    def windows(self, rank: int, *, first_step: int = 0, stop_step: int | None = None) -> Iterator[Window]:
        """What one worker reads for its minibatches from `first_step` on, window by window."""
        stop = self.num_minibatches(rank) if stop_step is None else stop_step
        for part in _cut(self.assignments[rank], first_step, stop):
            yield from self.layout.windows(part)

    def reassigned(self, num_rounds: int, num_workers: int) -> EpochPlan:
        """The plan of the next stage: what is left after `num_rounds` rounds, assigned to `num_workers` workers."""
        done = num_rounds * self.minibatches_per_round
        left = [part for parts in self.assignments for part in _cut(parts, done, 2**62)]
        num_left = sum(part.stop - part.start for part in left)
        bounds = [rank * num_left // num_workers for rank in range(num_workers + 1)]
        assignments = tuple(_cut(left, start, stop) for start, stop in pairwise(bounds))
        return replace(self, assignments=assignments, num_before=self.examples_after(done))


def _cut(parts: Sequence[Part], start: int, stop: int) -> tuple[Part, ...]:
    """The minibatches with numbers `start` to `stop` of some parts laid end to end."""
    found, first = [], 0
    for part in parts:
        size = part.stop - part.start
        inside = Part(part.share, part.start + max(0, start - first), part.start + min(size, stop - first))
        if inside.start < inside.stop:
            found.append(inside)
        first += size
    return tuple(found)


def plan_epoch(
    shards: ShardRows,
    *,
    num_workers: int,
    batch_size: int,
    frequency: int | Literal["epoch"],
    seed: int,
    epoch: int,
    buffer_rows: int,
    example_bytes: int = 1,
    mixed_batch: int | None = None,
    earlier: Sequence[Stage] = (),
    version: int = PLAN_VERSION,
) -> EpochPlan:
    """Assign an epoch's rows to the workers; those within `buffer_rows` of the sequence are mixed.

    `mixed_batch` is the size of minibatches that mix well, `batch_size` unless given. `earlier` are the epoch's stages
    that other numbers of workers have done; the plan is of what they left. `version` is that by which the epoch began.
    Raises UserError when there are fewer minibatches than workers.
    """
    num_rows = sum(shards.rows_per_shard)
    num_minibatches = -(-num_rows // batch_size)
    if num_minibatches < num_workers:
        raise UserError(
            f"num_workers is {num_workers}, but {num_rows} training examples make only {num_minibatches} "
            f"minibatches of {batch_size}: lower num_workers or batch_size_per_worker, or add images"
        )
    window_rows = max(1, buffer_rows // batch_size) * batch_size
    if version == 1:
        pieces_P3 = whole_shards(shards.rows_per_shard, seed, epoch)
    else:
        num_rows_per_piece = piece_rows(num_rows, window_rows, mixed_batch or batch_size, example_bytes)
        pieces_P3 = spread_pieces(shards, num_rows_per_piece, seed, epoch)
    layout = EpochLayout(
        pieces_P3,
        bounds=_bounds(num_rows, earlier[0].num_workers if earlier else num_workers, batch_size),
        batch_size=batch_size,
        window_rows=window_rows,
        seeds=(seed, epoch),
    )
    plan = EpochPlan(layout, _all_parts(layout), frequency)
    followers = [stage.num_workers for stage in earlier[1:]] + [num_workers]
    for stage, next_workers in zip(earlier, followers, strict=bool(earlier)):
        plan = plan.reassigned(stage.num_rounds, next_workers)
    return plan


def plan_evaluation(
    rows_per_shard: Sequence[int], *, num_workers: int, batch_size: int, window_batches: int = 1
) -> EpochPlan:
    """Assign all rows once, in their order, with so many minibatches in a window; a worker may have none."""
    layout = EpochLayout(
        in_order(np.array(rows_per_shard, np.int64), np.arange(len(rows_per_shard))),
        bounds=_bounds(sum(rows_per_shard), num_workers, batch_size),
        batch_size=batch_size,
        window_rows=window_batches * batch_size,
        seeds=None,
    )
    return EpochPlan(layout, _all_parts(layout), "epoch")


def _all_parts(layout: EpochLayout) -> tuple[tuple[Part, ...], ...]:
    sizes = (stop - start for start, stop in pairwise(layout.bounds))
    return tuple((Part(share, 0, -(-size // layout.batch_size)),) for share, size in enumerate(sizes))


def _bounds(num_rows: int, num_workers: int, batch_size: int) -> tuple[int, ...]:
    num_minibatches = -(-num_rows // batch_size)
    bounds = (batch_size * (rank * num_minibatches // num_workers) for rank in range(num_workers + 1))
    return tuple(min(num_rows, bound) for bound in bounds)
