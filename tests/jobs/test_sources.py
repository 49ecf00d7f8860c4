"""What a scan finds: paths, classes, splits, groups and extra columns, on a disk and on S3, whatever the names are."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import struct
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import fs

from jobs.config import SourceConfig
from jobs.items import Item, Items
from jobs.reading import read_item
from jobs.sources import Scan, scan
from jobs.vectorize import vectorize
from model import storage
from model.manifest import SPLITS, load_manifest

ITEM = Item("a/0.png", "/data/a/0.png", "a", 10, 20, split="train", group="g", extra=("x", None))


def fingerprint(*items: Item, extra_columns: tuple[str, ...] = ("one", "two")) -> str:
    return Scan(Items.of(items), ["a"], 0, extra_columns).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"path": "a/1.png"},
        {"class_name": "b"},
        {"size_bytes": 11},
        {"modified_ns": 21},
        {"split": "test"},
        {"split": None},
        {"group": "h"},
        {"group": None},
        {"extra": ("x", "")},
        {"extra": ("x", "None")},
    ],
    ids=str,
)
def test_the_fingerprint_covers_all_that_an_example_is_made_of(change):
    assert fingerprint(replace(ITEM, **change)) != fingerprint(ITEM)


def test_the_fingerprint_covers_the_number_of_items_and_the_names_of_columns():
    assert len({fingerprint(), fingerprint(ITEM), fingerprint(ITEM, ITEM)}) == 3
    assert fingerprint(ITEM, extra_columns=("one", "three")) != fingerprint(ITEM)


def test_the_fingerprint_does_not_cover_where_the_source_stands():
    assert fingerprint(replace(ITEM, uri="/elsewhere/a/0.png")) == fingerprint(ITEM)


@pytest.fixture
def fill(tmp_path):
    """A function that writes files whose content is their path, and gives their folder."""

    def fill(*paths: str, folder: Path = tmp_path / "source") -> Path:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(path)
        return folder

    return fill


def scanned(folder: Path | str, **settings) -> dict[str, Item]:
    found = scan(SourceConfig(uri=str(folder), **settings))
    assert [item.path for item in found.items] == sorted(item.path for item in found.items)
    assert found.class_names == sorted({item.class_name for item in found.items})
    return {item.path: item for item in found.items}


def told(folder: Path | str, what: str, **settings) -> dict[str, object]:
    return {path: getattr(item, what) for path, item in scanned(folder, **settings).items()}


def test_facts_of_the_files(fill):
    folder = fill("a/1.png", "a/deep/er/2.JPG", "b/3.webp", "b/notes.txt", ".hidden/4.png", "b/.5.png")
    found = scan(SourceConfig(uri=str(folder)))
    assert [(item.path, item.class_name) for item in found.items] == [
        ("a/1.png", "a"),
        ("a/deep/er/2.JPG", "a"),
        ("b/3.webp", "b"),
    ]
    assert (found.num_other_files, found.num_hidden) == (1, 2)
    for item in found.items:
        stat = (folder / item.path).stat()
        assert (item.size_bytes, item.modified_ns) == (stat.st_size, stat.st_mtime_ns)
        assert (item.row, item.split, item.group, item.extra) == (None, None, None, ())
        assert read_item(item) == item.path.encode()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"label_from": "top_folder"}, ["x", "x", "y"]),
        ({"label_from": "parent_folder"}, ["cat", "dog", "cat"]),
        ({"label_from": "pattern", "label_pattern": r"(?P<label>\d)[.]png$"}, ["1", "2", "3"]),
        ({"label_from": "pattern", "label_pattern": r"^./(?P<label>..)"}, ["ca", "do", "ca"]),
    ],
    ids=["top", "parent", "number", "start"],
)
def test_class_of_the_path(fill, settings, names):
    assert list(told(fill("x/cat/1.png", "x/dog/2.png", "y/cat/3.png"), "class_name", **settings).values()) == names


def test_with_a_pattern_images_may_stand_in_no_folder(fill):
    settings = {"label_from": "pattern", "label_pattern": "^(?P<label>[a-z]+)_"}
    assert told(fill("cat_1.png", "dog_1.png"), "class_name", **settings) == {"cat_1.png": "cat", "dog_1.png": "dog"}


FORMS = (
    "{split}/{name}/{n}.png",
    "{name}/{split}/{n}.png",
    "{name}/deep/{split}/{n}.png",
    "set/{split}/{name}/in/{n}.png",
)


# Where classes have splits' names, the topmost level of such names is the splits'.
@pytest.mark.parametrize(
    ("form", "names"), [*((form, ("car", "plane")) for form in FORMS), (FORMS[0], ("train", "test"))]
)
def test_folders_that_are_already_split(fill, form, names):
    """Classes may have a split's name too, as long as a level of folders is all splits."""
    words = {"train": "train", "TEST": "test", "Val": "validation", "valid": "validation", "validation": "validation"}
    paths = {form.format(split=word, name=name, n=n): (word, name) for word in words for name in names for n in (1, 2)}
    settings = {"split_folders": True, "label_from": "top_folder"}
    if form.startswith("set/"):
        settings |= {"label_from": "pattern", "label_pattern": "/(?P<label>[^/]+)/in/"}
    items = scanned(fill(*paths), **settings)
    assert {path: (item.split, item.class_name) for path, item in items.items()} == {
        path: (words[word], name) for path, (word, name) in paths.items()
    }


