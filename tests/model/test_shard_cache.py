"""The shard cache: fetched once, bounded in bytes, least recently used first to go, never trusted unseen."""

from __future__ import annotations

import logging
import os

import pyarrow as pa
import pytest

from model.shard_cache import ShardCache


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


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_shard_is_fetched_once(tmp_path):
    store = Store()
    for cache in (ShardCache(tmp_path / "cache", 1000), ShardCache(tmp_path / "cache", 1000)):
        for _ in range(2):
            assert store.read(cache, "a") == store.content("a")
    assert store.fetched == ["a"]


def test_those_used_least_lately_go_when_it_is_full(tmp_path):
    store, cache = Store(), ShardCache(tmp_path, 300)
    for number, name in enumerate("abc"):
        store.read(cache, name)
        os.utime(tmp_path / name, (number, number))
    store.read(cache, "a")
    store.read(cache, "d")
    assert names(tmp_path) == ["a", "c", "d"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 300


def test_a_shard_larger_than_the_cache_is_not_kept_and_evicts_nothing(tmp_path):
    cache = ShardCache(tmp_path, 150)
    Store(100).read(cache, "a")
    large = Store(200)
    assert large.read(cache, "b") == large.content("b")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("damage", [b"", b"something else"])
def test_a_damaged_file_is_fetched_anew(tmp_path, damage):
    store, cache = Store(), ShardCache(tmp_path, 1000)
    store.read(cache, "a")
    (tmp_path / "a").write_bytes(damage)
    assert store.read(cache, "a") == store.content("a")
    assert store.fetched == ["a", "a"]
    assert (tmp_path / "a").read_bytes() == store.content("a")


def test_one_that_cannot_be_written_is_done_without(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    store, cache = Store(), ShardCache(tmp_path / "file", 1000)
    with caplog.at_level(logging.WARNING):
        assert store.read(cache, "a") == store.content("a")
    assert "the shard cache can't be used" in caplog.text
