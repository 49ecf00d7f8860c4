"""A tally's laws: exact while it fits, a histogram of the least bin width that fits after, the same however merged."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardmean.model.evaluation.bounded_histogram import BoundedHistogram

NUMBERS = st.lists(st.one_of(st.integers(0, 50), st.integers(0, 2**53 - 1)), max_size=60)
LIMITS = st.integers(1, 20)


def tally_of(numbers: list[int], max_keys: int) -> BoundedHistogram:
    return BoundedHistogram.of(np.array(numbers, dtype=np.int64), max_keys=max_keys)


def content(tally: BoundedHistogram) -> tuple[int, dict[int, int]]:
    return tally.dropped_bits, dict(zip(tally.keys_N.tolist(), tally.counts_N.tolist(), strict=True))


@given(NUMBERS, LIMITS)
def test_it_drops_the_fewest_bits_that_make_it_fit(numbers, max_keys):
    tally = tally_of(numbers, max_keys)
    fewest = next(bits for bits in range(60) if len({number >> bits for number in numbers}) <= max_keys)
    assert content(tally) == (fewest, Counter(number >> fewest for number in numbers))
    assert (np.diff(tally.keys_N) > 0).all()


@given(NUMBERS, LIMITS, st.lists(st.integers(0, 3), min_size=60, max_size=60), st.randoms(use_true_random=False))
def test_merged_parts_are_the_whole_in_any_partition_and_order(numbers, max_keys, part_of, random):
    parts = [tally_of([n for n, p in zip(numbers, part_of, strict=False) if p == part], max_keys) for part in range(4)]
    random.shuffle(parts)
    whole = content(tally_of(numbers, max_keys))
    assert content(BoundedHistogram.merged(parts)) == whole
    assert (
        content(BoundedHistogram.merged([BoundedHistogram.merged(parts[:2]), BoundedHistogram.merged(parts[2:])]))
        == whole
    )


def test_memory_has_a_limit_however_many_are_counted():
    generator = np.random.default_rng(0)
    tally = tally_of([], 1000)
    for _ in range(50):
        more = BoundedHistogram.of(generator.integers(0, 2**40, 5000), max_keys=1000)
        tally = BoundedHistogram.merged([tally, more])
        assert len(tally.keys_N) == len(tally.counts_N) <= 1000
    assert tally.counts_N.sum() == 250_000
    assert len(tally.keys_N) > 500
