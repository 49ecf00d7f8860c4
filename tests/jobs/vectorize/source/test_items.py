"""Items in a table are the items they were made of, in any part of it."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardmean.jobs.common.arrow_tables import BATCH_ROWS
from shardmean.jobs.vectorize.source.items import Item, Items

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ITEMS = st.builds(
    Item,
    path=TEXT,
    # A local name is any bytes.
    uri=st.binary(max_size=8).map(os.fsdecode),
    class_name=TEXT,
    size_bytes=st.integers(0, 2**63 - 1),
    modified_ns=st.integers(-(2**63), 2**63 - 1),
    row=st.none() | st.integers(0, 2**63 - 1),
    split=st.sampled_from([None, "train", "validation", "test"]),
    group=st.none() | TEXT,
    extra=st.lists(st.none() | TEXT, max_size=3).map(tuple),
    reason=st.sampled_from([None, "missing", "not_a_file"]),
)


@given(st.lists(ITEMS, max_size=6), st.data())
def test_a_table_gives_its_items(items, data):
    table = Items.of(items)
    assert list(table) == items
    assert [table[place] for place in range(len(table))] == items
    first, end = (data.draw(st.integers(-7, 7)) for _ in range(2))
    assert list(table[first:end]) == items[first:end]
    places = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=8)) if items else []
    assert list(table.take(np.array(places, np.int64))) == [items[place] for place in places]


def test_many_items_keep_their_order():
    one = Item("", "/x", "a", 1, 2)
    items = [replace(one, path=f"{n}", row=n) for n in range(2 * BATCH_ROWS + 1)]
    assert list(Items.of(items)) == items
    assert list(Items.of(items)[BATCH_ROWS - 1 : BATCH_ROWS + 1]) == items[BATCH_ROWS - 1 : BATCH_ROWS + 1]


def test_few_of_many_items_travel_alone():
    """A task is sent its own items, not all of those that they were taken from."""
    items = Items.of([Item(f"{n:0100d}", "/x", "a", 1, 2) for n in range(10_000)])
    for few in (items.take(np.array([5, 17])), items[5:7]):
        assert len(pickle.dumps(few)) < 10_000
        assert list(pickle.loads(pickle.dumps(few))) == list(few)