def test_split_folders_next_to_the_images_at_any_depth(fill):
    paths = ("cats/train/1.png", "cats/test/2.png", "dogs/small/train/3.png", "dogs/small/test/4.png")
    items = scanned(fill(*paths), split_folders=True, label_from="parent_folder")
    assert [item.class_name for item in items.values()] == ["cats", "cats", "small", "small"]
    assert [item.split for item in items.values()] == ["test", "train", "test", "train"]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, "a/1.png a/raw/2.png b/3.png b/4.gif"),
        ({"include": ["*.png"]}, "a/1.png a/raw/2.png b/3.png"),
        ({"exclude": ["raw/"]}, "a/1.png b/3.png b/4.gif"),
        ({"include": ["/a/**", "4.*"]}, "a/1.png a/raw/2.png b/4.gif"),
        ({"include": ["a/*.png", "b/"], "exclude": ["[3-9].png", "r?w"]}, "a/1.png b/4.gif"),
    ],
    ids=str,
)
def test_include_and_exclude(fill, settings, left):
    folder = fill("a/1.png", "a/raw/2.png", "b/3.png", "b/4.gif")
    assert " ".join(scanned(folder, **settings)) == left


def test_groups_of_the_path(fill):
    folder = fill("a/p1_1.png", "b/p1_2.png", "b/p2_1.png")
    groups = told(folder, "group", group_pattern="/(?P<group>p[0-9]+)_")
    assert groups == {"a/p1_1.png": "p1", "b/p1_2.png": "p1", "b/p2_1.png": "p2"}


# What Linux allows in a name and Unicode can tell; \x85 and others are line breaks to some readers.
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: not name.startswith(".") and len(name.encode()) < 200
)


@given(name=NAMES, class_name=NAMES)
def test_odd_names_are_listed_and_read(name, class_name):
    with tempfile.TemporaryDirectory() as folder:
        for parent in (class_name, f"{class_name}x"):
            Path(folder, parent).mkdir()
            Path(folder, parent, f"{name}.png").write_text(parent)
        items = scanned(folder)
        assert {path: item.class_name for path, item in items.items()} == {
            f"{parent}/{name}.png": parent for parent in (class_name, f"{class_name}x")
        }
        assert all(read_item(item).decode() == item.class_name for item in items.values())


@given(names=st.lists(NAMES, min_size=2, max_size=4, unique=True))
def test_odd_names_in_a_csv(names):
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            Path(folder, name).write_text(str(number))
        with Path(folder, ".table.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *((name, f"class {name}") for name in names)])
        items = scanned(Path(folder, ".table.csv"), layout="table")
        assert {path: (item.class_name, read_item(item).decode()) for path, item in items.items()} == {
            name: (f"class {name}", str(number)) for number, name in enumerate(names)
        }


def test_names_that_are_not_utf_8_are_shown_by_their_codes(tmp_path):
    for parent in (b"caf\xe9", b"x"):
        folder = tmp_path / os.fsdecode(parent)
        folder.mkdir()
        (folder / os.fsdecode(b"\xff\xfe.png")).write_text("x")
    items = scanned(tmp_path)
    assert told(tmp_path, "class_name") == {r"caf\xe9/\xff\xfe.png": r"caf\xe9", r"x/\xff\xfe.png": "x"}
    assert [read_item(item) for item in items.values()] == [b"x", b"x"]


ROWS = {
    "path": ["a/1.png", "a/2.png", "b/3.png"],
    "label": ["01", "NA", "01"],
    "patient": ["p", "q", "r"],
    "split": ["Train", "val", ""],
    "age": ["7", None, "8"],
}
FULL = {"split_column": "split", "group_column": "patient", "extra_columns": ["age", "patient"]}


def _write_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(ROWS), *zip(*ROWS.values(), strict=True)])
    return path


