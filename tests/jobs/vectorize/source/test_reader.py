"""What one task reads: an image that cannot be read is that image's trouble alone, and memory is bounded by bytes."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardmean.jobs.vectorize.source.reader
from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.index.table import RETRYABLE_REASONS
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.shard_task import PartitionTask, vectorize_partition
from shardmean.jobs.vectorize.source.items import Item
from shardmean.jobs.vectorize.source.reader import NUM_READ_AHEAD, READ_AHEAD_BYTES
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.config.image import ImageConfig
from shardmean.model.errors import ImageRejectedError, RetryableError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def images(tmp_path, make_images):
    return make_images(tmp_path / "images", ["a", "b"], num_per_class=10)


@pytest.fixture
def reasons(tmp_path, vectorize_job):
    """Do one task over a source, listed as it is now, after `meddle`; give each item's reason, or None."""

    def reasons(source: Path | str, meddle=lambda: None) -> Counter[str | None]:
        items = scan(SourceConfig(uri=str(source))).items
        meddle()
        task = PartitionTask(items, np.arange(len(items)), [None] * len(items), np.full(len(items), -1))
        report = vectorize_partition(task, vectorize_job(source, tmp_path / "set"), ["a", "b"])
        assert report.num_rejected == sum(reason is not None for reason in report.rows["reason"].to_pylist())
        return Counter(report.rows["reason"].to_pylist())

    return reasons


def test_files_that_are_too_large_are_not_read(images, tmp_path, vectorize_job):
    """Files of 2 TB that take no room on the disk: reading one would end the process."""
    for name in ("one.jpg", "two.jpg"):
        (images / "a" / name).touch()
        os.truncate(images / "a" / name, 2 * 10**12)
    job = vectorize_job(images, tmp_path / "set", max_rejected_fraction=0.1)
    result = vectorize(job, runner=LocalRunner())
    assert result.num_rejected_by_reason == {"too_large": 2}
    assert sum(result.num_examples.values()) == 20
    assert not vectorize(job, runner=LocalRunner()).changed


def test_one_file_on_a_bad_disk_does_not_stop_the_others(images, reasons):
    # Linux gives an input/output error (EIO) to whoever reads the first bytes of a process's memory.
    (images / "a" / "bad.png").symlink_to("/proc/self/mem")
    assert reasons(images) == {None: 20, "not_readable": 1}
    assert "not_readable" in RETRYABLE_REASONS, "the next run tries again"


def test_objects_that_may_not_be_read_are_rejected_one_by_one(new_bucket, images, reasons, monkeypatch):
    bucket = new_bucket()
    for file in images.rglob("*.png"):
        filesystem.write_bytes(filesystem.join(bucket, file.parent.name, file.name), file.read_bytes())
    # The server, which is in this process, asks for rights from now on, and knows no key.
    found = reasons(bucket, lambda: monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0))
    assert found == {"no_permission": 20}


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (PermissionError(13, "Permission denied"), "no_permission"),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), "no_permission"),
        (OSError("AWS Error UNKNOWN (HTTP status 416) during GetObject operation\n"), "not_readable"),
        (OSError(116, "Stale file handle"), "not_readable"),
    ],
    ids=str,
)
def test_why_an_image_is_not_read(images, reasons, monkeypatch, cause, reason):
    def refuse(item: Item) -> bytes:
        raise RetryableError(f"cannot read {item.uri}") from cause

    monkeypatch.setattr(shardmean.jobs.vectorize.source.reader, "read_item", refuse)
    assert reasons(images) == {reason: 20}


@pytest.mark.parametrize(
    "cause", [OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7"), None], ids=str
)
def test_a_store_out_of_reach_stops_the_task(images, reasons, monkeypatch, cause):
    """It says nothing about the images, and the same command may succeed later."""

    def fail(item: Item) -> bytes:
        raise RetryableError(f"cannot read {item.uri}") from cause

    monkeypatch.setattr(shardmean.jobs.vectorize.source.reader, "read_item", fail)
    with pytest.raises(RetryableError, match="cannot read"):
        reasons(images)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0, 1, 10**6, 30 * 10**6, 60 * 10**6, 10**8, 10**12]), max_size=100))
def test_no_more_is_read_ahead_than_memory_is_meant_for(sizes):
    started: list[int] = []

    def read(item: Item) -> bytes:
        started.append(item.size_bytes)
        return item.path.encode()

    items = [Item(str(n), f"s3://bucket/{n}", "a", size, 0) for n, size in enumerate(sizes)]
    config = ImageConfig()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shardmean.jobs.vectorize.source.reader, "read_item", read)
        read_bytes = 0
        for number, content in enumerate(shardmean.jobs.vectorize.source.reader.read_ahead(items, config)):
            if sizes[number] > config.max_file_bytes:
                assert isinstance(content, ImageRejectedError)
                assert (content.reason, str(sizes[number]) in content.detail) == ("too_large", True)
                continue
            assert content == items[number].path.encode(), "in order"
            prefetch = sum(started) - read_bytes
            assert prefetch <= max(READ_AHEAD_BYTES, sizes[number])
            read_bytes += sizes[number]
            assert len(started) <= number + 1 + 2 * NUM_READ_AHEAD
