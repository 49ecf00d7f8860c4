"""IDX files: what they give, what is refused, and that single images are read of files larger than memory."""

from __future__ import annotations

import gzip
import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import shardmean.jobs.vectorize.source.idx
from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.source.reader import read_item
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import ImageRejectedError, UserError
from shardmean.model.storage import filesystem
from tests.jobs.scanning import scanned, told

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def refusal(tmp_path, vectorize_job):
    """Vectorize a source that must be refused, see that nothing was written, and give the message."""

    def refusal(source, **changes) -> str:
        with pytest.raises(UserError) as caught:
            vectorize(vectorize_job(source, tmp_path / "set", **changes), runner=LocalRunner())
        assert not (tmp_path / "set").exists()
        return str(caught.value)

    return refusal


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 3


def idx_images(pixels_NHW=PIXELS) -> bytes:
    return struct.pack(">4I", 2051, *pixels_NHW.shape) + pixels_NHW.tobytes()


def idx_labels(labels_N=LABELS) -> bytes:
    return struct.pack(">2I", 2049, len(labels_N)) + labels_N.tobytes()


@pytest.fixture
def idx(tmp_path):
    def idx(images: bytes, labels: bytes, *, name: str = "train", suffix: str = "") -> Path:
        folder = tmp_path / "idx"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}-images-idx3-ubyte{suffix}").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(labels)
        return folder

    return idx


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(idx, tmp_path, vectorize_job, suffix):
    pack = gzip.compress if suffix else bytes
    folder = idx(pack(idx_images()), pack(idx_labels()), suffix=suffix)
    vectorize(vectorize_job(folder, tmp_path / "set", layout="idx"), runner=LocalRunner())
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.class_names == ["0", "1", "2"]
    tables = [pq.read_table(tmp_path / "set" / "shards" / s.name).to_pandas() for s in manifest.shards]
    rows = pd.concat(tables).set_index("path").sort_index()
    assert list(rows.label) == LABELS.tolist()
    np.testing.assert_array_equal(np.stack([np.frombuffer(f, np.uint8) for f in rows.features]), PIXELS.reshape(40, -1))


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        (idx_images()[:-1], idx_labels(), "train-images-idx3-ubyte: not an IDX file"),
        (idx_images(), idx_labels()[:-1], "train-labels-idx1-ubyte: not an IDX file"),
        (b"", idx_labels(), "train-images-idx3-ubyte: not an IDX file"),
        (idx_images(), idx_labels(LABELS[:-1]), "39 labels for 40 images of "),
        (idx_labels(), idx_images(), "not an IDX file"),
        (idx_images(PIXELS[:0]), idx_labels(LABELS[:0]), "idx"),
        (idx_images(), idx_labels(LABELS * 0), "only one class, '0'"),
        (gzip.compress(idx_images())[:-9], idx_labels(), "train-images-idx3-ubyte: not an IDX file"),
        (gzip.compress(idx_images())[:-6] + bytes(6), idx_labels(), "train-images-idx3-ubyte: not an IDX file"),
        (gzip.compress(idx_images())[:50] + bytes(99), idx_labels(), "train-images-idx3-ubyte: not an IDX file"),
    ],
    ids=[
        "images-cut",
        "labels-cut",
        "empty",
        "counts-differ",
        "swapped",
        "no-images",
        "one-class",
        "gz-cut",
        "gz-checksum",
        "gz-garbage",
    ],
)
def test_wrong_idx(idx, refusal, images, labels, part):
    assert part in refusal(idx(images, labels), layout="idx")


def test_idx_files_without_their_pair(idx, refusal):
    folder = idx(idx_images(), idx_labels())
    (folder / "train-labels-idx1-ubyte").unlink()
    assert "found 1 and 0" in refusal(folder, layout="idx")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_labels())
    assert "train" in refusal(folder, layout="idx"), "images of one name must not get labels of another"


