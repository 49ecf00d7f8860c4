"""Cleaning: kept versions stay whole, what is young stays, and what no version names goes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem
from tests.jobs.whole import check_whole
from tests.model.like_hdfs import pretend_hdfs


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
    stray, old = Path(pile.uri) / "shards" / f"train-{'0' * 20}.parquet", Path(pile.uri) / "shards" / ".new.x.tmp"
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
    strange = Path(pile.uri) / "versions" / f"{'0' * 32}.json"
    strange.write_text("{")
    pile.write({"a/new": 1})
    pile.run(keep_versions=5, clean_after_hours=0)
    assert f"{strange} can't be read, so no old file is deleted; restore it, or delete it to give up" in caplog.text
    check_whole(pile.uri)
    strange.unlink()
    pile.write({"a/new": 2})
    last = pile.run(keep_versions=1, clean_after_hours=0)
    assert [file.name for file in strange.parent.iterdir()] == [f"{last.digest}.json"]


def refuse(*_: object) -> None:
    raise OSError("killed")


@pytest.mark.parametrize("store", ["local", "hdfs"])
def test_what_a_killed_write_left_is_deleted(pile, monkeypatch, store):
    """Beside the manifest and in the lease's folder, where files that no version names are left alone."""
    pile.run()
    left = []
    with monkeypatch.context() as patch:
        if store == "hdfs":
            pretend_hdfs(patch).between = refuse
        else:
            patch.setattr(Path, "replace", refuse)
            patch.setattr(Path, "unlink", lambda _path, **_more: None)
        for file in (Path(pile.uri) / "manifest.json", Path(pile.uri) / "lease" / "00000001.life"):
            content, before = file.read_bytes(), {*file.parent.iterdir()}
            with pytest.raises(RetryableError, match="cannot write"):
                filesystem.write_bytes(str(file), b"content")
            (unfinished,) = {*file.parent.iterdir()} - before
            os.utime(unfinished, (10**9, 10**9))
            left.append(unfinished)
            file.write_bytes(content)
    pile.write({"a/new": 1})
    pile.run()
    assert not [file for file in left if file.exists()]


OTHERS = [
    "manifest.md", "reports/summer.html", "reports/old/x.html", "index/notes.parquet", f"index/{'g' * 20}.parquet",
    "versions/1.2.json", "versions/strange.json", "rejected/x.tmp", "shards/.mine.x.tmp", "lease/contract.pdf",
    f"shards/train-{'0' * 20}.parquet.bak", "src/x.py",
]  # fmt: skip


def write_others(folder: Path) -> dict[Path, bytes]:
    files = {folder / name: name.encode() for name in OTHERS}
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (10**9, 10**9))
    return files


def test_files_of_others_are_never_deleted(pile):
    """A project that came to lie in the DataSet's folder, with folders of our names."""
    pile.run()
    files = write_others(Path(pile.uri))
    newest = Path(pile.uri) / "versions" / "strange.json"
    for number in range(3):
        os.utime(newest, (2 * 10**9, 2 * 10**9))
        pile.write({f"a/{number}": number})
        pile.run(keep_versions=1, clean_after_hours=0)
    assert {file: file.read_bytes() for file in files} == files
    own = [file for file in (Path(pile.uri) / "versions").iterdir() if file not in files]
    assert [file.stem for file in own] == [load_manifest(pile.uri).digest], "theirs are not counted as versions"
    check_whole(pile.uri)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_others_is_refused(pile, name, replace):
    file = Path(pile.uri) / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"theirs")
    found = {"src/x.py": "src/", "reports/old/x.html": "reports/old"}.get(name, name)
    with pytest.raises(UserError, match=rf"holds no DataSet but other files \({re.escape(found)}\); choose an empty"):
        pile.run(replace=replace)
    assert [path for path in Path(pile.uri).rglob("*") if path.is_file()] == [file]


def test_a_manifest_of_another_program_is_refused(pile):
    file = Path(pile.uri) / "manifest.json"
    file.parent.mkdir()
    file.write_text('{"name": "an app", "manifest_version": 3}')
    for replace in (False, True):
        with pytest.raises((UserError, RetryableError), match=r"other files \(manifest.json\)|schema version None"):
            pile.run(replace=replace)
    assert [path.name for path in Path(pile.uri).iterdir()] == ["manifest.json"]


def test_many_files_of_others_are_not_all_named(pile):
    write_others(Path(pile.uri))
    with pytest.raises(UserError, match=r"\(index/[^)]*, [^)]* and 7 more\)"):
        pile.run()


@pytest.mark.parametrize("store", ["local", "s3"])
def test_what_a_first_run_left_is_no_folder_of_others(pile, tmp_path, new_bucket, store):
    """A run that was cut off before it published, even of version 0.1.0 or in the middle of writing a file."""
    pile.run("other")
    uri = pile.uri if store == "local" else filesystem.join(new_bucket(), "set")
    left = [file.relative_to(tmp_path / "other").parts for file in (tmp_path / "other").rglob("*.*")]
    left = [names for names in left if names != ("manifest.json",)]
    left += [
        ("shards", ".writable"), ("shards", ".new.ab_12.tmp"), ("lease", "claim-00000002-0123456789abcdef"),
        ("lease", "..00000001.json.0123456789abcdef.ab_12.tmp"), (".manifest.json.4711.tmp",), ("manifest.new.json",),
    ]  # fmt: skip
    assert {names[0] for names in left} >= {"shards", "index", "rejected", "reports", "versions", "lease"}
    for names in left:
        filesystem.write_bytes(filesystem.join(uri, *names), b"x")
    filesystem.delete(filesystem.join(uri, "manifest.new.json"))
    vectorize(pile.job(dataset_uri=uri), runner=LocalRunner())
    check_whole(uri)
