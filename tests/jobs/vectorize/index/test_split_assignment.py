"""Splits: whole numbers as near the shares as can be, copies together, and nothing published ever moves."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from shardmean.jobs.vectorize.index.split_assignment import Candidates, apportion, assign_splits
from shardmean.model.config.image import SplitConfig

SHARES = st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20)).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)


def candidates(contents, classes, *, fixed=None, published=None) -> Candidates:
    hashes = b"".join(hashlib.blake2b(str(content).encode(), digest_size=16).digest() for content in contents)
    return Candidates(
        pa.array([f"{place:03d}" for place in range(len(contents))]),
        np.array(classes, np.int64),
        np.frombuffer(hashes, np.uint8).reshape(-1, 16),
        np.array(fixed if fixed is not None else [-1] * len(contents), np.int8),
        np.array(published if published is not None else [-1] * len(contents), np.int8),
    )


def config(shares, method="stratified") -> SplitConfig:
    return SplitConfig(train=shares[0], validation=shares[1], test=shares[2], method=method)


@given(st.integers(0, 10_000), SHARES)
def test_shares_in_whole_numbers(total, shares):
    parts = apportion(total, shares)
    assert parts.sum() == total
    assert (np.abs(parts - total * np.array(shares)) < 1 + 1e-6).all()
    assert not parts[np.array(shares) == 0].any()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), SHARES)
def test_stratified_shares_hold_in_each_class(classes, shares):
    codes, rejected = assign_splits(candidates(range(len(classes)), classes), config(shares))
    assert not rejected
    for number in set(classes):
        counts = np.bincount(codes[np.array(classes) == number], minlength=3)
        assert counts.tolist() == apportion(classes.count(number), shares).tolist()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.lists(st.integers(0, 2), max_size=60), SHARES)
def test_new_images_fill_what_lacks_and_published_ones_stay(old, new, shares):
    first, _ = assign_splits(candidates(range(len(old)), old), config(shares))
    published = [*first, *[-1] * len(new)]
    classes = np.array([*old, *new])
    second, _ = assign_splits(candidates(range(len(classes)), classes, published=published), config(shares))
    assert (second[: len(old)] == first).all()
    for number in set(new):
        counts = np.bincount(second[classes == number], minlength=3)
        before = np.bincount(first[np.array(old) == number], minlength=3)
        wanted = apportion(int(counts.sum()), shares)
        # No split is above its share unless it was so before.
        assert (counts <= np.maximum(wanted, before)).all()


ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 1), st.sampled_from([-1, -1, 0, 1, 2])), min_size=1, max_size=40
)


@given(ROWS, st.sampled_from(["random", "stratified"]))
def test_copies_share_a_split_and_what_is_rejected_has_a_cause(rows, method):
    contents, classes, fixed = (list(column) for column in zip(*rows, strict=True))
    codes, rejected = assign_splits(candidates(contents, classes, fixed=fixed), config((0.5, 0.25, 0.25), method))
    for place, content in enumerate(contents):
        copies = [other for other in range(len(rows)) if contents[other] == content]
        assert (codes[place] >= 0) == (place not in rejected)
        reason, detail = rejected.get(place, ("", ""))
        if len({classes[other] for other in copies}) > 1:
            assert reason == "conflicting_labels"
            assert classes[int(detail[-3:])] != classes[place]
            continue
        assert len({codes[other] for other in copies if codes[other] >= 0}) == 1
        if place in rejected:
            assert reason == "duplicate_in_other_split"
            assert 0 <= fixed[place] != codes[int(detail[-3:])]
        elif fixed[place] >= 0:
            assert codes[place] == fixed[place]


@given(st.permutations(range(30)))
def test_the_order_of_paths_deals_no_one_elsewhere(order):
    for method in ("random", "stratified"):
        plain, _ = assign_splits(candidates(range(30), [0] * 30), config((0.5, 0.25, 0.25), method))
        mixed, _ = assign_splits(candidates(order, [0] * 30), config((0.5, 0.25, 0.25), method))
        assert (mixed == plain[list(order)]).all()