def _write_csv_gz(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(_write_csv(path).read_bytes()))
    return packed


def _write_parquet(path: Path) -> Path:
    file = path.with_suffix(".parquet")
    pq.write_table(pa.table(ROWS | {"label": pa.array(ROWS["label"]).dictionary_encode()}), file)
    return file


def _write_parquet_folder(path: Path) -> Path:
    """As Spark writes it, with a column in the folders' names."""
    folder = path.with_suffix("")
    table = pa.table({name: pa.array(values, pa.string()) for name, values in ROWS.items()})
    for label in ("01", "NA"):
        (folder / f"label={label}").mkdir(parents=True)
        rows = [row for row, found in enumerate(ROWS["label"]) if found == label]
        pq.write_table(table.take(rows).drop_columns("label"), folder / f"label={label}" / "part-0.parquet")
    (folder / "_SUCCESS").touch()
    return folder


@pytest.mark.parametrize("write", [_write_csv, _write_csv_gz, _write_parquet, _write_parquet_folder])
def test_tables_of_each_kind_say_the_same(fill, write):
    table = write(fill(*ROWS["path"]) / "table.csv")
    found = scan(SourceConfig(uri=str(table), layout="table", **FULL))
    assert found.extra_columns == ("age", "patient")
    assert [(i.path, i.class_name, i.split, i.group, i.extra) for i in found.items] == [
        ("a/1.png", "01", "train", "p", ("7", "p")),
        ("a/2.png", "NA", "validation", "q", (None, "q")),
        ("b/3.png", "01", None, "r", ("8", "r")),
    ]


def test_a_table_with_the_class_in_its_paths(fill):
    table = _write_csv(fill(*ROWS["path"]) / "table.csv")
    settings = {"layout": "table", "label_column": "not there"}
    assert list(told(table, "class_name", label_from="parent_folder", **settings).values()) == ["a", "a", "b"]
    by_pattern = {"label_from": "pattern", "label_pattern": "(?P<label>[0-9])", "exclude": ["/a/2*"]}
    assert list(told(table, "class_name", **by_pattern, **settings).values()) == ["1", "3"]


def test_numbers_and_dates_in_parquet_become_text(fill):
    folder = fill("a/1.png", "a/2.png")
    columns = {"path": ["a/1.png", "a/2.png"], "label": [1, 2], "at": np.array(["2024-01-02", "2025-01-01"], "M8[D]")}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    items = scanned(folder / "t.parquet", layout="table", extra_columns=["at"])
    assert [(item.class_name, item.extra) for item in items.values()] == [
        ("1", ("2024-01-02",)),
        ("2", ("2025-01-01",)),
    ]


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


@pytest.fixture
def to_s3(new_bucket):
    """A function that copies a folder into a new bucket, and gives the copy's URI."""

    def to_s3(folder: Path) -> str:
        uri = storage.join(new_bucket(), "a folder, 100% odd")
        system, path = storage.locate(uri)
        fs.copy_files(str(folder), path, destination_filesystem=system)
        return uri

    return to_s3


def test_s3_is_scanned_and_read_like_a_disk(fill, to_s3):
    folder = fill("a b/1 %20.png", "a b/caf\xe9+'\".png", "c/d/what?#.JPG", "c/notes.txt", "c/.hidden.png")
    local, remote = scanned(folder), scanned(to_s3(folder))
    assert list(local) == list(remote)
    for path, item in remote.items():
        assert (item.class_name, item.size_bytes) == (local[path].class_name, local[path].size_bytes)
        assert item.modified_ns > 0
        assert read_item(item) == path.encode()


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from([
    "c/.1.png", "c/.x/2.png", "c/.x/3.png", "c/.x/.y/4.png", ".c/5.png", ".6.png", "c/d.e/.7", "c/d/.x/y.z/8", "c/x./9",
])))  # fmt: skip
def test_hidden_files_and_folders_are_counted_alike_on_s3(new_bucket, paths):
    """A hidden folder is one, whatever is in it."""
    bucket = new_bucket()
    with tempfile.TemporaryDirectory() as folder:
        for path in [*paths, "a/1.png", "b/1.png"]:
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).touch()
            storage.write_bytes(storage.join(bucket, *path.split("/")), b"")
        num_hidden = len({re.sub(r"((^|/)[.][^/]*)/.*", r"\1", path) for path in paths if re.search(r"(^|/)[.]", path)})
        for uri in (folder, bucket):
            assert scan(SourceConfig(uri=uri)).num_hidden == num_hidden


