"""Broken links: one that may be a folder of images stops the run, for their absence would look like deletion."""

from __future__ import annotations

import shutil

import pytest

from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import RetryableError
from tests.jobs.scanning import scanned


@pytest.fixture
def share(pile, tmp_path):
    """A class on a share that is mounted: a link in the pile leads to its folder."""
    pile.write({f"c/{number}": number for number in range(6)})
    share = tmp_path / "share"
    (pile.home / "images" / "c").rename(share)
    (pile.home / "images" / "c").symlink_to(share)
    return share


def test_a_class_whose_share_is_not_mounted_is_not_deleted(pile, share, tmp_path):
    first = pile.run()
    assert first.class_names == ["a", "b", "c"]
    share.rename(tmp_path / "away")
    with pytest.raises(
        RetryableError,
        match=rf"source {tmp_path}/images: 1 broken links, .*\(first: c\): mount what .* by source.exclude",
    ):
        pile.run()
    assert load_manifest(pile.uri).digest == first.digest
    (tmp_path / "away").rename(share)
    assert not pile.run().changed


@pytest.mark.parametrize("pattern", ["c", "c/", "/c/**"])
def test_what_is_left_out_may_lead_to_nowhere(pile, share, pattern):
    shutil.rmtree(share)
    assert pile.run(source={"exclude": ["a/1.png", pattern]}).class_names == ["a", "b"]


def test_the_link_may_be_removed(pile, share):
    pile.run()
    shutil.rmtree(share)
    (pile.home / "images" / "c").unlink()
    assert pile.run().class_names == ["a", "b"]


def test_all_classes_may_be_away(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to("/no/where")
    with pytest.raises(RetryableError, match=r"2 broken links, .*\(first: [ab]\)"):
        scanned(tmp_path)


def test_a_link_that_has_an_images_name_is_an_image_that_is_missing(pile):
    (pile.home / "images" / "a" / "7.PNG").symlink_to("nowhere")
    assert pile.run().num_rejected_by_reason == {"missing": 1}


def test_sets_of_idx_files_may_be_away_too(tmp_path):
    (tmp_path / "more").symlink_to("/no/where")
    with pytest.raises(RetryableError, match=r"1 broken links, .*\(first: more\)"):
        scanned(tmp_path, layout="idx")
