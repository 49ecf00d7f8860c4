"""Laws of a shard in the making: what goes in comes out, in one piece or row by row, and half of one leaves nothing."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmean.model.dataset import shard_writer
from shardmean.model.dataset.shard import read_shard, rows_table
from shardmean.model.dataset.shard_writer import ShardWriter, write_shard
from shardmean.model.errors import RetryableError
from shardmean.model.storage.atomic_file import LocalFile


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 400),
    channels=st.sampled_from([1, 3]),
    side=st.integers(1, 12),
    num_extras=st.integers(0, 8),
    letters=st.sampled_from([0, 1, 30, 3000]),
    group_bytes=st.sampled_from([1, 50, 10_000, shard_writer.ROW_GROUP_BYTES]),
    seed=st.integers(0, 2**32),
)
def test_rows_come_back_and_one_by_one_give_the_same_file(
    tmp_path_factory, num_rows, channels, side, num_extras, letters, group_bytes, seed
):
    folder = str(tmp_path_factory.mktemp("shard"))
    draw = np.random.default_rng(seed)
    values = [None, *("".join(map(chr, draw.integers(0x20, 0xD7FF, letters))) for _ in range(20))]
    extras = {f"extra {n}": [values[i] for i in draw.integers(0, 21, num_rows)] for n in range(num_extras)}
    pixels_NB = draw.integers(0, 256, (num_rows, channels * side * side), dtype=np.uint8)
    labels_N = draw.integers(0, 5, num_rows)
    ids, paths = ([draw.bytes(25).hex() for _ in range(num_rows)] for _ in range(2))
    table = rows_table(pixels_NB, labels_N, ids, paths, extras)
    shape = (channels, side, side)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "ROW_GROUP_BYTES", group_bytes)
        shard = write_shard(folder, "train", table, shape=shape)
        with ShardWriter(folder, "train", shape=shape, extra_columns=list(extras)) as one_by_one:
            for row in range(num_rows):
                extra = [column[row] for column in extras.values()]
                one_by_one.add(pixels_NB[row].reshape(shape), int(labels_N[row]), ids[row], paths[row], extra)
            assert one_by_one.publish() == shard
    assert read_shard(folder, shard).equals(table)
    planes_NCP = pixels_NB.reshape(num_rows, channels, -1).astype(np.int64)
    assert shard.sums == planes_NCP.sum(axis=(0, 2)).tolist()
    assert shard.squares == (planes_NCP**2).sum(axis=(0, 2)).tolist()
    assert shard.num_per_class == {label: int((labels_N == label).sum()) for label in sorted(set(labels_N.tolist()))}


@pytest.mark.parametrize("where", ["in the middle", "at the end"])
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, monkeypatch, where):
    monkeypatch.setattr(shard_writer, "ROW_GROUP_BYTES", 64)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with ShardWriter(str(tmp_path), "train", shape=(1, 8, 8)) as shard:
            shard.add(np.zeros((1, 8, 8), np.uint8), 0, "first", "first")
            monkeypatch.setattr(LocalFile, "write" if where == "in the middle" else "publish", full)
            shard.add(np.zeros((1, 8, 8), np.uint8), 0, "second", "second")
            shard.publish()

    with pytest.raises(
        RetryableError, match=rf"cannot write {tmp_path}/shards: No space left on device; check permission"
    ):
        write()
    assert not list((tmp_path / "shards").iterdir())


def test_what_ends_the_work_on_a_shard_stays_what_it_was(tmp_path):
    def write() -> None:
        with ShardWriter(str(tmp_path), "train", shape=(1, 8, 8)) as shard:
            shard.add(np.zeros((1, 8, 8), np.uint8), 0, "first", "first")
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        write()
    assert not list((tmp_path / "shards").iterdir())