def test_idx_files_with_a_name_that_is_not_utf_8(idx, refusal):
    folder = idx(idx_images(), idx_labels())
    for kind in ("images-idx3", "labels-idx1"):
        (folder / f"train-{kind}-ubyte").rename(folder / os.fsdecode(f"caf\xe9-{kind}-ubyte".encode("latin-1")))
    assert r"caf\xe9-images-idx3-ubyte: a name that is not UTF-8; rename it" in refusal(folder, layout="idx")


def test_idx_files_plain_and_packed_at_once_are_not_counted_twice(idx, refusal):
    """Some unpack MNIST's files and keep the archives beside them."""
    idx(idx_images(), idx_labels())
    folder = idx(gzip.compress(idx_images()), gzip.compress(idx_labels()), suffix=".gz")
    assert "train" in refusal(folder, layout="idx")


def test_idx_files_that_were_replaced_are_read_anew(idx):
    config = SourceConfig(uri=str(idx(idx_images(), idx_labels())), layout="idx")
    scan(config)
    idx(idx_images(255 - PIXELS), idx_labels())
    stream = read_item(scan(config).items[0])
    header, first = stream[: -PIXELS[0].size], np.frombuffer(stream[-PIXELS[0].size :], np.uint8)
    assert header.startswith(b"P5")
    np.testing.assert_array_equal(first, 255 - PIXELS[0].ravel())


def test_idx_files_of_no_split(idx):
    folder = idx(idx_images(), idx_labels(), name="extra")
    with pytest.raises(
        UserError, match=r"extra-images-idx3-ubyte is of no split; expected train or .*split_files=false"
    ):
        scan(SourceConfig(uri=str(folder), layout="idx", split_files=True))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_that_claims_more_than_memory_holds(idx, refusal, pack):
    """Nothing is set aside for it: its size, and what gzip can pack, say that it lies."""
    images = struct.pack(">4I", 2051, 2**31, 28, 28) + bytes(1000)
    message = refusal(idx(pack(images), idx_labels()), layout="idx")
    if pack is bytes:
        assert "its head says 2147483648 x 28 x 28 bytes after a head of 16, so 1683627180048 in all; it has" in message
    else:
        assert "that would unpack to 1683627180032, more than 100 times as much" in message


def test_a_packed_idx_bomb_is_refused_unread(idx, refusal):
    """1.2 MB of zeros that would be 1.2 GB; only the head is unpacked."""
    head = struct.pack(">4I", 2051, 300_000, 64, 64)
    bomb = gzip.compress(head + bytes(2**20))[:-8] + bytes(1_200_000)
    message = refusal(idx(bomb, gzip.compress(idx_labels()), suffix=".gz"), layout="idx")
    assert f"{len(bomb)} bytes that would unpack to 1228800000, more than 100 times as much" in message
    assert "unpack it yourself" in message


def test_a_small_packed_idx_may_be_packed_well(idx):
    blank = np.zeros((40, 500, 500), np.uint8)
    folder = idx(gzip.compress(idx_images(blank)), gzip.compress(idx_labels()), suffix=".gz")
    assert len(scan(SourceConfig(uri=str(folder), layout="idx")).items) == 40


@pytest.mark.parametrize(
    ("pixels_NHW", "num_changed"),
    [(PIXELS[:30], 10), (PIXELS[:, :, :7], 40), (PIXELS, 0)],
    ids=["rows", "size", "same"],
)
def test_an_idx_file_that_changes_after_it_was_listed(idx, pixels_NHW, num_changed):
    items = scan(SourceConfig(uri=str(idx(idx_images(), idx_labels())), layout="idx")).items
    idx(idx_images(pixels_NHW), idx_labels())
    shardmean.jobs.vectorize.source.idx._open_images.cache_clear()  # as in a task, which is another process
    details = []
    for item in items:
        try:
            read_item(item)
        except ImageRejectedError as error:
            details.append((error.reason, error.detail))
    assert len(details) == num_changed
    num, height, width = pixels_NHW.shape
    for reason, detail in details:
        assert reason == "changed"
        assert f" of 144 bytes when the source was listed, {num} rows of {height * width} when it was read" in detail


