"""The DataSet that vectorize makes of good images: what is in it, what it depends on, its updates."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from PIL import Image

from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.dataset.manifest import SPLITS, load_manifest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture
def images(tmp_path, make_images):
    return make_images(tmp_path / "images")


def rows(dataset: Path, digest: str | None = None) -> pd.DataFrame:
    """All examples of a DataSet with their splits, by the manifest."""
    manifest = load_manifest(str(dataset), digest)
    parts = [
        pq.read_table(dataset / "shards" / shard.name).to_pandas().assign(split=shard.split)
        for shard in manifest.shards
    ]
    return pd.concat(parts, ignore_index=True)


def pixels(row) -> np.ndarray:
    return np.frombuffer(row.features, np.uint8).reshape(12, 12)


def test_every_file_is_in_exactly_one_split_with_its_pixels_and_class(images, tmp_path, vectorize_job):
    result = vectorize(vectorize_job(images, tmp_path / "set"))
    found = rows(tmp_path / "set")
    assert sorted(found.path) == sorted(str(p.relative_to(images)) for p in images.rglob("*.png"))
    assert set(found.split) == set(SPLITS)
    assert result.num_examples == {split: (found.split == split).sum() for split in SPLITS}
    assert result.class_names == ["low", "middle", "top"]
    assert found.id.is_unique
    for row in found.itertuples():
        assert result.class_names[row.label] == row.path.split("/")[0]
        np.testing.assert_array_equal(pixels(row), np.asarray(Image.open(images / row.path)))


def test_shards_hold_what_the_manifest_says(images, tmp_path, vectorize_job):
    vectorize(vectorize_job(images, tmp_path / "set"))
    manifest = load_manifest(str(tmp_path / "set"))
    assert len(manifest.shards) > 4
    for shard in manifest.shards:
        path = tmp_path / "set" / "shards" / shard.name
        assert blake3(path.read_bytes()).hexdigest() == shard.blake3
        assert path.stat().st_size == shard.num_bytes
        table = pq.read_table(path).to_pandas()
        assert len(table) == shard.num_examples
        assert Counter(table.label.tolist()) == shard.num_per_class
    assert {p.name for p in (tmp_path / "set" / "shards").iterdir()} == {shard.name for shard in manifest.shards}


def test_mean_and_std_are_those_of_the_training_split(images, tmp_path, vectorize_job):
    vectorize(vectorize_job(images, tmp_path / "set"))
    manifest, found = load_manifest(str(tmp_path / "set")), rows(tmp_path / "set")
    values = np.stack([pixels(row) for row in found[found.split == "train"].itertuples()]) / 255
    np.testing.assert_allclose(manifest.mean, [values.mean()], rtol=1e-12)
    np.testing.assert_allclose(manifest.std, [values.std()], rtol=1e-9)


def test_the_order_in_which_files_were_made_does_not_matter(images, tmp_path, vectorize_job):
    files = sorted(p.relative_to(images) for p in images.rglob("*.png"))
    for path in reversed(files):
        (tmp_path / "other" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / path, tmp_path / "other" / path)
    first = vectorize(vectorize_job(images, tmp_path / "set"))
    second = vectorize(vectorize_job(tmp_path / "other", tmp_path / "set 2"))
    assert first.digest == second.digest


def test_the_number_of_slots_does_not_matter(images, tmp_path, vectorize_job, run_cli):
    """In a process of its own on one slot; this also is the whole command as a user runs it."""
    job = vectorize_job(images, tmp_path / "set")
    (tmp_path / "job.json").write_text(job.model_dump_json())
    overrides = [f"dataset_uri={tmp_path}/one", 'spark={"spark.master":"local[1]"}']
    ended = run_cli("vectorize", "--config", str(tmp_path / "job.json"), *overrides)
    assert ended.code == 0, ended.text
    assert f"published {tmp_path}/one" in ended.out
    assert load_manifest(str(tmp_path / "one")).digest == vectorize(job).digest


@pytest.mark.timeout(400)
def test_a_cluster_gives_the_same_digest(images, tmp_path, vectorize_job, run_cli, standalone_cluster):
    """Two workers of one core each, which read what is new and rewrite what has changed."""
    there = vectorize_job(images, tmp_path / "there", spark=standalone_cluster.settings)
    here = vectorize_job(images, tmp_path / "here")
    (tmp_path / "job.json").write_text(there.model_dump_json())
    for job in (there, here):
        vectorize(job, runner=LocalRunner())
    (images / "low" / "003.png").unlink()
    for number in range(20):
        shutil.copy(images / "low" / "019.png", images / "low" / f"new {number}.png")
    ended = run_cli("vectorize", "--config", str(tmp_path / "job.json"))
    assert ended.code == 0, ended.text
    assert load_manifest(there.dataset_uri).digest == vectorize(here, runner=LocalRunner()).digest


def test_another_seed_deals_other_splits(images, tmp_path, vectorize_job):
    job = vectorize_job(images, tmp_path / "set")
    vectorize(job)
    other = job.split.model_copy(update={"seed": 1})
    vectorize(vectorize_job(images, tmp_path / "other", split=other))
    first, second = (rows(tmp_path / name).set_index("path").split for name in ("set", "other"))
    assert 0 < (first != second.loc[first.index]).mean() < 1


def test_nothing_new_publishes_nothing(images, tmp_path, vectorize_job):
    job = vectorize_job(images, tmp_path / "set")

    def snapshot():
        return {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")}

    first = vectorize(job)
    before = snapshot()
    second = vectorize(job)
    assert (first.changed, second.changed) == (True, False)
    assert second.digest == first.digest
    assert second.num_examples == first.num_examples
    assert snapshot() == before


def test_one_more_image_is_a_new_version_and_all_others_keep_their_split(images, tmp_path, vectorize_job, make_images):
    job = vectorize_job(images, tmp_path / "set")
    first = vectorize(job)
    extra = make_images(tmp_path / "extra", num_per_class=1, seed=1)
    shutil.copy(extra / "low" / "000.png", images / "low" / "new.png")
    second = vectorize(job)
    assert second.changed
    assert second.digest != first.digest
    old, new = (rows(tmp_path / "set", digest).set_index("path").split for digest in (first.digest, second.digest))
    assert set(new.index) - set(old.index) == {"low/new.png"}
    assert (new.loc[old.index] == old).all()


def test_a_removed_image_is_gone_from_the_next_version(images, tmp_path, vectorize_job):
    job = vectorize_job(images, tmp_path / "set")
    vectorize(job)
    (images / "top" / "003.png").unlink()
    assert vectorize(job).changed
    assert "top/003.png" not in set(rows(tmp_path / "set").path)


def test_touched_files_of_the_same_content_are_no_change(images, tmp_path, vectorize_job):
    """A new modification time makes it read again, but who trains on every change must not be told of one."""
    job = vectorize_job(images, tmp_path / "set")
    first = vectorize(job)
    (images / "top" / "003.png").touch()
    second = vectorize(job)
    assert second.digest == first.digest
    assert not second.changed


def test_all_common_readers_read_the_shards(images, tmp_path, vectorize_job, spark, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    vectorize(vectorize_job(images, tmp_path / "set"))
    folder = tmp_path / "set" / "shards"
    files = [str(folder / shard.name) for shard in load_manifest(str(tmp_path / "set")).shards]
    tables = {
        "pyarrow": pq.read_table(folder).to_pandas(),
        "pandas": pd.concat(map(pd.read_parquet, files)),
        "spark": spark.read.parquet(*files).toPandas(),
        "datasets": load_dataset(
            "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hf")
        ).to_pandas(),
    }
    first = rows(tmp_path / "set").sort_values("id", ignore_index=True)
    assert len(first) == 60
    for name, table in tables.items():
        names = ["features", "label", "id", "path"]
        assert table.columns.tolist() == names, name
        found = table.sort_values("id", ignore_index=True)
        assert [bytes(value) for value in found.features] == first.features.tolist(), name
        assert (found[names[1:]] == first[names[1:]]).all(axis=None), name


def test_color_images_of_other_sizes_get_the_shape_asked_for(tmp_path, vectorize_job):
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for size in range(5, 15):
            Image.new("RGB", (size, 2 * size), color).save(tmp_path / "images" / name / f"{size}.png")
    image = {"height_px": 6, "width_px": 4, "channels": 3}
    vectorize(vectorize_job(tmp_path / "images", tmp_path / "set", image=image))
    manifest = load_manifest(str(tmp_path / "set"))
    assert manifest.image.shape == (3, 6, 4)
    assert len(manifest.mean) == len(manifest.std) == 3
    for row in rows(tmp_path / "set").itertuples():
        values_CHW = np.frombuffer(row.features, np.uint8).reshape(3, 6, 4)
        color = (0, 0, 255) if row.path.startswith("blue") else (255, 0, 0)
        assert (values_CHW == np.array(color).reshape(3, 1, 1)).all()


def test_tasks_that_get_no_training_image(tmp_path, vectorize_job, make_images):
    """One image a task: by chance the last task of any DataSet may hold few images, none of them for training."""
    images = make_images(tmp_path / "images", num_per_class=5)
    job = vectorize_job(images, tmp_path / "set", image={"height_px": 32, "width_px": 32}, shard_bytes=1024)
    assert sum(vectorize(job).num_examples.values()) == 15
    assert len(load_manifest(str(tmp_path / "set")).shards) == 15


def test_files_of_several_frames_are_counted_now_and_later(images, vectorize_job, caplog, tmp_path):
    first = Image.open(images / "low" / "000.png")
    first.save(images / "low" / "moving.gif", save_all=True, append_images=[first.rotate(90), first.rotate(180)])
    caplog.set_level("INFO")
    job = vectorize_job(images, tmp_path / "set")
    vectorize(job, runner=LocalRunner())
    assert "of 1 files with more pages or frames the first was taken" in caplog.text
    Image.open(images / "low" / "001.png").rotate(90).save(images / "low" / "new.png")
    result = vectorize(job, runner=LocalRunner())
    assert load_manifest(job.dataset_uri, result.digest).num_first_frames == 1
