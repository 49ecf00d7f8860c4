"""Places for a DataSet that cannot take it: other settings, half-written, not writable, full. Nothing is published."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import shardmean.jobs.checks.candidate
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import RetryableError, UserError

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture
def images(tmp_path, make_images):
    return make_images(tmp_path / "images")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": {"height_px": 12, "width_px": 9}}, "image.width_px is 12 there and 9 here"),
        ({"image": {"height_px": 12, "width_px": 12, "channels": 3}}, "image.channels is 1 there and 3 here"),
        ({"split": {"train": 0.8, "validation": 0.1, "test": 0.1}}, "split.train is 0.6 there and 0.8 here"),
        ({"split": {"train": 0.6, "validation": 0.2, "test": 0.2, "seed": 7}}, "split.seed is 0 there and 7 here"),
    ],
)
def test_other_settings_are_refused_and_replace_publishes(images, tmp_path, vectorize_job, change, said):
    first = vectorize(vectorize_job(images, tmp_path / "set"))
    with pytest.raises(UserError) as caught:
        vectorize(vectorize_job(images, tmp_path / "set", **change))
    for part in (str(tmp_path / "set"), said, "choose another dataset_uri, or set replace=true"):
        assert part in str(caught.value)
    assert load_manifest(str(tmp_path / "set")).digest == first.digest
    second = vectorize(vectorize_job(images, tmp_path / "set", replace=True, **change))
    assert second.changed
    assert load_manifest(str(tmp_path / "set")).digest == second.digest != first.digest


def test_another_source_is_refused(images, tmp_path, vectorize_job, make_images):
    vectorize(vectorize_job(images, tmp_path / "set"))
    other = make_images(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=rf"settings \(source.uri is {images} there and {other} here\): "):
        vectorize(vectorize_job(other, tmp_path / "set"))


def test_another_layout_is_named_as_such(images, tmp_path, vectorize_job):
    vectorize(vectorize_job(images, tmp_path / "set"))
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in images.rglob("*.png")))
    with pytest.raises(UserError) as caught:
        vectorize(vectorize_job(table, tmp_path / "set", layout="table"))
    for part in (f"source.uri is {images} there and {table} here", "source.layout is folders there and table here"):
        assert part in str(caught.value)


def test_a_half_written_dataset_is_never_read_and_the_next_run_publishes(images, tmp_path, vectorize_job, monkeypatch):
    job = vectorize_job(images, tmp_path / "set")

    def killed(*_arguments, **_more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shardmean.jobs.checks.candidate, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            vectorize(job)
    assert list((tmp_path / "set" / "shards").glob("*.parquet"))
    with pytest.raises(UserError, match=r"is no published DataSet .* run `shardmean vectorize`"):
        load_manifest(job.dataset_uri)
    result = vectorize(job)
    assert result.changed
    assert load_manifest(job.dataset_uri).digest == result.digest


def test_a_damaged_manifest_is_refused_and_replace_publishes(images, tmp_path, vectorize_job):
    job = vectorize_job(images, tmp_path / "set")
    first = vectorize(job)
    path = tmp_path / "set" / "manifest.json"
    whole = path.read_text()
    changed = json.dumps(json.loads(whole) | {"class_names": ["x", "y", "z"]})
    for text, part in ((whole[:100], "not a manifest"), ("", "not a manifest"), (changed, "changed after it was")):
        path.write_text(text)
        with pytest.raises(RetryableError) as caught:
            vectorize(job)
        assert part in str(caught.value)
        assert "replace=true" in str(caught.value)
    assert vectorize(vectorize_job(images, tmp_path / "set", replace=True)).digest == first.digest
    assert load_manifest(job.dataset_uri).class_names == ["low", "middle", "top"]


def test_replace_mends_a_damaged_shard(images, tmp_path, vectorize_job):
    """The remedy that the message about a damaged shard gives."""
    vectorize(vectorize_job(images, tmp_path / "set"))
    shard = next((tmp_path / "set" / "shards").glob("train*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    vectorize(vectorize_job(images, tmp_path / "set", replace=True))
    assert shard.read_bytes() == whole


@pytest.mark.parametrize("place", ["file/below", "/proc/x", "/proc/1/x/y"])
def test_a_place_that_cannot_be_written(images, tmp_path, vectorize_job, place):
    (tmp_path / "file").write_text("no folder")
    uri = place if place.startswith("/") else str(tmp_path / place)
    with pytest.raises(RetryableError) as caught:
        vectorize(vectorize_job(images, uri))
    assert f"cannot write {uri}" in str(caught.value)
    assert "check permission and free space there, or choose another place" in str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(images, small_disk, vectorize_job):
    job = vectorize_job(images, small_disk / "set", size=100)
    with pytest.raises(RetryableError) as caught:
        vectorize(job)
    assert "No space left on device; check permission and free space there" in str(caught.value)
    assert f"cannot write {small_disk}" in str(caught.value)
    assert not (small_disk / "set" / "manifest.json").exists()
    assert not list(Path(small_disk).rglob("*.tmp"))


def test_a_full_disk_leaves_the_published_version(images, small_disk, vectorize_job, make_images):
    job = vectorize_job(images, small_disk / "set")
    first = vectorize(job)
    make_images(images, num_per_class=600, seed=2)
    with pytest.raises(RetryableError, match="No space left"):
        vectorize(job)
    assert load_manifest(job.dataset_uri).digest == first.digest


@pytest.mark.parametrize("uri", ["ftp://host/set", "nosuch://x"])
def test_unknown_store(images, vectorize_job, uri):
    with pytest.raises(UserError, match=f"{uri}.*: unknown store .* use a local path or one of"):
        vectorize(vectorize_job(images, uri))
