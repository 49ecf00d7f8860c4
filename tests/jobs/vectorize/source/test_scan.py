"""What a scan finds: paths, classes, splits, groups and extra columns, on a disk and on S3, whatever the names are."""

from __future__ import annotations

import os
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.source.items import Item, Items
from shardmean.jobs.vectorize.source.reader import read_item
from shardmean.jobs.vectorize.source.scan import Scan, scan
from shardmean.model.dataset.manifest import SPLITS, load_manifest
from shardmean.model.storage import filesystem
from tests.jobs.scanning import NAMES, scanned, told

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


def test_names_that_are_not_utf_8_are_shown_by_their_codes(tmp_path):
    for parent in (b"caf\xe9", b"x"):
        folder = tmp_path / os.fsdecode(parent)
        folder.mkdir()
        (folder / os.fsdecode(b"\xff\xfe.png")).write_text("x")
    items = scanned(tmp_path)
    assert told(tmp_path, "class_name") == {r"caf\xe9/\xff\xfe.png": r"caf\xe9", r"x/\xff\xfe.png": "x"}
    assert [read_item(item) for item in items.values()] == [b"x", b"x"]


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
            filesystem.write_bytes(filesystem.join(bucket, *path.split("/")), b"")
        num_hidden = len({re.sub(r"((^|/)[.][^/]*)/.*", r"\1", path) for path in paths if re.search(r"(^|/)[.]", path)})
        for uri in (folder, bucket):
            assert scan(SourceConfig(uri=uri)).num_hidden == num_hidden


def test_a_dataset_from_s3_to_s3(spark, make_images, to_s3, new_bucket, tmp_path, vectorize_job):
    images = make_images(tmp_path / "images", num_per_class=10)
    job = vectorize_job(images, tmp_path / "set")
    source = SourceConfig(uri=to_s3(images))
    remote = job.model_copy(update={"source": source, "dataset_uri": filesystem.join(new_bucket(), "sets", "one")})
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