def test_hidden_files_of_a_table_are_counted(fill):
    """What Spark left of a job that was cut off would be rows twice."""
    folder = _write_parquet_folder(fill(*ROWS["path"]) / "table.csv")
    for name in ("_temporary/0", ".staging", "label=01/_x"):
        (folder / name).mkdir(parents=True)
        shutil.copy(folder / "label=01" / "part-0.parquet", folder / name)
    found = scan(SourceConfig(uri=str(folder), layout="table"))
    assert (len(found.items), found.num_hidden) == (3, 3)


@pytest.mark.parametrize("write", [_write_csv, _write_csv_gz, _write_parquet, _write_parquet_folder])
def test_tables_on_s3(fill, to_s3, write):
    table = write(fill(*ROWS["path"]) / "table.csv")
    items = scanned(storage.join(to_s3(table.parent), table.name), layout="table", **FULL)
    assert [item.class_name for item in items.values()] == ["01", "NA", "01"]
    assert [read_item(item).decode() for item in items.values()] == ROWS["path"]


def test_a_table_on_a_disk_may_name_files_on_s3_and_elsewhere(fill, to_s3, tmp_path):
    folder = fill(*ROWS["path"])
    remote = storage.join(to_s3(folder), "a", "1.png")
    rows = [remote, (folder / "a/2.png").as_uri(), str(folder / "b/3.png")]
    text = "".join(f"{path},{label}\n" for path, label in zip(["path", *rows], ["label", "x", "y", "z"], strict=True))
    (tmp_path / "table.csv").write_text(text)
    items = scanned(tmp_path / "table.csv", layout="table")
    assert [read_item(items[row]).decode() for row in rows] == ROWS["path"]


def test_a_dataset_from_s3_to_s3(spark, make_images, to_s3, new_bucket, tmp_path, vectorize_job):
    images = make_images(tmp_path / "images", num_per_class=10)
    job = vectorize_job(images, tmp_path / "set")
    source = SourceConfig(uri=to_s3(images))
    remote = job.model_copy(update={"source": source, "dataset_uri": storage.join(new_bucket(), "sets", "one")})
    assert vectorize(remote).digest == vectorize(job).digest
    assert load_manifest(remote.dataset_uri).num_examples("train") > 0
    assert not vectorize(remote).changed


def test_10_000_classes(tmp_path):
    for number in range(10_000):
        (tmp_path / f"{number:05d}").mkdir()
        (tmp_path / f"{number:05d}" / "1.png").touch()
    found = scan(SourceConfig(uri=str(tmp_path)))
    assert len(found.class_names) == len(found.items) == 10_000


def test_a_class_of_one_example(spark, make_images, tmp_path, vectorize_job):
    images = make_images(tmp_path / "images", ["a", "b"], num_per_class=10)
    (images / "alone").mkdir()
    Image.new("L", (12, 12)).save(images / "alone" / "1.png")
    vectorize(vectorize_job(images, tmp_path / "set"))
    manifest = load_manifest(str(tmp_path / "set"))
    assert sum(manifest.num_per_class(split)[1] for split in SPLITS) == 1


def test_a_scan_takes_time_by_the_number_of_files_whatever_the_pattern(fill):
    """In Python's own matcher, the first pattern takes 2 ** 100 steps at the first path, and the glob 10 ** 20."""
    folder = fill(*(f"{name}/{'a' * 100}{n}.png" for name in ("b", "c") for n in range(50)))
    started = time.monotonic()
    hostile = {"group_pattern": "(?P<group>(?:(?:a+)+)+[0-9])", "exclude": [f"{'*a' * 40}*b"]}
    assert len(scanned(folder, **hostile)) == 100
    assert time.monotonic() - started < 5
