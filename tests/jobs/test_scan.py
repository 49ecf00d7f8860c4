"""What a scan says of a source: its fingerprint."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.sources import Item, Scan

ITEM = Item("a/0.png", "/data/a/0.png", "a", 10, 20, split="train", group="g", extra=("x", None))


def fingerprint(*items: Item, extra_columns: tuple[str, ...] = ("one", "two")) -> str:
    return Scan(list(items), ["a"], 0, extra_columns).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"path": "a/1.png"},
        {"class_name": "b"},
        {"size_bytes": 11},
        {"modified_ns": 21},
        {"split": "test"},
        {"split": None},
        {"group": "h"},
        {"group": None},
        {"extra": ("x", "")},
        {"extra": ("x", "None")},
    ],
    ids=str,
)
def test_the_fingerprint_covers_all_that_an_example_is_made_of(change):
    assert fingerprint(replace(ITEM, **change)) != fingerprint(ITEM)


def test_the_fingerprint_covers_the_number_of_items_and_the_names_of_columns():
    assert len({fingerprint(), fingerprint(ITEM), fingerprint(ITEM, ITEM)}) == 3
    assert fingerprint(ITEM, extra_columns=("one", "three")) != fingerprint(ITEM)


def test_the_fingerprint_does_not_cover_where_the_source_stands():
    assert fingerprint(replace(ITEM, uri="/elsewhere/a/0.png")) == fingerprint(ITEM)
