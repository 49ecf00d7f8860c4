"""Cleaning: kept versions stay whole, what is young stays, and what no version names goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyarrow import fs

from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem

from .whole import check_whole


def test_kept_versions_stay_whole_and_others_are_cleaned_away(pile):
    digests = []
    for number in range(4):
        pile.write({f"a/{number}": number})
        digests.append(pile.run(keep_versions=2, clean_after_hours=0).digest)
    for digest in digests[2:]:
        check_whole(pile.uri, digest)
    for digest in digests[:2]:
        with pytest.raises(UserError, match="not found"):
            load_manifest(pile.uri, digest)
    named = {shard.name for digest in digests[2:] for shard in load_manifest(pile.uri, digest).shards}
    assert {file.name for file in (Path(pile.uri) / "shards").iterdir()} == named
    assert len(list((Path(pile.uri) / "index").iterdir())) == 2


def test_what_is_young_stays_whether_named_or_not(pile):
    """Versions replaced a moment ago may be in use, and a file without a name may be of a run on another machine."""
    pile.run()
    stray, old = Path(pile.uri) / "shards" / "train-stray.parquet", Path(pile.uri) / "shards" / ".x.tmp"
    for file in (stray, old):
        file.write_bytes(b"x")
    os.utime(old, (10**9, 10**9))
    report = Path(pile.uri) / "reports" / f"{load_manifest(pile.uri).digest}.html"
    os.utime(report, (10**9, 10**9))
    digests = [load_manifest(pile.uri).digest]
    for number in range(3):
        pile.write({f"a/{number}": number})
        digests.append(pile.run(keep_versions=1).digest)
    for digest in digests:
        check_whole(pile.uri, digest)
    assert stray.exists()
    assert report.exists()
    assert not old.exists()


def test_a_version_that_cannot_be_read_stops_the_cleaning(pile, caplog):
    pile.run()
    strange = Path(pile.uri) / "versions" / "strange.json"
    strange.write_text("{")
    pile.write({"a/new": 1})
    pile.run(keep_versions=5, clean_after_hours=0)
    assert f"{strange} can't be read, so nothing is cleaned away; restore it, or delete it to give up" in caplog.text
    check_whole(pile.uri)
    strange.unlink()
    pile.write({"a/new": 2})
    last = pile.run(keep_versions=1, clean_after_hours=0)
    assert [file.name for file in strange.parent.iterdir()] == [f"{last.digest}.json"]


@pytest.mark.parametrize("store", ["local", "moves"])
def test_what_a_killed_write_left_is_cleaned_away(pile, monkeypatch, store):
    """Beside the manifest and in the lease's folder, where files that no version names are left alone."""
    pile.run()
    left = []
    with monkeypatch.context() as patch:
        if store == "moves":
            # As hdfs does, which no test can start.
            system = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
            patch.setattr(fs, "HadoopFileSystem", fs.SubTreeFileSystem)
            patch.setattr(filesystem, "locate", lambda uri: (system, uri))
        else:
            patch.setattr(Path, "unlink", lambda _path, **_more: None)
        for folder in (Path(pile.uri), Path(pile.uri) / "lease"):
            before = {*folder.iterdir()}
            (folder / "manifest.json in the way" / "x").mkdir(parents=True)
            with pytest.raises(RetryableError, match="cannot write"):
                filesystem.write_bytes(f"{folder}/manifest.json in the way", b"content")
            (file,) = {file for file in folder.iterdir() if file.is_file()} - before
            os.utime(file, (10**9, 10**9))
            left.append(file)
    pile.write({"a/new": 1})
    pile.run()
    assert not [file for file in left if file.exists()]
