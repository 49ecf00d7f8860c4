"""The plan of an epoch: which worker reads which rows, in which order, and how many examples each round holds.

A pure function of (rows per shard, workers, batch size, seed, epoch, buffer): every process computes the same one,
so nothing about it is ever sent. Every row is in exactly one minibatch of exactly one worker, and two workers' loads
differ by at most one minibatch. The number of workers that an epoch begins with decides which rows share a minibatch;
when it changes in the middle (a machine was lost), the minibatches that are left are dealt anew, as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_SHARD_ORDER, _ROW_ORDER = 0, 1


class Stage(NamedTuple):
    """A part of an epoch by one number of workers: how many there were, and the rounds they have done."""

    num_workers: int
    num_rounds: int


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop` of the shard with number `shard_index`."""

    shard_index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Rows that one worker holds in memory together, and the order in which it trains on them (or on some of them)."""

    ranges: list[RowRange]
    order: NDArray[np.int64]


@dataclass(frozen=True)
class EpochLayout:
    """All rows of an epoch in one sequence, cut into minibatches. `bounds[d]` to `bounds[d + 1]` are deal d's places.

    The sequence is that of the shards in their order, turned by `shift` rows, so that windows change with the epoch.
    Only the last deal's last minibatch can be short.
    """

    rows_per_shard: tuple[int, ...]
    shard_order: tuple[int, ...]
    shift: int
    bounds: tuple[int, ...]
    batch_size: int
    window_rows: int
    seeds: tuple[int, int] | None

    def num_examples(self, part: Part) -> int:
        """Examples in some of a deal's minibatches."""
        num_rows = self.bounds[part.deal + 1] - self.bounds[part.deal]
        return min(part.stop * self.batch_size, num_rows) - min(part.start * self.batch_size, num_rows)

    def windows(self, part: Part) -> Iterator[Window]:
        """What reading some of a deal's minibatches takes, window by window; all but the last hold whole ones."""
        first, end = self.bounds[part.deal], self.bounds[part.deal + 1]
        for start in range(first, end, self.window_rows):
            stop = min(start + self.window_rows, end)
            wanted = slice(
                max(0, first + part.start * self.batch_size - start),
                min(stop, first + part.stop * self.batch_size) - start,
            )
            if wanted.start < wanted.stop:
                yield Window(self._turned_ranges(start, stop), self._order(start, stop - start)[wanted])

    def _turned_ranges(self, start: int, stop: int) -> list[RowRange]:
        num_rows = self.bounds[-1]
        first = (start + self.shift) % num_rows
        last = first + stop - start
        return self._ranges(first, min(last, num_rows)) + self._ranges(0, max(0, last - num_rows))

    def _ranges(self, start: int, stop: int) -> list[RowRange]:
        ranges, first = [], 0
        for index in self.shard_order:
            last = first + self.rows_per_shard[index]
            if first < stop and start < last:
                ranges.append(RowRange(index, max(start, first) - first, min(stop, last) - first))
            first = last
        return ranges

    def _order(self, start: int, num_rows: int) -> NDArray[np.int64]:
        if self.seeds is None:
            return np.arange(num_rows)
        return np.random.default_rng([*self.seeds, _ROW_ORDER, start]).permutation(num_rows)


