"""The draws' laws: a function of (seed, epoch, id, stream) alone, uniform, and without ties between streams."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shardmean.model.augmentation.random import NUM_STREAMS, Draws, Stream
from shardmean.model.dataset.hashing import GOLDEN_STEP, example_keys, mix_bits

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=12)
MASK = 2**64 - 1
KEYS = example_keys(pa.array([f"{number:032x}-{number % 97:08x}" for number in range(20_000)]))


def mixed(value: int) -> int:
    """SplitMix64's output function in whole numbers of Python."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def key(text: str) -> int:
    data = text.encode()
    weights = [mixed(0x9E3779B97F4A7C15 * place & MASK) for place in range(1, len(data) + 2)]
    pairs = zip([len(data), *data], weights, strict=True)
    return mixed(sum(value * weight for value, weight in pairs) & MASK)


def test_the_generator_is_splitmix64():
    """The first numbers after the seed 1234567, as published with the algorithm."""
    steps = np.uint64(1234567) + GOLDEN_STEP * np.arange(1, 6, dtype=np.uint64)
    assert mix_bits(steps).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


@given(ids=IDS, first=st.integers(0, 11))
def test_a_key_is_that_of_the_id_alone(ids, first):
    whole = pa.array(ids, pa.string())
    assert example_keys(whole).tolist() == [key(text) for text in ids]
    assert example_keys(whole[first:]).tolist() == [key(text) for text in ids[first:]]


@given(st.lists(st.text(st.sampled_from("ab\0")), unique=True, max_size=50))
def test_ids_that_are_alike_have_different_keys(ids):
    assert len(set(example_keys(pa.array(ids, pa.string())).tolist())) == len(ids)


@settings(max_examples=25)
@given(st.lists(st.integers(0, len(KEYS) - 1), min_size=1, max_size=40), st.integers(0, 2**63 - 1), st.integers(0, 999))
def test_a_draw_depends_on_no_other_example(rows, seed, epoch):
    whole = Draws.of(KEYS[:: len(KEYS) // 100], seed=seed, epoch=epoch)
    some = np.array(rows) % 100
    part = Draws.of(KEYS[:: len(KEYS) // 100][some], seed=seed, epoch=epoch)
    assert (part.uniform_NS == whole.uniform_NS[some]).all()


def test_draws_never_change_between_versions():
    """A resumed training must see the same images."""
    draws = Draws.of(example_keys(pa.array(["a", "b"])), seed=1, epoch=2)
    assert draws.uniform_NS[:, Stream.ROTATE].tolist() == [0.37474148613552327, 0.4240106699984211]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_each_stream_is_uniform(seed):
    uniform_NS = Draws.of(KEYS, seed=seed, epoch=3).uniform_NS
    assert uniform_NS.shape == (len(KEYS), NUM_STREAMS)
    assert uniform_NS.min() >= 0
    assert uniform_NS.max() < 1
    assert min(stats.kstest(column, "uniform").pvalue for column in uniform_NS.T) > 1e-4


def test_streams_epochs_seeds_and_neighbors_are_independent():
    first = Draws.of(KEYS, seed=0, epoch=0).uniform_NS
    others = {
        "epoch": Draws.of(KEYS, seed=0, epoch=1).uniform_NS,
        "seed": Draws.of(KEYS, seed=1, epoch=0).uniform_NS,
        "neighbor": np.roll(first, 1, axis=0),
        "stream": np.roll(first, 1, axis=1),
    }
    for name, other in others.items():
        correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(first.T, other.T, strict=True)]
        assert np.abs(correlations).max() < 4 / np.sqrt(len(KEYS)), name


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_what_has_a_probability_happens_so_often(probability):
    count = len(Draws.of(KEYS, seed=5, epoch=1).happens(Stream.BLUR, probability))
    assert abs(count - probability * len(KEYS)) <= 4 * np.sqrt(len(KEYS) * probability * (1 - probability))


def test_a_range_is_filled():
    values = Draws.of(KEYS, seed=5, epoch=1).between(Stream.SCALE, -3, 5)
    assert -3 <= values.min() < -2.99
    assert 4.99 < values.max() < 5
