"""How the rows of an epoch are laid out: one sequence of pieces of shards, read window by window.

Shapes: P pieces, R ranges of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from .manifest import Shard

# 1: whole shards in random order, mixed within a buffer. 2: small pieces of all shards. A begun epoch keeps its own.
PLAN_VERSION = 2
_SHARD_ORDER, _ROW_ORDER, _PIECE_ORDER = 0, 1, 2
_MAX_PIECE_BYTES = 512 * 2**10


class ShardRows(NamedTuple):
    """What a plan knows of the shards of a split: rows of each, and their order by the classes that they hold."""

    rows_per_shard: tuple[int, ...]
    by_class: tuple[int, ...]
    """Shard indices; neighbors hold similar classes."""

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> Self:
        """Those of a split, in the manifest's order."""

        def most_common(index: int) -> tuple[int, float]:
            counts = shards[index].num_per_class
            label = max(counts, key=lambda label: (counts[label], -label))
            return label, counts[label] / shards[index].num_examples

        by_class = sorted(range(len(shards)), key=most_common)
        return cls(tuple(shard.num_examples for shard in shards), tuple(by_class))


@dataclass(frozen=True)
class Window:
    """Rows that one worker holds in memory together.

    `ranges_R3` are (shard index, first row, row after the last); laid end to end, their rows have the positions 0,
    1, ..., and `order` gives the positions of those to train on, in training order.
    """

    ranges_R3: NDArray[np.int64]
    order: NDArray[np.int64]

    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard index and row of each example, in training order."""
        sizes_R = self.ranges_R3[:, 2] - self.ranges_R3[:, 1]
        ends_R = np.cumsum(sizes_R)
        shards = np.repeat(self.ranges_R3[:, 0], sizes_R)
        rows = np.arange(ends_R[-1]) + np.repeat(self.ranges_R3[:, 1] - (ends_R - sizes_R), sizes_R)
        return shards[self.order], rows[self.order]


class Part(NamedTuple):
    """Minibatches `start` to `stop` of share `share`."""

    share: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochLayout:
    """All rows of an epoch in one sequence of pieces, cut into one share for each worker, and those into minibatches.

    `bounds[d]` to `bounds[d + 1]` are share d's positions in the sequence. Only the last minibatch of all can be short.
    """

    pieces_P3: NDArray[np.int64]
    bounds: tuple[int, ...]
    batch_size: int
    window_rows: int
    seeds: tuple[int, int] | None

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """The position after each piece (P,)."""
        ends_P: NDArray[np.int64] = np.cumsum(self.pieces_P3[:, 2] - self.pieces_P3[:, 1])
        return ends_P

    def num_examples(self, part: Part) -> int:
        """Examples in some of a share's minibatches."""
        num_rows = self.bounds[part.share + 1] - self.bounds[part.share]
        return min(part.stop * self.batch_size, num_rows) - min(part.start * self.batch_size, num_rows)

    def windows(self, part: Part) -> Iterator[Window]:
        """What reading some of a share's minibatches takes, window by window; all but the last hold whole ones."""
        first, end = self.bounds[part.share], self.bounds[part.share + 1]
        for start in range(first, end, self.window_rows):
            stop = min(start + self.window_rows, end)
            wanted = slice(
                max(0, first + part.start * self.batch_size - start),
                min(stop, first + part.stop * self.batch_size) - start,
            )
            if wanted.start < wanted.stop:
                yield Window(self._ranges(start, stop), self._order(start, stop - start)[wanted])

    def _ranges(self, start: int, stop: int) -> NDArray[np.int64]:
        """The rows at positions `start` to `stop` of the sequence."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop, side="left"))
        ranges_R3 = self.pieces_P3[first : last + 1].copy()
        ranges_R3[-1, 2] -= self._ends[last] - stop
        ranges_R3[0, 1] += start - (self._ends[first - 1] if first else 0)
        return ranges_R3

    def _order(self, start: int, num_rows: int) -> NDArray[np.int64]:
        if self.seeds is None:
            return np.arange(num_rows)
        return np.random.default_rng([*self.seeds, _ROW_ORDER, start]).permutation(num_rows)


def piece_rows(num_rows: int, window_rows: int, batch_size: int, example_bytes: int) -> int:
    """Rows of a piece, as many as mixing allows, since each piece is read by itself.

    Even where each piece is of one class and falls into a window by chance, the chi-square per degree of freedom of a
    minibatch's labels is 1 + batch (piece - 1) / window, so at most 1.1 here, where a true shuffle gives 1; and counts
    of a worker's classes deviate by sqrt(piece) times as much as those of single rows.
    """
    most_for_minibatches = 1 + window_rows // (10 * batch_size)
    most_for_workers = isqrt(num_rows) // 16
    return max(1, min(_MAX_PIECE_BYTES // example_bytes, most_for_minibatches, most_for_workers))


@lru_cache(maxsize=2)
def spread_pieces(shards: ShardRows, piece_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """All shards cut into pieces (P, 3), in an order of which any run is spread evenly over all shards.

    The shards lie on a line, neighbors with similar classes. Of any two neighboring pieces one goes to the first half
    of the sequence and one to the second, by chance; of any four, one to each quarter; and so on. So each window and
    each worker takes the same share of every shard and of every part of it: a van der Corput sequence with Owen's
    scrambling ("Randomly permuted (t,m,s)-nets and (t,s)-sequences", 1995).
    """
    generator = np.random.default_rng([seed, epoch, _PIECE_ORDER])
    rows = np.array(shards.rows_per_shard, np.int64)[list(shards.by_class)]
    # The first piece of a shard is short by chance: the rows that share a piece differ from epoch to epoch.
    phases = generator.integers(0, piece_rows, len(rows))
    num_pieces = -(-(rows + phases) // piece_rows)
    number = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    starts = number * piece_rows - np.repeat(phases, num_pieces)
    stops = np.minimum(starts + piece_rows, np.repeat(rows, num_pieces))
    line_P3 = np.column_stack([np.repeat(shards.by_class, num_pieces), np.maximum(starts, 0), stops])
    pieces_P3: NDArray[np.int64] = line_P3[_scrambled(len(line_P3), generator)]
    return pieces_P3


def _scrambled(num: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The numbers 0 to `num` - 1; each half of the result has one of 2k and 2k + 1, each quarter one of four, ..."""
    num_levels = (num - 1).bit_length()
    # Up to a power of two there are numbers for nothing, which are spread evenly too and then left out.
    groups = np.arange(2**num_levels).reshape(1, -1)
    for level in range(num_levels):
        pairs = groups.reshape(2**level, -1, 2)
        is_second = generator.integers(0, 2, pairs.shape[:2], dtype=np.bool_)
        first, second = np.where(is_second, pairs[..., 1], pairs[..., 0]), pairs.sum(axis=2)
        groups = np.stack([first, second - first], axis=1).reshape(2 ** (level + 1), -1)
    numbers: NDArray[np.int64] = groups.ravel()
    return numbers[numbers < num]


def whole_shards(rows_per_shard: Sequence[int], seed: int, epoch: int) -> NDArray[np.int64]:
    """The sequence of version 1: whole shards in random order, turned by a random number of rows."""
    generator = np.random.default_rng([seed, epoch, _SHARD_ORDER])
    order = generator.permutation(len(rows_per_shard))
    shift = int(generator.integers(sum(rows_per_shard)))
    pieces_P3 = in_order(np.array(rows_per_shard, np.int64), order)
    cut = int(np.searchsorted(np.cumsum(pieces_P3[:, 2]), shift, side="right"))
    tail, head = pieces_P3[cut:].copy(), pieces_P3[: cut + 1].copy()
    tail[0, 1] = head[-1, 2] = shift - pieces_P3[:cut, 2].sum()
    whole = np.concatenate([tail, head])
    return whole[whole[:, 1] < whole[:, 2]]


def in_order(rows: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole shards as pieces (P, 3), in an order."""
    return np.column_stack([order, np.zeros_like(order), rows[order]])
