"""An image keeps its split for ever: under another name, through conflicts, and after a time out of reach."""

from __future__ import annotations

import pytest

import jobs.reading
from model.config import SplitConfig
from model.manifest import load_manifest

from .pile import GONE, Pile
from .whole import rows_of

STRATIFIED = SplitConfig(train=0.6, validation=0.2, test=0.2, method="stratified")


@pytest.fixture
def dealt(tmp_path):
    """A pile of stratified splits, published, and the split of each image's bytes."""
    pile = Pile(tmp_path, settings={"split": STRATIFIED})
    pile.write({f"{name}/{number}": 100 * place + number for place, name in enumerate("ab") for number in range(20)})
    pile.run()
    return pile, splits_of_bytes(pile)


def splits_of_bytes(pile) -> dict[bytes, str]:
    rows = rows_of(pile.uri)
    return dict(zip(rows.features, rows.split, strict=True))


def test_a_new_name_leaves_an_image_in_its_split(dealt):
    pile, before = dealt
    for number in range(20):
        pile.write({f"a/{number}": GONE, f"a/renamed {number}": number})
    pile.run()
    assert splits_of_bytes(pile) == before


def test_a_conflict_that_passes_leaves_an_image_in_its_split(dealt):
    pile, before = dealt
    pile.write({f"b/copy {number}": number for number in range(20)})
    pile.run()
    assert load_manifest(pile.uri).num_rejected_by_reason == {"conflicting_labels": 40}
    pile.write({f"b/copy {number}": GONE for number in range(20)})
    pile.run()
    assert splits_of_bytes(pile) == before


def test_images_out_of_reach_for_a_while_come_back_into_their_splits(dealt, monkeypatch):
    pile, before = dealt
    original = jobs.reading.read_item

    def read_item(item):
        if item.path.startswith("a/"):
            raise FileNotFoundError(item.path)
        return original(item)

    with monkeypatch.context() as patch:
        patch.setattr(jobs.reading, "read_item", read_item)
        for number in range(20):
            pile.touch(f"a/{number}")
        pile.run()
    assert load_manifest(pile.uri).num_rejected_by_reason == {"vanished": 20}
    pile.run()
    assert splits_of_bytes(pile) == before
