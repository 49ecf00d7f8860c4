"""Sources that are no source: folders, tables and IDX files that hold something else than the config says."""

from __future__ import annotations

import gzip
import shutil
import struct
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import SourceConfig
from jobs.idx import read_images
from jobs.sources import read_item, scan
from jobs.vectorize import vectorize
from model.errors import ImageRejectedError, UserError
from model.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture
def refusal(tmp_path, vectorize_job):
    """Vectorize a source that must be refused, see that nothing was written, and give the message."""

    def refusal(source, **changes) -> str:
        with pytest.raises(UserError) as caught:
            vectorize(vectorize_job(source, tmp_path / "set", **changes))
        assert not (tmp_path / "set").exists()
        return str(caught.value)

    return refusal


def test_missing_folder(tmp_path, refusal):
    assert refusal(tmp_path / "no") == f"source {tmp_path}/no: no such folder; correct source.uri"


def test_a_file_in_place_of_the_folder(tmp_path, refusal):
    (tmp_path / "file").write_text("x")
    assert "a file, not a folder; correct source.uri or source.layout" in refusal(tmp_path / "file")


def test_empty_folder(tmp_path, refusal):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    assert "no files; expected FOLDER/CLASS/IMAGE" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "class" / ".1.png").touch()
    assert "no files (and 1 hidden files and folders); expected FOLDER/CLASS/IMAGE" in refusal(tmp_path / "empty")


def test_no_image_among_the_files(tmp_path, refusal):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    assert "1 files, none of them an image; expected FOLDER/CLASS/IMAGE" in refusal(tmp_path / "other")


def test_images_outside_class_folders(tmp_path, make_images, refusal):
    images = make_images(tmp_path / "images", num_per_class=2)
    shutil.copy(images / "low" / "000.png", images / "loose.png")
    message = refusal(images)
    for part in ("1 images stand outside any class folder (first: loose.png)", "source.layout=table"):
        assert part in message


def test_only_one_class(tmp_path, make_images, refusal):
    message = refusal(make_images(tmp_path / "images", ["alone"], num_per_class=3))
    assert "only one class, 'alone'; a classifier needs two or more" in message


@pytest.mark.parametrize("uri", ["ftp://host/images", "abfs://x@y/z"])
def test_unknown_store(refusal, uri):
    message = refusal(uri)
    assert f"{uri}: unknown store" in message
    assert "use a local path or one of file, s3" in message


@pytest.fixture
def table(tmp_path, make_images):
    """A function that writes a table beside a few images, from its text."""
    images = make_images(tmp_path / "images", ["a", "b"], num_per_class=8)

    def table(text: str | bytes, name: str = "table.csv") -> Path:
        (images / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return images / name

    return table


ROWS = "path,label\na/000.png,x\nb/000.png,y\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            ROWS + "a/no.png,x\nno/1.png,y\n",
            ["2 of 4 paths are no files (50.0%, first: ", "a/no.png), over the limit max_rejected_fraction=0.05; "],
        ),
        (
            "path,label\na/no.png,x\nno/1.png,y\n",
            ["none of its 2 paths is a file (first: ", "a/no.png); correct the table; relative paths start at its fol"],
        ),
        (ROWS + "a/000.png,y\n", ["a/000.png stands in more than one row; keep one"]),
        (ROWS + "./a/000.png,y\n", ["a/000.png stands in more than one row; keep one"]),
        (ROWS + "a/001.png,\n", ["1 of 3 rows have no label; fill them in"]),
        (ROWS + ",x\n", ["1 of 3 rows have no path; fill them in"]),
        (ROWS.replace("label", "class"), ["no column 'label' among path, class", "set source.path_column"]),
        (ROWS.replace("path", "file"), ["no column 'path' among file, label", "source.label_column"]),
        (ROWS.replace("path,label", "path,label,label").replace("x\n", "x,1\n").replace("y\n", "y,1\n"), ["label"]),
        (ROWS.replace("y\n", "x\n"), ["only one class, 'x'"]),
        (ROWS + "a,b,c\n", ["neither CSV nor Parquet", "Expected 2 columns, got 3"]),
        (ROWS + "a,x\n", ["1 of 3 paths are no files (33.3%, "]),
        ("path,label\n", ["no rows"]),
        ("", ["Empty CSV file"]),
        (b"\x89PNG\r\n\x1a\n\xff\xfe,x\n1,2\n", ["neither CSV nor Parquet"]),
    ],
)
def test_wrong_table(table, refusal, text, parts):
    message = refusal(table(text), layout="table")
    assert "source " in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a/" + "x" * 300 + ".png,x\n", "a path is too long"),
        ("a/00\0.png,x\n", "a path is no path: Embedded NUL"),
        ("ftp://host/1.png,x\n", "ftp://host/1.png: unknown store 'ftp'"),
        ("../no/1.png,x\n", "correct the source (relative paths of a table start at its folder), or raise the limit"),
        ("A/000.PNG,x\n", "1 of 3 paths are no files (33.3%, first: "),
    ],
    ids=["long", "nul", "ftp", "parent", "case"],
)
def test_paths_of_a_table_that_are_no_paths(table, refusal, text, part):
    assert part in refusal(table(ROWS + text), layout="table")


FULL = "path,label,split,patient\na/000.png,x,train,p\nb/000.png,y,{}\n"


