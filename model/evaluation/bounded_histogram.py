"""A tally: how often each of many whole numbers occurred, in memory that has a limit however many are counted.

Up to `max_keys` distinct numbers are counted exactly. Beyond that the numbers lose their lowest bits, one at a time
and all alike, until their tally fits: it becomes a histogram whose bins are 2, 4, 8 ... numbers wide. How many bits
go depends on the numbers alone, not on the order or the parts in which they were counted, so merging is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class BoundedHistogram:
    """Counts of numbers >= 0 without their lowest `dropped_bits`: `keys_N` rising and distinct, `counts_N` >= 1."""

    keys_N: NDArray[np.int64]
    counts_N: NDArray[np.int64]
    max_keys: int
    dropped_bits: int = 0

    @classmethod
    def of(cls, numbers_N: NDArray[np.int64], *, max_keys: int) -> BoundedHistogram:
        """The tally of some numbers below 2^53."""
        return _fitted(cls(np.sort(numbers_N), np.ones(len(numbers_N), dtype=np.int64), max_keys))

    @classmethod
    def merged(cls, parts: Sequence[BoundedHistogram]) -> BoundedHistogram:
        """The tally of all parts' numbers together; the parts have the same `max_keys`."""
        dropped_bits = max(part.dropped_bits for part in parts)
        keys_N = np.concatenate([part.keys_N >> (dropped_bits - part.dropped_bits) for part in parts])
        counts_N = np.concatenate([part.counts_N for part in parts])
        order_N = np.argsort(keys_N, kind="stable")
        return _fitted(cls(keys_N[order_N], counts_N[order_N], parts[0].max_keys, dropped_bits))


def _fitted(tally: BoundedHistogram) -> BoundedHistogram:
    """Sorted keys, equal ones among them, without as many more bits as it takes to have `max_keys` distinct ones."""
    # A part has no more distinct keys than the whole, so it never dropped a bit that the whole would keep.
    keys_N = tally.keys_N
    if not len(keys_N):
        return tally
    # Neighbours whose highest different bit is the b-th, counted from 1, are equal without their lowest b bits.
    differing_bits_N = np.frexp((keys_N[1:] ^ keys_N[:-1]).astype(np.float64))[1]
    num_left_by_bits = len(differing_bits_N) - np.cumsum(np.bincount(differing_bits_N, minlength=1))
    num_bits = int((num_left_by_bits < tally.max_keys).argmax())
    starts_N = np.concatenate([[0], np.flatnonzero(differing_bits_N > num_bits) + 1])
    counts_N = np.add.reduceat(tally.counts_N, starts_N)
    return BoundedHistogram(keys_N[starts_N] >> num_bits, counts_N, tally.max_keys, tally.dropped_bits + num_bits)
