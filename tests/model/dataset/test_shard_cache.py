"""The shard cache: fetched once, bounded in bytes, least recently used first to go, never trusted unseen."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pyarrow as pa
import pytest

from shardmean.model.dataset.manifest import shard_uri
from shardmean.model.dataset.shard_cache import ShardCache
from shardmean.model.errors import RetryableError
from shardmean.model.storage import filesystem
from shardmean.model.training.worker_runtime import open_dataset


class Store:
    """A remote store that counts what is fetched from it."""

    def __init__(self, size: int = 100) -> None:
        self.size = size
        self.fetched: list[str] = []

    def content(self, name: str) -> bytes:
        return (name * self.size).encode()[: self.size]

    def read(self, cache: ShardCache, name: str) -> bytes:
        def fetch() -> pa.Buffer:
            self.fetched.append(name)
            return pa.py_buffer(self.content(name))

        return cache.read(name, fetch, lambda buffer: buffer.to_pybytes() == self.content(name)).to_pybytes()


def shard(number: int) -> str:
    return f"train-{number:020x}.parquet"


A, B, C, D = map(shard, range(4))


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_shard_is_fetched_once(tmp_path):
    store = Store()
    for cache in (ShardCache(tmp_path / "cache", 1000), ShardCache(tmp_path / "cache", 1000)):
        for _ in range(2):
            assert store.read(cache, A) == store.content(A)
    assert store.fetched == [A]


def test_those_used_least_lately_go_when_it_is_full(tmp_path):
    store, cache = Store(), ShardCache(tmp_path, 300)
    for number, name in enumerate([A, B, C]):
        store.read(cache, name)
        os.utime(tmp_path / name, (number, number))
    store.read(cache, A)
    store.read(cache, D)
    assert names(tmp_path) == [A, C, D]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 300


def test_a_shard_larger_than_the_cache_is_not_kept_and_evicts_nothing(tmp_path):
    cache = ShardCache(tmp_path, 150)
    Store(100).read(cache, A)
    large = Store(200)
    assert large.read(cache, B) == large.content(B)
    assert names(tmp_path) == [A]


@pytest.mark.parametrize("damage", [b"", b"something else"])
def test_a_damaged_file_is_fetched_anew(tmp_path, damage):
    store, cache = Store(), ShardCache(tmp_path, 1000)
    store.read(cache, A)
    (tmp_path / A).write_bytes(damage)
    assert store.read(cache, A) == store.content(A)
    assert store.fetched == [A, A]
    assert (tmp_path / A).read_bytes() == store.content(A)


def test_one_that_cannot_be_written_is_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    store, cache = Store(), ShardCache(tmp_path / "file", 1000)
    with caplog.at_level(logging.WARNING):
        assert store.read(cache, A) == store.content(A)
    assert "the shard cache can't be used" in caplog.text


def test_one_that_has_become_read_only_is_done_without(tmp_path, caplog, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    store, cache = Store(), ShardCache(tmp_path, 1000)
    store.read(cache, A)
    for name in ("utime", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    with caplog.at_level(logging.WARNING):
        assert store.read(cache, A) == store.content(A)
    assert "Read-only file system" in caplog.text


def test_what_is_not_a_shard_is_neither_counted_nor_deleted(tmp_path):
    """A folder that holds other things too, older than any shard and larger than all the cache."""
    (tmp_path / "thesis.docx").write_bytes(b"x" * 1000)
    (tmp_path / "old").mkdir()
    for path in (tmp_path / "thesis.docx", tmp_path / "old"):
        os.utime(path, (0, 0))
    store, cache = Store(), ShardCache(tmp_path, 250)
    for name in (A, B, C):
        store.read(cache, name)
    assert names(tmp_path) == ["old", "thesis.docx", B, C]


def test_what_a_killed_worker_left_half_written_goes_too(tmp_path):
    half = tmp_path / f".{A}.x1y_2z.tmp"
    half.write_bytes(b"x" * 200)
    os.utime(half, (0, 0))
    Store().read(ShardCache(tmp_path, 250), B)
    assert names(tmp_path) == [B]


def test_a_file_that_another_worker_deletes_meanwhile_does_not_matter(tmp_path, monkeypatch):
    store, cache = Store(), ShardCache(tmp_path, 150)
    store.read(cache, A)
    listed = list(tmp_path.iterdir())
    (tmp_path / A).unlink()
    monkeypatch.setattr(Path, "iterdir", lambda _folder: iter(listed))
    store.read(cache, B)
    monkeypatch.undo()
    assert names(tmp_path) == [B]


def test_a_link_in_the_folders_place_is_not_trusted(tmp_path, caplog):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    store, cache = Store(), ShardCache(tmp_path / "cache", 1000)
    with caplog.at_level(logging.WARNING):
        assert store.read(cache, A) == store.content(A)
    assert "cache is a link, not a folder" in caplog.text
    assert not names(tmp_path / "elsewhere")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_trusted(tmp_path, caplog):
    os.chown(tmp_path, 12345, -1)
    store, cache = Store(), ShardCache(tmp_path, 1000)
    with caplog.at_level(logging.WARNING):
        assert store.read(cache, A) == store.content(A)
    assert "belongs to user 12345" in caplog.text
    assert not names(tmp_path)


@pytest.fixture
def remote(tiny_data, new_bucket):
    """The small DataSet in a bucket."""
    uri = filesystem.join(new_bucket(), "tiny")
    for file in Path(tiny_data.uri).rglob("*.*"):
        filesystem.write_bytes(filesystem.join(uri, *file.relative_to(tiny_data.uri).parts), file.read_bytes())
    return uri


def rows(dataset) -> list[tuple[str, bytes]]:
    pieces = [dataset.read(s, 0, s.num_examples) for s in dataset.manifest.shards]
    return [(name, pixels.tobytes()) for p in pieces for name, pixels in zip(p.ids, p.features_NCHW, strict=True)]


def test_a_remote_dataset_is_read_once_and_then_from_the_cache(remote, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDMEAN_CACHE_DIR", str(tmp_path))
    digest, cache = tiny_data.manifest.digest, tmp_path / f"shardmean-shards-{os.getuid()}"
    first = open_dataset(remote, digest, cache_bytes=2**20)
    assert rows(first) == rows(tiny_data)
    assert names(cache) == sorted(shard.name for shard in tiny_data.manifest.shards)
    lost = tiny_data.manifest.shards[0]
    filesystem.delete(shard_uri(remote, lost.name))
    again = open_dataset(remote, digest, cache_bytes=2**20 + 1)
    assert rows(again) == rows(tiny_data)
    (cache / lost.name).write_bytes(b"x" * lost.num_bytes)
    with pytest.raises(RetryableError, match=r"-[0-9a-f]{20}\.parquet.*: missing"):
        rows(open_dataset(remote, digest, cache_bytes=2**20 + 2))


def test_local_shards_are_not_cached(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDMEAN_CACHE_DIR", str(tmp_path / "cache"))
    assert rows(open_dataset(tiny_data.uri, tiny_data.manifest.digest, cache_bytes=2**20)) == rows(tiny_data)
    assert not (tmp_path / "cache").exists()