def test_single_images_of_a_file_larger_than_any_memory(tmp_path):
    """A terabyte that takes no room on the disk."""
    file = tmp_path / "train-images-idx3-ubyte"
    num_images, num_bytes = 2**20, 2**20
    last = np.random.default_rng(0).bytes(num_bytes)
    with file.open("wb") as stream:
        stream.write(struct.pack(">4I", 2051, num_images, 1024, 1024))
        stream.seek(16 + (num_images - 1) * num_bytes)
        stream.write(last)
    images = shardmean.jobs.vectorize.source.idx.open_images(str(file), 0)
    assert images.shape == (num_images, 1024, 1024)
    assert images.read(num_images - 1) == last
    assert images.read(5) == bytes(num_bytes)


def test_labels_are_not_read_where_they_are_too_many(idx, refusal):
    folder = idx(idx_images(), struct.pack(">2I", 2049, 2**32 - 1))
    os.truncate(folder / "train-labels-idx1-ubyte", 8 + 2**32 - 1)
    assert "4294967295 labels for 40 images of " in refusal(folder, layout="idx")


def test_a_file_that_is_cut_while_it_is_read(idx):
    folder = idx(idx_images(), idx_labels())
    items = scan(SourceConfig(uri=str(folder), layout="idx")).items
    os.truncate(folder / "train-images-idx3-ubyte", 16 + 39 * 144 + 5)
    assert len(read_item(items[38])) == len(b"P5\n12 12\n255\n") + 144
    with pytest.raises(ImageRejectedError, match=r"changed: row 39 of 144 bytes when the source was listed"):
        read_item(items[39])


@pytest.mark.parametrize("whole_bytes", [0, 10**6], ids=["rows", "whole"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_store_gives_what_a_disk_gives(idx, new_bucket, tmp_path, vectorize_job, monkeypatch, whole_bytes, pack):
    monkeypatch.setattr(shardmean.jobs.vectorize.source.idx, "_WHOLE_BYTES", whole_bytes)
    folder = idx(pack(idx_images()), pack(idx_labels()))
    bucket = new_bucket()
    for file in folder.iterdir():
        filesystem.write_bytes(filesystem.join(bucket, file.name), file.read_bytes())
    digests = set()
    for number, uri in enumerate((str(folder), bucket)):
        job = vectorize_job(folder, tmp_path / f"set {number}", layout="idx")
        job = job.model_copy(update={"source": SourceConfig(uri=uri, layout="idx")})
        digests.add(vectorize(job, runner=LocalRunner()).digest)
    assert len(digests) == 1


def _idx(folder: Path, name: str, labels: list[int], dash: str = "-") -> None:
    head = struct.pack(">4I", 2051, len(labels), 2, 2)
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-images{dash}idx3-ubyte").write_bytes(head + bytes(4 * len(labels)))
    (folder / f"{name}-labels{dash}idx1-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">2I", 2049, len(labels)) + bytes(labels))
    )


@pytest.mark.parametrize("dash", ["-", "."])
def test_idx_files_that_are_already_split(tmp_path, dash):
    for name, labels in {"emnist-letters-train": [0, 1], "t10k": [1], "validation": [0]}.items():
        _idx(tmp_path, name, labels, dash)
    splits = [(i.split, i.class_name) for i in scanned(tmp_path, layout="idx", split_files=True).values()]
    assert sorted(splits) == [("test", "1"), ("train", "0"), ("train", "1"), ("validation", "0")]
    assert set(told(tmp_path, "split", layout="idx").values()) == {None}
    assert len(scanned(tmp_path, layout="idx", include=["emnist*"])) == 2


def test_idx_files_of_the_same_name_in_two_folders(tmp_path):
    for name in ("one", "two"):
        _idx(tmp_path / name, "train", [0, 1])
    assert len(scanned(tmp_path, layout="idx")) == 4
