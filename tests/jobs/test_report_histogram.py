"""The report's histograms: every value is in a bin, and bins have edges that people read."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardmean.jobs.vectorize.report.histogram import MAX_BINS, aspect_histogram, histogram, say_bytes, say_number


@given(st.lists(st.integers(0, 2**40), min_size=1))
def test_every_value_is_in_a_bin_of_a_histogram(values):
    found = histogram("x", np.array(values), say_bytes)
    assert sum(found.counts) == len(values)
    assert len(found.counts) == len(found.labels) <= MAX_BINS
    assert found.is_single == (len(set(values)) == 1)
    assert all(0 <= place <= 1 for place, _ in found.ticks)


def test_bins_have_round_edges():
    def labels(*values):
        return histogram("x", np.array(values), say_number).labels

    assert labels(1, 4) == ["1", "2", "3", "4"]
    assert labels(3, 100)[:4] == ["3", "4", "5", "6"]
    assert labels(3, 100)[-2:] == ["82 to 100", "100 to 120"]
    assert labels(500, 1000)[0] == "500 to 550"
    assert histogram("x", np.zeros(0, dtype=np.int64), say_number) is None


@given(st.lists(st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)), min_size=1))
def test_every_image_is_in_a_bin_of_the_aspect_ratios(sizes):
    widths, heights = np.array(sizes).T
    found = aspect_histogram("x", widths, heights)
    assert sum(found.counts) == len(sizes)
    assert len(found.counts) == len(found.labels) <= MAX_BINS


def test_the_square_stands_in_the_middle():
    found = aspect_histogram("x", np.array([10, 20, 30]), np.array([10, 10, 30]))
    middle = len(found.counts) // 2
    assert (found.labels[middle], found.counts[middle]) == ("about 1.00", 2)
    assert [label for _, label in found.ticks] == ["1:2", "1:1", "2:1"]
    assert found.summary == "67 % square, 33 % lying"