class Part(NamedTuple):
    """Minibatches `start` to `stop` of deal `deal`."""

    deal: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochPlan:
    """What each worker of a leg has in hand: parts of the epoch's dealing, in its order.

    `num_before` counts the examples of earlier legs.
    """

    layout: EpochLayout
    assignments: tuple[tuple[Part, ...], ...]
    frequency: int | Literal["epoch"]
    num_before: int = 0

    @property
    def num_workers(self) -> int:
        """Workers of this leg."""
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

    def num_examples(self, rank: int) -> int:
        """Examples of one worker in this leg."""
        return sum(self.layout.num_examples(part) for part in self.assignments[rank])

    def num_minibatches(self, rank: int) -> int:
        """Optimizer steps of one worker in this leg."""
        return sum(part.stop - part.start for part in self.assignments[rank])

    def examples_in_round(self, rank: int, round_index: int) -> int:
        """Examples that one worker sees in one round; 0 when it has none left."""
        start = round_index * self.minibatches_per_round
        return self._examples_between(rank, start, start + self.minibatches_per_round)

    def examples_in_step(self, rank: int, step: int) -> int:
        """Examples of one worker's minibatch number `step`; 0 when it has none left."""
        return self._examples_between(rank, step, step + 1)

    def examples_after(self, num_steps: int) -> int:
        """Examples of the epoch seen by all workers together when each has taken `num_steps` steps of this leg."""
        return self.num_before + sum(self._examples_between(rank, 0, num_steps) for rank in range(self.num_workers))

    def _examples_between(self, rank: int, start: int, stop: int) -> int:
        return sum(self.layout.num_examples(part) for part in _cut(self.assignments[rank], start, stop))

    def windows(self, rank: int, *, first_step: int = 0, stop_step: int | None = None) -> Iterator[Window]:
        """What one worker reads for its minibatches from `first_step` on, window by window."""
        stop = self.num_minibatches(rank) if stop_step is None else stop_step
        for part in _cut(self.assignments[rank], first_step, stop):
            yield from self.layout.windows(part)

    def reassigned(self, num_rounds: int, num_workers: int) -> EpochPlan:
        """The plan of the next leg: what is left after `num_rounds` rounds, dealt to `num_workers` workers."""
        done = num_rounds * self.minibatches_per_round
        left = [part for assigned in self.assignments for part in _cut(assigned, done, 2**62)]
        num_left = sum(part.stop - part.start for part in left)
        places = [rank * num_left // num_workers for rank in range(num_workers + 1)]
        assignments = tuple(_cut(left, start, stop) for start, stop in pairwise(places))
        return replace(self, assignments=assignments, num_before=self.examples_after(done))


def _cut(parts: Sequence[Part], start: int, stop: int) -> tuple[Part, ...]:
    """The minibatches with numbers `start` to `stop` of some parts laid end to end."""
    found, first = [], 0
    for part in parts:
        size = part.stop - part.start
        inside = Part(part.deal, part.start + max(0, start - first), part.start + min(size, stop - first))
        if inside.start < inside.stop:
            found.append(inside)
        first += size
    return tuple(found)


def plan_epoch(
    rows_per_shard: Sequence[int],
    *,
    num_workers: int,
    batch_size: int,
    frequency: int | Literal["epoch"],
    seed: int,
    epoch: int,
    buffer_rows: int,
    earlier: Sequence[Stage] = (),
) -> EpochPlan:
    """Deal an epoch's rows to the workers, shards in an order of (seed, epoch), rows mixed within `buffer_rows`.

    `earlier` are the epoch's legs that other numbers of workers have done; the plan is of what they left.
    Raises UserError when there are fewer minibatches than workers.
    """
    num_minibatches = -(-sum(rows_per_shard) // batch_size)
    if num_minibatches < num_workers:
        raise UserError(
            f"num_workers is {num_workers}, but {sum(rows_per_shard)} training examples make only {num_minibatches} "
            f"minibatches of {batch_size}: lower num_workers or batch_size_per_worker, or add images"
        )
    generator = np.random.default_rng([seed, epoch, _SHARD_ORDER])
    order = generator.permutation(len(rows_per_shard))
    layout = EpochLayout(
        rows_per_shard=tuple(rows_per_shard),
        shard_order=tuple(int(index) for index in order),
        shift=int(generator.integers(sum(rows_per_shard))),
        bounds=_bounds(sum(rows_per_shard), earlier[0].num_workers if earlier else num_workers, batch_size),
        batch_size=batch_size,
        window_rows=max(1, buffer_rows // batch_size) * batch_size,
        seeds=(seed, epoch),
    )
    plan = EpochPlan(layout, _all_hands(layout), frequency)
    followers = [stage.num_workers for stage in earlier[1:]] + [num_workers]
    for stage, next_workers in zip(earlier, followers, strict=bool(earlier)):
        plan = plan.reassigned(stage.num_rounds, next_workers)
    return plan


def plan_evaluation(rows_per_shard: Sequence[int], *, num_workers: int, batch_size: int) -> EpochPlan:
    """Deal all rows once, in their order; a worker may have none."""
    layout = EpochLayout(
        rows_per_shard=tuple(rows_per_shard),
        shard_order=tuple(range(len(rows_per_shard))),
        shift=0,
        bounds=_bounds(sum(rows_per_shard), num_workers, batch_size),
        batch_size=batch_size,
        window_rows=batch_size,
        seeds=None,
    )
    return EpochPlan(layout, _all_hands(layout), "epoch")


def _all_hands(layout: EpochLayout) -> tuple[tuple[Part, ...], ...]:
    sizes = (stop - start for start, stop in pairwise(layout.bounds))
    return tuple((Part(deal, 0, -(-size // layout.batch_size)),) for deal, size in enumerate(sizes))


def _bounds(num_rows: int, num_workers: int, batch_size: int) -> tuple[int, ...]:
    num_minibatches = -(-num_rows // batch_size)
    places = (batch_size * (rank * num_minibatches // num_workers) for rank in range(num_workers + 1))
    return tuple(min(num_rows, place) for place in places)
