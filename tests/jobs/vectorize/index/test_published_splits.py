"""An image keeps its split for ever: under another name, through conflicts, and after a time out of reach."""

from __future__ import annotations

import pytest

import shardmean.jobs.vectorize.source.reader
from shardmean.model.config.image import SplitConfig
from shardmean.model.dataset.manifest import load_manifest
from tests.jobs.pile import GONE, Pile
from tests.jobs.whole import check_whole, index_of, rows_of

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
    original = shardmean.jobs.vectorize.source.reader.read_item

    def read_item(item):
        if item.path.startswith("a/"):
            raise FileNotFoundError(item.path)
        return original(item)

    with monkeypatch.context() as patch:
        patch.setattr(shardmean.jobs.vectorize.source.reader, "read_item", read_item)
        for number in range(20):
            pile.touch(f"a/{number}")
        pile.run()
    assert load_manifest(pile.uri).num_rejected_by_reason == {"vanished": 20}
    pile.run()
    assert splits_of_bytes(pile) == before


def test_copies_given_to_two_splits_stay_in_the_published_one(pile):
    """In folders of splits: the first by path is kept, later a published one before a new one."""
    for place, folder in enumerate(("train/a", "train/b", "test/a", "test/b")):
        pile.write({f"{folder}/{number}": 200 + 10 * place + number for number in range(3)})
    for name in "ab":
        for number in range(6):
            pile.write({f"{name}/always {number}": GONE})
    source = {"split_folders": True}
    pile.write({"train/a/copy": 1, "test/a/copy": 1})
    pile.run(source=source)
    index = index_of(pile.uri).set_index("path")
    assert index.split["test/a/copy.ppm"] == "test"
    assert index.reason["train/a/copy.ppm"] == "duplicate_in_other_split"
    assert index.detail["train/a/copy.ppm"].endswith(
        "the same bytes are in test, and this is of train: test/a/copy.ppm"
    )
    pile.write({"validation/a/another": 1, "test/a/copy": GONE, "test/b/last": 77, "train/b/last": 78})
    pile.run(source=source)
    assert check_whole(pile.uri).num_rejected_by_reason == {"duplicate_in_other_split": 1}
    pile.write({"test/b/last": 78})
    pile.run(source=source)
    index = index_of(pile.uri).set_index("path")
    assert index.split["train/b/last.ppm"] == "train", "published before"
    assert index.reason["test/b/last.ppm"] == "duplicate_in_other_split"


def test_a_group_stands_in_one_split_for_ever(pile):
    def of_patient(numbers):
        return {f"{'ab'[n % 2]}/p{n // 4} {n}": n for n in numbers}

    source = {"group_pattern": r"/(?P<group>p\d+|always)"}
    pile.write(of_patient(range(60)))
    pile.run(source=source)
    first = index_of(pile.uri)
    assert (first.groupby("group").split.nunique() == 1).all()
    assert first.split.nunique() == 3
    pile.write(of_patient(range(60, 80)) | {f"a/p{n} more": 500 + n for n in range(15)})
    pile.run(source=source)
    check_whole(pile.uri)
    second = index_of(pile.uri)
    assert (second.groupby("group").split.nunique() == 1).all()
    assert (first.groupby("group").split.first() == second.groupby("group").split.first()[first.group.unique()]).all()
