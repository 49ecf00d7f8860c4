"""`shardmean init`: what it sees in a source, and a file that loads and trains."""

from __future__ import annotations

import gzip
import shutil
import struct

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.loading import load_job, load_pipeline
from shardmean.jobs.pipeline.starter import convert_configs, write_pipeline
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.errors import UserError
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDMEAN_HOME", str(tmp_path / "home"))


def write_images(folder, sizes, mode="L", num=8):
    random = np.random.default_rng(len(str(folder)))
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(num):
            width, height = sizes[number % len(sizes)]
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{number}.png")
    return folder


def made(tmp_path, source):
    return load_pipeline(write_pipeline("pets", str(source), tmp_path / "pipelines"))


@pytest.mark.parametrize(
    ("sizes", "mode", "shape", "resize", "network"),
    [
        ([(12, 8)], "L", (1, 8, 12), "none", "small_cnn"),
        ([(224, 224)], "RGB", (3, 224, 224), "none", "resnet18"),
        ([(300, 300), (400, 400)], "RGB", (3, 224, 224), "stretch", "resnet18"),
        ([(100, 130), (130, 100)], "L", (1, 96, 96), "center_crop", "resnet18"),
        ([(20, 10), (10, 10)], "RGB", (3, 28, 28), "center_crop", "small_cnn"),
    ],
)
def test_sizes_and_channels_decide_the_shape_and_the_network(tmp_path, sizes, mode, shape, resize, network):
    pipeline = made(tmp_path, write_images(tmp_path / "images", sizes, mode))
    image = pipeline.vectorize.image
    assert (image.shape, image.resize, pipeline.train.network) == (shape, resize, network)
    assert pipeline.vectorize.checks.min_images_per_class == 4
    result = vectorize(pipeline.vectorize, runner=LocalRunner())
    assert (sum(result.num_examples.values()), result.class_names) == (16, ["cat", "dog"])


def test_split_folders_are_no_classes(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "images" / split, [(8, 8)], num=10 if split == "train" else 3)
    file = write_pipeline("pets", str(tmp_path / "images"), tmp_path)
    pipeline = load_pipeline(file)
    assert pipeline.vectorize.source.split_folders
    assert "13 to 13 each; 6 in test; 20 in train" in file.read_text()
    assert vectorize(pipeline.vectorize, runner=LocalRunner()).num_examples["train"] == 20


def test_a_table_and_idx_files(tmp_path):
    images = write_images(tmp_path / "images", [(8, 8)])
    rows = "".join(f"{path.relative_to(images)},{path.parent.name}\n" for path in sorted(images.glob("*/*.png")))
    (images / "all.csv").write_text(f"path,label\n{rows}")
    assert made(tmp_path, images / "all.csv").vectorize.source.layout == "table"
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, number in (("train", 20), ("t10k", 6)):
        pixels = np.random.default_rng(number).integers(0, 256, (number, 5, 4), dtype=np.uint8)
        head = struct.pack(">4I", 2051, number, 5, 4)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
        labels = bytes(label % 2 for label in range(number))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, number) + labels)
    pipeline = load_pipeline(write_pipeline("digits", str(folder), tmp_path / "pipelines"))
    assert (pipeline.vectorize.source.layout, pipeline.vectorize.source.split_files) == ("idx", True)
    assert pipeline.vectorize.image.shape == (1, 5, 4)
    assert vectorize(pipeline.vectorize, runner=LocalRunner()).num_examples == {"train": 20, "validation": 0, "test": 6}


def test_broken_images_are_counted_and_a_pile_of_them_is_refused(tmp_path):
    images = write_images(tmp_path / "images", [(8, 8)])
    (images / "cat" / "0.png").write_bytes(b"nothing")
    file = write_pipeline("pets", str(images), tmp_path)
    assert "Sizes of a sample: 8 x 8; 1 of the sample cannot be read" in file.read_text()
    for path in images.glob("*/*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of 16 sampled images can be read"):
        write_pipeline("others", str(images), tmp_path)


def test_nothing_is_written_over_and_nothing_wrong_is_left(tmp_path):
    images = write_images(tmp_path / "it's {odd}: images", [(8, 8)])
    file = write_pipeline("pets", str(images), tmp_path / "pipelines")
    assert load_pipeline(file).vectorize.source.uri == str(images)
    before = file.read_text()
    with pytest.raises(UserError, match="is there already: choose another name"):
        write_pipeline("pets", str(images), tmp_path / "pipelines")
    with pytest.raises(UserError, match="name = 'Pets'"):
        write_pipeline("Pets", str(images), tmp_path / "pipelines")
    assert [path.read_text() for path in (tmp_path / "pipelines").iterdir()] == [before]


def test_configs_of_0_1_0_become_a_pipeline_with_the_same_values(tmp_path):
    stored = ROOT / "tests" / "data" / "v0_1_0"
    for name in ("vectorize.yaml", "train.yaml"):
        shutil.copy(stored / name, tmp_path / name)
    with (tmp_path / "vectorize.yaml").open("a") as stream:
        stream.write('schedule: "30 2 * * *"\n')
    pipeline = load_pipeline(convert_configs(tmp_path, tmp_path / "pipelines"))
    before = load_job(TrainJob, tmp_path / "train.yaml")
    assert pipeline.airflow.schedule == "30 2 * * *"
    assert pipeline.train == before
    assert pipeline.vectorize == load_job(VectorizeJob, stored / "vectorize.yaml")
    assert pipeline.name == before.tracking.registered_model


def test_references_stay_references_and_a_missing_file_is_named(tmp_path):
    (tmp_path / "vectorize.yaml").write_text("source: {uri: /x}\ndataset_uri: '${oc.env:SHARDMEAN_HOME}/set'\n")
    with pytest.raises(UserError, match=r"train\.yaml: not found"):
        convert_configs(tmp_path, tmp_path / "pipelines")
    (tmp_path / "train.yaml").write_text("dataset_uri: '${oc.env:SHARDMEAN_HOME}/set'\ncheckpoint_uri: /runs\n")
    file = convert_configs(tmp_path, tmp_path / "pipelines")
    assert OmegaConf.to_container(OmegaConf.load(file))["vectorize"]["dataset_uri"] == "${oc.env:SHARDMEAN_HOME}/set"
    assert load_pipeline(file).airflow.schedule == "0 3 * * *"
