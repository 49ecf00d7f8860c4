"""The current manifest: what was published meanwhile is never replaced unseen, and there is always one to read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.dataset.manifest import (
    Manifest,
    Source,
    current_version,
    load_current,
    load_manifest,
    manifest_uri,
    publish,
)
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem
from tests.model.like_hdfs import pretend_hdfs


def version(number: int) -> Manifest:
    return Manifest(
        image=ImageConfig(), split=SplitConfig(seed=number), class_names=["a", "b"], mean=[0.1], std=[0.3], shards=[],
        source=Source(uri="/images", layout="folders", fingerprint="f", num_files=3),
    ).sealed()  # fmt: skip


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, new_bucket):
    return filesystem.join(new_bucket() if request.param == "s3" else str(tmp_path), "set")


@pytest.mark.parametrize("is_first", [True, False])
def test_what_was_published_meanwhile_stays(folder, is_first):
    if not is_first:
        publish(version(0), folder)
    seen = current_version(folder)
    publish(version(1), folder, replaces=seen)
    with pytest.raises(RetryableError, match=r"another process has published, or is publishing, .* repeat the command"):
        publish(version(2), folder, replaces=seen)
    assert load_manifest(folder) == version(1)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_many_that_publish_at_once_one_wins(folder, is_first):
    if not is_first:
        publish(version(0), folder)
    seen, begin, won = current_version(folder), threading.Barrier(6), []

    def run(number: int) -> None:
        # They meet at the write itself: the last call of `before_write`.
        calls = iter([lambda: None, begin.wait])
        try:
            publish(version(number), folder, replaces=seen, before_write=lambda: next(calls)())
            won.append(number)
        except RetryableError:
            pass

    threads = [threading.Thread(target=run, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert load_manifest(folder) == version(won[0])


class CrashError(BaseException):
    """The process is killed here."""


def crash(_path: str) -> None:
    raise CrashError


def test_where_a_file_is_absent_while_it_is_replaced_readers_see_a_manifest_all_the_time(tmp_path, monkeypatch):
    """On hdfs the old file is deleted before the new one has its name."""
    folder, seen = str(tmp_path / "set"), []

    def look(path: str) -> None:
        seen.append((Path(path).name, load_current(folder)))

    system = pretend_hdfs(monkeypatch)
    assert load_current(folder) is None
    system.between = look
    for number in range(3):
        publish(version(number), folder, replaces=current_version(folder))
        assert load_manifest(folder) == version(number)
    names = [f"{version(0).digest}.json", "manifest.new.json", "manifest.json"]
    assert [name for name, _ in seen[:3]] == names
    assert [manifest for _, manifest in seen[:3]] == [None, None, version(0)], "the first copy is the publication"
    for number in (1, 2):
        before, after = version(number - 1), version(number)
        assert [manifest for _, manifest in seen[3 * number :][:3]] == [before, before, after]


def test_a_crash_between_deletion_and_renaming_loses_no_dataset(tmp_path, monkeypatch):
    folder, system = str(tmp_path / "set"), pretend_hdfs(monkeypatch)
    publish(version(0), folder)
    system.between = lambda path: crash(path) if path.endswith("/manifest.json") else None
    with pytest.raises(CrashError):
        publish(version(1), folder, replaces=current_version(folder))
    assert not Path(manifest_uri(folder)).exists()
    assert load_manifest(folder) == version(1)
    del system.between
    publish(version(2), folder, replaces=current_version(folder))
    assert load_manifest(folder) == version(2)


def test_a_reader_that_comes_between_the_two_copies_looks_again(tmp_path, monkeypatch):
    """The manifest is absent when it looks there, and its copy is absent when it looks there: both were replaced."""
    folder = str(tmp_path / "set")
    pretend_hdfs(monkeypatch)
    publish(version(0), folder)
    read, absent = filesystem.read_bytes, iter([True, True])

    def read_late(uri: str) -> bytes:
        if next(absent, False):
            raise FileNotFoundError(uri)
        return read(uri)

    monkeypatch.setattr(filesystem, "read_bytes", read_late)
    assert load_manifest(folder) == version(0)


def test_a_version_that_was_not_published_is_not_followed(tmp_path):
    """A candidate, or what a run left that was cut off between its two writes."""
    folder = str(tmp_path)
    filesystem.write_bytes(manifest_uri(folder, version(1).digest), version(1).model_dump_json().encode())
    assert load_current(folder) is None
    with pytest.raises(UserError, match="is no published DataSet"):
        load_manifest(folder)
    assert load_manifest(folder, version(1).digest) == version(1)


def test_where_files_are_replaced_at_once_there_is_no_copy(folder):
    publish(version(0), folder)
    assert filesystem.list_names(folder) == ["manifest.json"]
