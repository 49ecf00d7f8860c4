"""The plan of an epoch: which worker reads which rows, in which order, and how many examples each round holds.

A pure function of (rows per shard, workers, batch size, seed, epoch, buffer): every process computes the same one,
so nothing about it is ever sent. Every row is in exactly one minibatch of exactly one worker, and two workers' loads
differ by at most one minibatch. The number of workers decides which rows share a minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_SHARD_ORDER, _ROW_ORDER = 0, 1


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop` of the shard with number `shard_index`."""

    shard_index: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Rows that one worker holds in memory together, and the order in which they are trained on."""

    ranges: list[RowRange]
    order: NDArray[np.int64]


@dataclass(frozen=True)
class EpochPlan:
    """One epoch of all workers. `bounds[w]` to `bounds[w + 1]` are worker w's places in the row sequence.

    The sequence is that of the shards in their order, turned by `shift` rows, so that windows change with the epoch.
    """

    rows_per_shard: tuple[int, ...]
    shard_order: tuple[int, ...]
    shift: int
    bounds: tuple[int, ...]
    batch_size: int
    minibatches_per_round: int
    num_rounds: int
    window_rows: int
    seeds: tuple[int, int] | None

    def num_examples(self, rank: int) -> int:
        """Examples of one worker in the epoch."""
        return self.bounds[rank + 1] - self.bounds[rank]

    def num_minibatches(self, rank: int) -> int:
        """Optimizer steps of one worker in the epoch."""
        return -(-self.num_examples(rank) // self.batch_size)

    def examples_in_round(self, rank: int, round_index: int) -> int:
        """Examples that one worker sees in one round; 0 when it has none left."""
        per_round = self.minibatches_per_round * self.batch_size
        return max(0, min(per_round, self.num_examples(rank) - round_index * per_round))

    def windows(self, rank: int) -> Iterator[Window]:
        """What one worker reads, window by window; all but the last hold whole minibatches."""
        for start in range(self.bounds[rank], self.bounds[rank + 1], self.window_rows):
            stop = min(start + self.window_rows, self.bounds[rank + 1])
            yield Window(self._turned_ranges(start, stop), self._order(start, stop - start))

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


def plan_epoch(
    rows_per_shard: Sequence[int],
    *,
    num_workers: int,
    batch_size: int,
    frequency: int | Literal["epoch"],
    seed: int,
    epoch: int,
    buffer_rows: int,
) -> EpochPlan:
    """Deal an epoch's rows to the workers, shards in an order of (seed, epoch), rows mixed within `buffer_rows`.

    Raises UserError when there are fewer minibatches than workers.
    """
    num_minibatches = -(-sum(rows_per_shard) // batch_size)
    if num_minibatches < num_workers:
        raise UserError(
            f"num_workers is {num_workers}, but {sum(rows_per_shard)} training examples make only {num_minibatches} "
            f"minibatches of {batch_size}: lower num_workers or batch_size_per_worker, or add images"
        )
    bounds = _bounds(sum(rows_per_shard), num_workers, batch_size)
    most = -(-num_minibatches // num_workers)
    per_round = most if frequency == "epoch" else min(frequency, most)
    generator = np.random.default_rng([seed, epoch, _SHARD_ORDER])
    order = generator.permutation(len(rows_per_shard))
    return EpochPlan(
        rows_per_shard=tuple(rows_per_shard),
        shard_order=tuple(int(index) for index in order),
        shift=int(generator.integers(sum(rows_per_shard))),
        bounds=bounds,
        batch_size=batch_size,
        minibatches_per_round=per_round,
        num_rounds=-(-most // per_round),
        window_rows=max(1, buffer_rows // batch_size) * batch_size,
        seeds=(seed, epoch),
    )


def plan_evaluation(rows_per_shard: Sequence[int], *, num_workers: int, batch_size: int) -> EpochPlan:
    """Deal all rows once, in their order; a worker may have none."""
    return EpochPlan(
        rows_per_shard=tuple(rows_per_shard),
        shard_order=tuple(range(len(rows_per_shard))),
        shift=0,
        bounds=_bounds(sum(rows_per_shard), num_workers, batch_size),
        batch_size=batch_size,
        minibatches_per_round=1,
        num_rounds=0,
        window_rows=batch_size,
        seeds=None,
    )


def _bounds(num_rows: int, num_workers: int, batch_size: int) -> tuple[int, ...]:
    num_minibatches = -(-num_rows // batch_size)
    places = (batch_size * (rank * num_minibatches // num_workers) for rank in range(num_workers + 1))
    return tuple(min(num_rows, place) for place in places)