@pytest.mark.parametrize(
    ("rest", "part"),
    [
        ("holdout,q", "1 of 2 rows have no split in split (first: 'holdout'); expected train, validation (or valid, "),
        ("test,", "1 of 2 rows have no patient; fill them in"),
        ("test,p", "the group 'p' is given to train and test (last: b/000.png); one group needs one split"),
        (",p", "the group 'p' is given to train and no split"),
    ],
)
def test_wrong_splits_and_groups_of_a_table(table, rest, part):
    config = SourceConfig(
        uri=str(table(FULL.format(rest))), layout="table", split_column="split", group_column="patient"
    )
    with pytest.raises(UserError) as caught:
        scan(config)
    assert part in str(caught.value)


def test_columns_that_are_no_text(table):
    path = table("")
    columns = {"path": ["a/000.png", "b/000.png"], "label": ["x", "y"], "box": [[1, 2], [3]]}
    pq.write_table(pa.table(columns), path.with_name("t.parquet"))
    for settings, part in ({"extra_columns": ["box"]}, "or no text: "), ({"extra_columns": ["no"]}, "no column 'no'"):
        with pytest.raises(UserError, match=part):
            scan(SourceConfig(uri=str(path.with_name("t.parquet")), layout="table", **settings))


def test_a_folder_of_no_parquet_files(table):
    with pytest.raises(UserError, match=r"a folder without Parquet files \(\*\.parquet\); correct source.uri or"):
        scan(SourceConfig(uri=str(table(ROWS).parent), layout="table"))


@pytest.mark.parametrize(
    ("paths", "settings", "part"),
    [
        (["train/a/1.png", "new/a/2.png"], {"split_folders": True}, "in no folder of a split (first: new/a)"),
        (["1.png", "train/a/2.png"], {"split_folders": True}, "in no folder of a split (first: the source itself)"),
        (
            ["a/b/test/c/d/1.png", "train/a/2.png"],
            {"split_folders": True},
            "but not all at the same level (first: a/b/test/c/d)",
        ),
        (
            ["train/1.png", "test/2.png"],
            {"split_folders": True},
            "2 images stand outside any class folder (first: 1.png)",
        ),
        (["a/1.png", "b/2.jpg"], {"include": ["*.gif"]}, "leave none of 2 files; correct the patterns"),
        (["a/1.png", "b/2.png"], {"exclude": ["b/"]}, "only one class, 'a'"),
        (["a/1.png", "b/x.png"], {"group_pattern": "(?P<group>[0-9])"}, "no group in 1 of 2 paths (first: 'b/x.png')"),
        (
            ["a/1.png", "b/x.png"],
            {"group_pattern": "(?P<group>[0-9]*)$"},
            "source.group_pattern finds no group in 2 of 2",
        ),
        (
            ["a/1.png", "b/x.png"],
            {"label_from": "pattern", "label_pattern": "(?P<label>[0-9])"},
            "source.label_pattern finds no label in 1 of 2 paths (first: 'b/x.png'); correct the pattern, or leave",
        ),
        (
            ["train/a/p1.png", "test/b/p1.png"],
            {"split_folders": True, "group_pattern": "(?P<group>p[0-9])"},
            "the group 'p1' is given to test and train (last: train/a/p1.png); one group needs one split",
        ),
    ],
)
def test_paths_that_do_not_fit_the_settings(tmp_path, paths, settings, part):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    with pytest.raises(UserError) as caught:
        scan(SourceConfig(uri=str(tmp_path), **settings))
    assert str(caught.value).startswith(f"source {tmp_path}: ")
    assert part in str(caught.value)


def test_a_table_that_is_not_there_or_a_folder(tmp_path, table, refusal):
    assert "no such table; correct source.uri" in refusal(tmp_path / "no.csv", layout="table")
    assert "folder" in refusal(table(ROWS).parent, layout="table")
    assert "neither CSV nor Parquet" in refusal(table("no", "x.parquet"), layout="table")


@pytest.mark.parametrize("labels", [("01", "02"), ("true", "false"), ("1.0", "2"), ("caf\xe9", "x"), ("NA", "null")])
def test_class_names_of_a_csv_are_its_text(table, labels):
    text = "path,label\n" + "".join(
        f"{c}/00{i}.png,{label}\n" for c, label in zip("ab", labels, strict=True) for i in range(3)
    )
    config = SourceConfig(uri=str(table(text)), layout="table")
    assert scan(config).class_names == sorted(labels)


def test_a_csv_in_latin_1_is_refused_or_read_but_not_garbled(table):
    config = SourceConfig(uri=str(table(ROWS.replace("x", "caf\xe9").encode("latin-1"))), layout="table")
    with pytest.raises(UserError, match=r"(?i)utf-8"):
        scan(config)


def test_columns_of_other_names_and_absolute_paths(table, tmp_path, vectorize_job):
    path = table("")
    rows = [(str(p.absolute()), p.parent.name) for p in sorted(path.parent.rglob("*.png"))]
    pd.DataFrame(rows, columns=["file", "kind"]).to_csv(tmp_path / "t.csv", index=False)
    source = SourceConfig(uri=str(tmp_path / "t.csv"), layout="table", path_column="file", label_column="kind")
    job = vectorize_job(tmp_path, tmp_path / "set").model_copy(update={"source": source})
    result = vectorize(job)
    assert sum(result.num_examples.values()) == 16
    assert result.class_names == ["a", "b"]


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
    vectorize(vectorize_job(folder, tmp_path / "set", layout="idx"))
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
    images = struct.pack(">4I", 2051, *[2**32 - 1] * 3) + bytes(1000)
    assert "not an IDX file" in refusal(idx(pack(images), idx_labels()), layout="idx")


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
    read_images.cache_clear()  # as in a task, which is another process
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
