"""A DataSet's laws: what is published comes back, its digest is its identity, and damage is told, never trained on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.dataset import reader, shard_writer
from shardmean.model.dataset.manifest import Manifest, Shard, Source, load_manifest, manifest_uri, publish
from shardmean.model.dataset.reader import Dataset
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5, unique=True)


def manifest_with(class_names: list[str], **other) -> Manifest:
    fields = {
        "image": ImageConfig(),
        "split": SplitConfig(),
        "class_names": class_names,
        "mean": [0.1],
        "std": [1 / 3],
        "shards": [
            Shard(
                name=f"train-{'ab' * 10}.parquet", split="train", num_examples=3, num_bytes=9, blake3="c" * 64,
                num_per_class={0: 3},
            )
        ],
        "source": Source(uri="/images", layout="folders", fingerprint="f", num_files=3),
    }  # fmt: skip
    return Manifest(**(fields | other)).sealed()


def edit(folder: Path, change) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def shard_path(dataset: Dataset, shard: Shard) -> Path:
    return Path(dataset.uri) / "shards" / shard.name


def read_all(dataset: Dataset, shard: Shard) -> reader.Examples:
    return dataset.read(shard, 0, shard.num_examples)


@settings(deadline=None)
@given(NAMES, st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_a_manifest_comes_back_as_it_was_published(tmp_path_factory, names, mean, seed):
    folder = str(tmp_path_factory.mktemp("dataset"))
    manifest = manifest_with(names, mean=[mean], split=SplitConfig(seed=seed))
    publish(manifest, folder)
    assert load_manifest(folder) == manifest
    assert load_manifest(folder, manifest.digest) == manifest


@pytest.mark.parametrize("other", [
    {"mean": [0.2]}, {"std": [0.3]}, {"shards": []}, {"num_rejected": 1}, {"split": SplitConfig(seed=1)},
    {"image": ImageConfig(resize="fit")},
])  # fmt: skip
def test_the_digest_changes_with_the_content(other):
    assert manifest_with(["a", "b"], **other).digest != manifest_with(["a", "b"]).digest
    assert manifest_with(["b", "a"]).digest != manifest_with(["a", "b"]).digest


def test_the_digest_does_not_change_with_the_source():
    moved = Source(uri="s3://elsewhere", layout="table", fingerprint="g", num_files=4)
    assert manifest_with(["a"], source=moved).digest == manifest_with(["a"]).digest


def test_a_missing_manifest_is_the_users_mistake(tmp_path):
    uri = f"{tmp_path}/nothing"
    with pytest.raises(
        UserError, match=r"not found, so .*/nothing is no published DataSet .* run `shardmean vectorize`"
    ):
        load_manifest(uri)
    with pytest.raises(
        UserError, match=rf"nothing has no version {'a' * 32}, or has it no more .* give another version"
    ):
        load_manifest(uri, "a" * 32)


def test_a_manifest_edited_by_hand_is_told(make_dataset, tmp_path):
    digest = make_dataset(tmp_path, rows={"train": 5}).manifest.digest
    edit(tmp_path, lambda content: content["class_names"].reverse())
    with pytest.raises(
        RetryableError, match=f"manifest's digest is {digest} but its content gives [0-9a-f]{{32}}: it was"
    ):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_half_written_json_is_told(make_dataset, tmp_path, share):
    make_dataset(tmp_path, rows={"train": 5})
    path = tmp_path / "manifest.json"
    text = path.read_bytes()
    path.write_bytes(text[: int(len(text) * share)])
    with pytest.raises(
        RetryableError, match=r"manifest.json: not a manifest: .*; restore it, or run vectorize with replace"
    ):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize("text", [b"[1, 2]", b"null", b'{"schema_version": 3}', b"\xff\xfe\x00"])
def test_other_json_is_no_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(RetryableError, match="not a manifest"):
        load_manifest(str(tmp_path))


def test_a_newer_schema_is_told(make_dataset, tmp_path):
    make_dataset(tmp_path, rows={"train": 5})
    edit(tmp_path, lambda content: content.update(schema_version=4, some_new_field=3))
    with pytest.raises(UserError, match="schema version 4, but this Shardmean reads 3; use a matching version"):
        load_manifest(str(tmp_path))


def test_a_version_stays_readable_after_the_next(make_dataset, tmp_path):
    first = make_dataset(tmp_path, rows={"train": 20}, seed=1)
    rows = read_all(first, first.manifest.shards_of("train")[0])
    second = make_dataset(tmp_path, rows={"train": 25}, seed=2)
    assert load_manifest(str(tmp_path)) == second.manifest != first.manifest
    again = Dataset(str(tmp_path), load_manifest(str(tmp_path), first.manifest.digest))
    assert again.manifest == first.manifest
    np.testing.assert_array_equal(read_all(again, again.manifest.shards[0]).features_NCHW, rows.features_NCHW)


def test_a_version_that_holds_another_is_told(make_dataset, tmp_path):
    first = make_dataset(tmp_path, rows={"train": 20}, seed=1).manifest
    make_dataset(tmp_path, rows={"train": 25}, seed=2)
    (tmp_path / "versions" / f"{first.digest}.json").write_bytes((tmp_path / "manifest.json").read_bytes())
    with pytest.raises(RetryableError, match=first.digest):
        load_manifest(str(tmp_path), first.digest)


def test_shards_are_named_by_content_and_writing_twice_gives_the_same(make_dataset, tmp_path):
    one = make_dataset(tmp_path / "a", rows={"train": 40, "test": 9})
    other = make_dataset(tmp_path / "b", rows={"train": 40, "test": 9}, source="elsewhere")
    assert one.manifest.shards == other.manifest.shards
    assert one.manifest.digest == other.manifest.digest
    assert len(one.manifest.shards) == 3 + 1, "64-byte examples, 16 of which reach 1000 bytes"
    for shard in one.manifest.shards:
        content = shard_path(one, shard).read_bytes()
        assert blake3(content).hexdigest() == shard.blake3
        assert shard.name == f"{shard.split}-{shard.blake3[:20]}.parquet"
        assert shard.num_bytes == len(content)
    assert sum(shard.num_examples for shard in one.manifest.shards_of("train")) == 40


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_pyarrow_pandas_and_read_give_the_same_rows(make_dataset, tmp_path, monkeypatch, shape):
    monkeypatch.setattr(shard_writer, "ROW_GROUP_BYTES", 500)
    dataset = make_dataset(tmp_path, rows={"train": 50}, shape=shape, shard_bytes=2000)
    for shard in dataset.manifest.shards:
        path = shard_path(dataset, shard)
        assert pq.ParquetFile(path).num_row_groups > 1
        table, frame, rows = pq.read_table(path), pd.read_parquet(path), read_all(dataset, shard)
        pixels = [np.frombuffer(value, np.uint8).reshape(shape) for value in frame["features"]]
        np.testing.assert_array_equal(rows.features_NCHW, np.stack(pixels))
        assert frame["features"].tolist() == table["features"].to_pylist()
        assert rows.labels_N.tolist() == frame["label"].tolist() == table["label"].to_pylist()
        assert rows.ids == frame["id"].tolist() == table["id"].to_pylist()
        assert rows.paths == frame["path"].tolist() == table["path"].to_pylist()
        assert Counter(rows.labels_N.tolist()) == shard.num_per_class


def test_any_range_is_a_slice_of_the_whole(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "ROW_GROUP_BYTES", 300)
    dataset = make_dataset(tmp_path, rows={"train": 16})
    (shard,) = dataset.manifest.shards
    whole = read_all(dataset, shard)
    for start, stop in itertools.combinations(range(17), 2):
        part = dataset.read(shard, start, stop)
        assert part.ids == whole.ids[start:stop]
        np.testing.assert_array_equal(part.features_NCHW, whole.features_NCHW[start:stop])


def damaged(make_dataset, folder: Path) -> tuple[Dataset, Path, Path]:
    """A DataSet and the paths of its first two shards, which have as many rows."""
    dataset = make_dataset(folder, rows={"train": 32})
    first, second = dataset.manifest.shards
    return dataset, shard_path(dataset, first), shard_path(dataset, second)


def read_damaged(dataset: Dataset) -> str:
    with pytest.raises(RetryableError) as damage:
        read_all(dataset, dataset.manifest.shards[0])
    message = str(damage.value)
    assert dataset.manifest.shards[0].name in message
    assert message.endswith("the shard is damaged: restore the DataSet, or run vectorize with replace=true")
    return message


def test_a_shard_cut_short_is_told(make_dataset, tmp_path):
    dataset, path, _ = damaged(make_dataset, tmp_path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    assert f"{size // 2} bytes, the manifest says {size}" in read_damaged(dataset)


def test_a_deleted_shard_is_told(make_dataset, tmp_path):
    dataset, path, _ = damaged(make_dataset, tmp_path)
    path.unlink()
    assert "None" not in read_damaged(dataset), "that it is missing, not that it has `None bytes`"


def test_a_shard_swapped_with_another_is_told(make_dataset, tmp_path):
    dataset, path, other = damaged(make_dataset, tmp_path)
    assert path.stat().st_size != other.stat().st_size
    path.write_bytes(other.read_bytes())
    read_damaged(dataset)


def test_a_shard_swapped_with_another_of_its_size_is_told(make_dataset, tmp_path):
    dataset, path, other = damaged(make_dataset, tmp_path)
    path.write_bytes(other.read_bytes())
    # Sizes of two shards meet by chance only; here the manifest is made to say so.
    first, second = dataset.manifest.shards
    same = [first.model_copy(update={"num_bytes": second.num_bytes}), second]
    read_damaged(Dataset(dataset.uri, dataset.manifest.model_copy(update={"shards": same})))


def test_a_shard_with_another_pixel_is_told(make_dataset, tmp_path):
    dataset, path, _ = damaged(make_dataset, tmp_path)
    pixels = read_all(dataset, dataset.manifest.shards[0]).features_NCHW[3].tobytes()
    content = path.read_bytes()
    assert content.count(pixels) == 1
    path.write_bytes(content.replace(pixels, bytes([pixels[0] ^ 1]) + pixels[1:]))
    read_damaged(Dataset(dataset.uri, dataset.manifest))


def test_a_shard_with_a_damaged_footer_raises_nothing_but_world_error(make_dataset, tmp_path):
    dataset, path, _ = damaged(make_dataset, tmp_path)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    for place in generator.integers(len(content) - 900, len(content), 400):
        broken = bytearray(content)
        broken[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        with contextlib.suppress(RetryableError):
            Dataset(dataset.uri, dataset.manifest).read(dataset.manifest.shards[0], 0, 16)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch, step):
    path = tmp_path / "folder" / "file"
    filesystem.write_bytes(str(path), b"before")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
    with pytest.raises(
        RetryableError, match=r"cannot write .*file: No space left on device; check permission and free sp"
    ):
        filesystem.write_bytes(str(path), b"after")
    assert [found.name for found in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"


def test_publishing_names_the_version_before_the_current_manifest(make_dataset, tmp_path, monkeypatch):
    # Who reads while a publish is cut off between its two writes still sees the whole version before.
    before = make_dataset(tmp_path, rows={"train": 5}).manifest
    written: list[str] = []
    monkeypatch.setattr(filesystem, "write_bytes", lambda uri, data: written.append(uri))
    after = manifest_with(["new"])
    publish(after, str(tmp_path))
    assert written == [manifest_uri(str(tmp_path), after.digest), manifest_uri(str(tmp_path))]
    assert load_manifest(str(tmp_path)) == before
