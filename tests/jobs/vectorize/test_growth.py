"""A pile that grows, changes and shrinks: what many runs publish is what one run over the last state would."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shardmean.jobs.vectorize.job
import shardmean.jobs.vectorize.shard_task
import shardmean.jobs.vectorize.update
from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.compaction import MAX_SMALL, SMALL
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.shard_task import partitions
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem
from tests.jobs.pile import EMPTY, GONE, SIZE, SPLIT, Pile
from tests.jobs.whole import check_whole, index_of, rows_of


@pytest.fixture
def read_paths(monkeypatch):
    """The paths that runs decode, as they come."""
    read: list[str] = []

    def spy(task, job, class_names):
        read.extend(item.path for item in task.items)
        return original(task, job, class_names)

    original = shardmean.jobs.vectorize.update.vectorize_partition
    monkeypatch.setattr(shardmean.jobs.vectorize.update, "vectorize_partition", spy)
    return read


PATHS = st.tuples(st.sampled_from("abc"), st.integers(0, 9)).map(lambda pair: f"{pair[0]}/{pair[1]}")
# Few numbers, so that copies and conflicts happen.
CONTENTS = st.one_of(st.integers(0, 25), st.sampled_from([GONE, EMPTY]))
STEPS = st.lists(st.dictionaries(PATHS, CONTENTS, max_size=12), min_size=1, max_size=4)


@settings(max_examples=25)
@given(STEPS)
@example([{"a/0": 1, "b/0": 1}, {"b/0": GONE}])
@example([{"a/0": 1}, {"b/0": 1}, {"a/0": 2}])
@example([{"c/0": 1}, {"c/0": GONE}])
@example([{}, {"0/0": 1}])
@example([{"c/7": 13}, {"a/0": 13, "b/4": 13, "b/7": 13, "c/3": 13}])
def test_many_runs_give_what_one_run_gives(steps):
    with tempfile.TemporaryDirectory() as folder:
        pile = Pile(Path(folder))
        for step in steps:
            pile.write(step)
            pile.run()
            check_whole(pile.uri)
        pile.run("fresh")
        fresh = str(pile.home / "fresh")
        columns = ["path", "id", "label", "features", "split"]
        pd.testing.assert_frame_equal(rows_of(pile.uri)[columns], rows_of(fresh)[columns])
        known = ["path", "size_bytes", "modified_ns", "class_name", "split", "content_hash", "reason", "detail"]
        pd.testing.assert_frame_equal(index_of(pile.uri)[known], index_of(fresh)[known])
        one, other = load_manifest(pile.uri), load_manifest(fresh)
        assert (one.mean, one.std, one.source) == (other.mean, other.std, other.source)


@settings(max_examples=15)
@given(STEPS)
def test_stratified_images_keep_their_split(steps):
    with tempfile.TemporaryDirectory() as folder:
        pile = Pile(Path(folder), {"split": SPLIT.model_copy(update={"method": "stratified"})})
        before = pd.Series(dtype=object)
        for step in steps:
            pile.write(step)
            pile.run()
            check_whole(pile.uri)
            now = rows_of(pile.uri).set_index("id").split
            both = now.index.intersection(before.index)
            assert (now[both] == before[both]).all()
            before = now


def test_only_what_is_new_or_changed_is_read(pile, read_paths):
    pile.write({f"a/{number}": number for number in range(20)})
    pile.run()
    assert len(read_paths) == 32
    read_paths.clear()
    pile.write({"a/3": 100, "b/new": 101, "a/4": GONE})
    pile.run()
    assert sorted(read_paths) == ["a/3.ppm", "b/new.ppm"]
    read_paths.clear()
    pile.run()
    assert not read_paths


def test_what_a_run_did_is_said_in_numbers(pile, caplog):
    pile.write({f"a/{number}": number for number in range(4)})
    pile.run(shard_bytes=1024)
    pile.write({"a/0": 100, "b/new": 101, "b/empty": EMPTY, "a/3": GONE})
    pile.touch("a/1")
    with caplog.at_level("INFO"):
        pile.run()
    assert "images: 2 new, 1 changed, 1 deleted, 14 unchanged, 1 rejected; shards: " in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        pile.run()
    assert "is up to date" in caplog.text
    assert "nothing new in 17 images, nothing was published, in " in caplog.text


def test_shards_without_changed_examples_stay(pile):
    pile.write({f"a/{number}": number for number in range(200)})
    pile.run()
    before = {shard.name: shard for shard in check_whole(pile.uri).shards}
    index = index_of(pile.uri).set_index("path")
    pile.write({"a/7": GONE})
    pile.run()
    after = {shard.name for shard in check_whole(pile.uri).shards}
    gone = set(before) - after
    # Its own shard, and perhaps a small one of the same split that it was merged with.
    assert index.shard["a/7.ppm"] in gone
    assert {before[name].split for name in gone} == {index.split["a/7.ppm"]}
    assert len(after & set(before)) >= len(before) - 2


def test_a_first_run_writes_no_shard_twice(pile, monkeypatch):
    def rewrite(*_):
        pytest.fail("a shard was written anew")

    monkeypatch.setattr(shardmean.jobs.vectorize.update, "rewrite", rewrite)
    pile.write({f"a/{number}": number for number in range(400)})
    pile.run()
    assert len(check_whole(pile.uri).shards) > 3 * MAX_SMALL


def test_many_small_runs_do_not_make_many_small_shards(pile):
    for number in range(15):
        pile.write({f"a/{number}": number})
        pile.run()
        shards = check_whole(pile.uri).shards_of("train")
        assert sum(shard.num_examples < SMALL * 1024 // SIZE**2 for shard in shards) <= MAX_SMALL


def test_a_changed_label_needs_no_new_run_from_scratch(pile, read_paths):
    """By a table: the file stays, its class changes."""
    pile.run()
    images = sorted((pile.home / "images").rglob("*.ppm"))
    frame = pd.DataFrame({"path": [str(path) for path in images], "label": ["x", "y"] * 6, "age": "7"})
    table = pile.home / "table.csv"
    job = pile.job("by table").model_copy(
        update={"source": SourceConfig(uri=str(table), layout="table", extra_columns=["age"])}
    )
    frame.to_csv(table, index=False)
    vectorize(job, runner=LocalRunner())
    splits = rows_of(job.dataset_uri).set_index("path").split
    frame.loc[0, "label"], frame.loc[1, "age"] = "y", "8"
    frame.to_csv(table, index=False)
    read_paths.clear()
    vectorize(job, runner=LocalRunner())
    check_whole(job.dataset_uri)
    rows = rows_of(job.dataset_uri).set_index("path")
    assert sorted(read_paths) == [str(images[0]), str(images[1])]
    assert rows.class_name[str(images[0])] == "y"
    assert rows.age.to_dict() == frame.set_index("path").age.to_dict()
    assert (rows.split == splits).all()


def test_a_rejected_image_is_read_again_only_when_it_changed_or_the_world_may_have(pile, read_paths, monkeypatch):
    pile.write({"a/bad": EMPTY, "b/locked": 5})
    locked = str(pile.home / "images/b/locked.ppm")

    def refuse(uri, **more):
        if uri == locked:
            raise RetryableError(f"cannot read {uri}") from PermissionError(13, "no")
        return original(uri, **more)

    original = filesystem.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_bytes", refuse)
        pile.run()
        assert load_manifest(pile.uri).num_rejected_by_reason == {"empty": 1, "no_permission": 1}
        read_paths.clear()
        assert not pile.run().changed
        assert read_paths == ["b/locked.ppm"]
    read_paths.clear()
    pile.run()
    assert read_paths == ["b/locked.ppm"]
    assert check_whole(pile.uri).num_rejected_by_reason == {"empty": 1}


def test_another_label_setting_is_refused(pile):
    pile.run()
    with pytest.raises(UserError, match=r"source\.label_from is layout there and parent_folder here"):
        pile.run(source={"label_from": "parent_folder"})


@pytest.mark.parametrize(("most", "expected"), [(3, {"a": 3, "b": 3, "c": 2}), ("smallest", {"a": 2, "b": 2, "c": 2})])
def test_classes_are_balanced_by_leaving_images_out(pile, caplog, most, expected):
    pile.write({f"c/{number}": number for number in range(2)})
    with caplog.at_level("INFO"):
        pile.run(source={"max_per_class": most})
    index = index_of(pile.uri)
    assert index.class_name.value_counts().to_dict() == expected
    assert load_manifest(pile.uri).source.num_left_out == 14 - sum(expected.values())
    assert f"{14 - sum(expected.values())} images were left out by source.max_per_class={most}" in caplog.text
    pile.write({"a/another": 50})
    pile.run(source={"max_per_class": most})
    again = index_of(pile.uri)
    assert len(set(again.path) - set(index.path)) <= 1, "one more image displaces one at most"


def test_a_version_that_would_name_a_lost_shard_is_not_published(pile):
    pile.run()
    published = load_manifest(pile.uri)
    lost = published.shards_of("train")[0]
    (Path(pile.uri) / "shards" / lost.name).unlink()
    pile.write({"a/new": 1})
    with pytest.raises(RetryableError, match=f"{lost.name}: missing; .*replace=true"):
        pile.run()
    assert load_manifest(pile.uri) == published


def test_a_run_that_waited_for_another_goes_by_the_source_of_now(pile, monkeypatch):
    """Another run publishes after this one has listed the source."""
    original, other = shardmean.jobs.vectorize.job.scan, []

    def scan(*given):
        found = original(*given)
        if not other:
            other.append("begun")
            pile.write({"a/late": 1})
            pile.run()
        return found

    monkeypatch.setattr(shardmean.jobs.vectorize.job, "scan", scan)
    pile.run()
    assert "a/late.ppm" in set(rows_of(pile.uri).path)


def test_a_task_has_files_of_limited_size():
    sizes_bytes = np.array([100, 200, 2**28, 1, 2**28 - 1, 1, 5, 2**40])
    parts = [sizes_bytes[part].tolist() for part in partitions(sizes_bytes, num_items=3)]
    assert parts == [[100, 200], [2**28], [1, 2**28 - 1], [1, 5], [2**40]]
    assert not list(partitions(np.zeros(0, np.int64), num_items=3))


@pytest.mark.parametrize(
    ("num_items", "sizes"),
    [
        (1, [1]),
        (7, [2, 2, 2, 1]),
        (10_000, [417] * 23 + [409]),
        (445 * 2, [445] * 2),
        (445 * 7, [390] * 7 + [385]),
        (445 * 9, [401] * 9 + [396]),
        (445 * 65, [402] * 71 + [383]),
    ],
)
def test_tasks_have_about_as_many_items_and_cores_end_together(num_items, sizes):
    largest = 3 if num_items < 10 else 445
    parts = list(partitions(np.ones(num_items, np.int64), num_items=largest))
    assert [part.stop - part.start for part in parts] == sizes
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]


def test_a_manifest_of_another_schema_can_be_replaced(pile):
    pile.run()
    file = Path(pile.uri) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 1}))
    with pytest.raises(UserError, match="schema version 1"):
        pile.run()
    pile.run(replace=True)
    check_whole(pile.uri)
