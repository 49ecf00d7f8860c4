"""The report's histograms: every value is in a bin, and bins have edges that people read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardmean.jobs.vectorize.report.histogram import NUM_BINS, aspect_histogram, format_bytes, format_number, histogram


@given(st.lists(st.integers(0, 2**40), min_size=1))
def test_every_value_is_in_a_bin_of_a_histogram(values):
    found = histogram("x", np.array(values), format_bytes)
    assert sum(found.counts) == len(values)
    assert len(found.counts) == len(found.labels) <= NUM_BINS + 1
    assert found.is_single == (len(set(values)) == 1)
    assert all(0 <= place <= 1 for place, _ in found.ticks)


def test_edges_are_whole_numbers_and_of_few_values_each_has_its_bin():
    def labels(*values):
        return histogram("x", np.array(values), format_number).labels

    assert labels(1, 4) == ["1", "2", "3", "4"]
    assert labels(500, 1000)[:2] == ["483 to 504", "504 to 525"], "all of one width"
    assert labels(3, 100)[:4] == ["3", "4", "5", "6"], "of one width on a logarithmic axis, but for the smallest"
    assert labels(3, 100)[-2:] == ["75 to 87", "87 to 101"]
    assert histogram("x", np.zeros(0, dtype=np.int64), format_number) is None


@pytest.mark.parametrize(("value", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (15e9, "15.0 GB")])
def test_numbers_of_bytes_are_short(value, text):
    assert format_bytes(value) == text


@given(st.lists(st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)), min_size=1))
def test_every_image_is_in_a_bin_of_the_aspect_ratios(sizes):
    widths, heights = np.array(sizes).T
    found = aspect_histogram("x", widths, heights)
    assert sum(found.counts) == len(sizes)
    assert len(found.counts) == len(found.labels) <= NUM_BINS + 1


def test_the_square_stands_in_the_middle():
    found = aspect_histogram("x", np.array([10, 20, 30]), np.array([10, 10, 30]))
    middle = len(found.counts) // 2
    assert (found.labels[middle], found.counts[middle]) == ("about 1.00", 2)
    assert [label for _, label in found.ticks] == ["1:4", "1:2", "1:1", "2:1", "4:1"]
    for place, (at, _) in zip(range(0, 25, 6), found.ticks, strict=True):
        assert at == (place + 0.5) / len(found.counts), "in the middle of its bin"
    assert found.summary == "67 % square, 33 % lying"
