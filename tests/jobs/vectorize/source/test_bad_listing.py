"""Sources that change while they are read, lead in circles, or may not be read."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.source.reader import read_item
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.dataset.manifest import load_manifest, rejected_uri
from shardmean.model.errors import ImageRejectedError, RetryableError, UserError
from shardmean.model.storage import filesystem
from tests.jobs.whole import check_whole


@pytest.fixture
def images(tmp_path, make_images):
    return make_images(tmp_path / "images", ["a", "b"], num_per_class=10)


def scanned(folder: Path | str, **settings):
    return scan(SourceConfig(uri=str(folder), **settings))


def test_a_link_to_a_folder_above_is_passed_over_and_said(images, caplog):
    (images / "a" / "round").symlink_to(images)
    (images / "b" / "self").symlink_to(".")
    with caplog.at_level(logging.WARNING):
        assert len(scanned(images).items) == 20
    for link in ("a/round", "b/self"):
        assert f"{images}/{link} leads to a folder of the source itself, or above it, and is left out" in caplog.text


def test_links_to_one_another_end(images, tmp_path, caplog):
    """Folders elsewhere, each of which leads to all others: each is listed once."""
    names = "pqrstu"
    for name in names:
        folder = tmp_path / "elsewhere" / name
        folder.mkdir(parents=True)
        shutil.copy(images / "a" / "000.png", folder / f"{name}.png")
        for other in names:
            (folder / f"to {other}").symlink_to(tmp_path / "elsewhere" / other)
    (images / "c").symlink_to(tmp_path / "elsewhere" / "p")
    with caplog.at_level(logging.WARNING):
        found = scanned(images)
    assert len(found.items) == 20 + len(names)
    assert "is a folder that was listed already, and is left out" in caplog.text


def test_links_to_files_and_folders_are_followed(images, tmp_path):
    (images / "a").rename(tmp_path / "away")
    (tmp_path / "more").symlink_to(tmp_path / "away")
    (images / "b" / "link.png").symlink_to(tmp_path / "away" / "000.png")
    (images / "a").symlink_to(tmp_path / "more")
    found = scanned(images)
    assert Counter(item.class_name for item in found.items) == {"a": 10, "b": 11}
    link = next(item for item in found.items if item.path == "b/link.png")
    assert link.size_bytes == len(read_item(link)) == (images / "a" / "000.png").stat().st_size


@pytest.mark.parametrize("target", ["ring.png", "nowhere.png"])
def test_a_link_to_nowhere_or_itself_is_rejected_and_counted(spark, images, tmp_path, vectorize_job, target):
    (images / "a" / "ring.png").symlink_to(target)
    result = vectorize(vectorize_job(images, tmp_path / "set"))
    assert result.num_rejected_by_reason == {"missing": 1}


@pytest.mark.parametrize("target", ["pipe", "link to a pipe", "/dev/zero"])
def test_pipes_and_devices_are_rejected_unopened(images, tmp_path, vectorize_job, target):
    """Whoever opened the pipe would wait for a writer."""
    odd = images / "a" / "x.png"
    os.mkfifo(images / "a" / "link to a pipe" if target != "pipe" else odd)
    if target != "pipe":
        odd.symlink_to(target)
    job = vectorize_job(images, tmp_path / "set")
    result = vectorize(job, runner=LocalRunner())
    assert result.num_rejected_by_reason == {"not_a_file": 1}
    assert sum(result.num_examples.values()) == 20
    manifest = check_whole(job.dataset_uri)
    (row,) = pq.read_table(rejected_uri(job.dataset_uri, manifest.rejected)).to_pylist()
    detail = f"a folder, pipe, socket or device, not a file, at {odd}"[:200]
    assert row == {"path": "a/x.png", "reason": "not_a_file", "detail": detail, "size_bytes": None}
    assert not vectorize(job, runner=LocalRunner()).changed


@pytest.fixture
def meddle(monkeypatch):
    """A function that has something done to the tree when the listing comes to one folder."""

    def meddle(folder: Path, act) -> None:
        scandir = os.scandir

        def meddled(path):
            if Path(path) == folder:
                act()
            return scandir(path)

        monkeypatch.setattr(os, "scandir", meddled)

    return meddle


def test_a_folder_that_vanishes_during_the_listing(images, meddle, caplog):
    gone = images / "a" / "gone"
    gone.mkdir()
    meddle(gone, gone.rmdir)
    with caplog.at_level(logging.WARNING):
        assert len(scanned(images).items) == 20
    assert f"{gone} vanished while the source was listed" in caplog.text


def test_a_folder_that_may_not_be_listed_is_named(images, meddle):
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", str(images / "b"))

    meddle(images / "b", refuse)
    with pytest.raises(
        RetryableError, match=rf"{images}: cannot be listed: .*Permission denied: '{images}/b'; check perm"
    ):
        scanned(images)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission(images):
    (images / "b").chmod(0)
    try:
        with pytest.raises(RetryableError, match=r"Permission denied: .*/b'"):
            scanned(images)
    finally:
        (images / "b").chmod(0o755)


@pytest.mark.parametrize("what", ["list", "table", "read"])
def test_a_bucket_without_permission(new_bucket, monkeypatch, what):
    bucket = new_bucket()
    for name in ("a/1.png", "b/2.png", "t.csv"):
        filesystem.write_bytes(filesystem.join(bucket, name), b"path,label\na/1.png,a\nb/2.png,b\n")
    item = scanned(bucket).items[0]
    attempts = {
        "list": lambda: scanned(bucket),
        "table": lambda: scanned(filesystem.join(bucket, "t.csv"), layout="table"),
        "read": lambda: read_item(item),
    }
    # The server, which is in this process, asks for rights from now on, and knows no key.
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
    with pytest.raises(RetryableError, match=r"(?s)(cannot be|cannot read).*permission"):
        attempts[what]()


def test_missing_buckets_and_folders(new_bucket):
    bucket = new_bucket()
    for uri in (filesystem.join(bucket, "no"), bucket.replace("bucket-", "no-bucket-")):
        with pytest.raises(UserError, match=r"no such (folder|bucket); correct source\.uri"):
            scanned(uri)
        with pytest.raises(UserError, match=r"no such table; correct source\.uri"):
            scanned(filesystem.join(uri, "t.csv"), layout="table")


@pytest.mark.parametrize("more", [b"more", None], ids=["grown", "cut"])
def test_an_image_of_another_size_than_was_listed(images, more):
    item = scanned(images).items[0]
    content = read_item(item)
    Path(item.uri).write_bytes(content + more if more else content[:-4])
    with pytest.raises(
        ImageRejectedError, match=f"changed: {item.size_bytes} bytes when the source was listed, .*next"
    ):
        read_item(item)


@pytest.mark.parametrize("instead", ["nothing", "folder", "file above"])
def test_an_image_that_is_no_file_any_more(tmp_path, instead):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text("x")
    item = scanned(tmp_path).items[0]
    Path(item.uri).unlink()
    if instead == "folder":
        Path(item.uri).mkdir()
    elif instead == "file above":
        (tmp_path / "a").rmdir()
        (tmp_path / "a").write_text("x")
    with pytest.raises(FileNotFoundError):
        read_item(item)


def test_a_file_without_end_fills_no_memory(images):
    item = scanned(images).items[0]
    Path(item.uri).unlink()
    Path(item.uri).symlink_to("/dev/zero")
    with pytest.raises(
        ImageRejectedError, match=f"more than {item.size_bytes} when it was read; the next run reads it"
    ):
        read_item(item)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("has_writer", [False, True])
def test_a_pipe_that_came_in_a_files_place_is_not_waited_for(images, has_writer):
    item = scanned(images).items[0]
    Path(item.uri).unlink()
    os.mkfifo(item.uri)
    writer = os.open(item.uri, os.O_RDWR) if has_writer else None
    with pytest.raises(ImageRejectedError, match=f"{item.size_bytes} bytes when the source was listed, 0 when it was"):
        read_item(item)
    if writer is not None:
        os.close(writer)


def test_changes_between_listing_and_reading_are_counted_and_mended_by_the_next_run(
    spark, images, tmp_path, vectorize_job, monkeypatch
):
    """Another program writes into the source as soon as it was listed."""
    from shardmean.jobs.vectorize import job as module

    def scan_and_change(*given):
        found = scan(*given)
        with (images / "a" / "000.png").open("ab") as file:
            file.write(b"\0")
        (images / "b" / "000.png").unlink()
        return found

    job = vectorize_job(images, tmp_path / "set", max_rejected_fraction=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "scan", scan_and_change)
        first = vectorize(job)
    assert first.num_rejected_by_reason == {"changed": 1, "vanished": 1}
    rejected = pq.read_table(rejected_uri(job.dataset_uri, load_manifest(job.dataset_uri).rejected)).to_pydict()
    assert rejected["path"] == ["a/000.png", "b/000.png"]
    second = vectorize(job)
    assert (second.num_rejected, sum(second.num_examples.values())) == (0, 19)


def test_two_names_that_show_alike(images):
    for name in (os.fsdecode(b"\xff.png"), "\\xff.png"):
        (images / "a" / name).write_text("x")
    with pytest.raises(UserError, match=r"two files have the path .*rename one"):
        scanned(images)


def test_links_among_the_folders_of_a_source_list_nothing_twice(images, caplog):
    names = sorted(folder.name for folder in images.iterdir())
    for name in names:
        for other in names:
            (images / name / f"to {other}").symlink_to(images / other)
    found = scanned(images).items
    assert len(found) == 20
    assert "leads to a folder of the source itself, or above it, and is left out" in caplog.text


def test_a_name_writes_no_lines_into_the_log(tmp_path, make_images, vectorize_job, caplog):
    images = make_images(tmp_path / "images")
    (images / "low" / "x\nERROR published\x1b[31m.png").write_bytes(b"")
    vectorize(vectorize_job(images, tmp_path / "set"), runner=LocalRunner())
    (line,) = [message for message in caplog.messages if "rejected low/x" in message]
    assert line.startswith(r"rejected low/x\nERROR published\x1b[31m.png: empty")


def test_folders_named_as_splits_are_no_classes(tmp_path, make_images):
    images = make_images(tmp_path / "images", ["train", "test"])
    with pytest.raises(UserError, match=r"the classes would be test, train: set source\.split_folders=true"):
        scan(SourceConfig(uri=str(images)))
