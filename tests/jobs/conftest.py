"""What the tests of jobs share: one Spark session, small images, jobs of small size, and the command line.

Everything is real and small: Spark on local[3], MLflow on SQLite, PNG files made here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from shardmean.jobs.config.job import SourceConfig, TrainJob, VectorizeJob
from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.config.optimizer import OptimizerConfig
from shardmean.model.config.training import AveragingConfig
from shardmean.model.storage import filesystem

from .cluster import running_cluster

QUICK_JVM = {
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.ui.enabled": "false",
}
SPLIT = SplitConfig(train=0.6, validation=0.2, test=0.2)


@pytest.fixture(scope="session")
def spark():
    """One session for all tests, as a caller's: `open_session` uses it and leaves it open."""
    from pyspark.sql import SparkSession

    from shardmean.jobs.spark.java import java_environment
    from shardmean.jobs.spark.session import DEFAULTS

    os.environ |= java_environment()
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[3]").appName("tests")
    for key, value in {**DEFAULTS, **QUICK_JVM, "spark.log.level": "ERROR"}.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="session")
def standalone_cluster(tmp_path_factory):
    """A Spark standalone cluster of a master and two workers of one core each: see tests/jobs/cluster.py."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def _make_images(
    folder: Path, classes=("low", "middle", "top"), *, num_per_class: int = 20, size: int = 12, seed: int = 0
) -> Path:
    """Class folders of noise with a bright bar whose height in the picture tells the class; no two are equal."""
    random = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        row = (2 * place + 1) * size // (2 * len(classes))
        for number in range(num_per_class):
            pixels = random.integers(0, 100, (size, size), dtype=np.uint8)
            pixels[row : row + max(2, size // 8)] += 150
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def make_images():
    return _make_images


def _vectorize_job(source: Path, dataset: Path, *, layout: str = "folders", size: int = 12, **changes) -> VectorizeJob:
    settings = {
        "source": SourceConfig(uri=str(source), layout=layout),
        "dataset_uri": str(dataset),
        "image": ImageConfig(height_px=size, width_px=size),
        "split": SPLIT,
        "shard_bytes": 2048,
    }
    return VectorizeJob(**(settings | changes))


@pytest.fixture(scope="session")
def vectorize_job():
    """A function that gives the job which vectorizes one folder (or table) into another."""
    return _vectorize_job


@pytest.fixture
def pile(tmp_path):
    """A small pile of images in a folder of the test's own: see tests/jobs/pile.py."""
    from .pile import Pile

    return Pile(tmp_path)


@pytest.fixture(scope="session")
def dataset(spark, tmp_path_factory) -> Path:
    """A DataSet of three classes in several shards, of images that LeNet takes. Read only."""
    from shardmean.jobs.vectorize.job import vectorize

    home = tmp_path_factory.mktemp("dataset")
    images = _make_images(home / "images", num_per_class=70, size=28)
    vectorize(_vectorize_job(images, home / "set", size=28, shard_bytes=20 * 28 * 28))
    return home / "set"


@pytest.fixture
def train_job(dataset, tmp_path):
    """A function that gives a training of few epochs on the small DataSet; keywords change its settings."""

    def make(**changes) -> TrainJob:
        settings = {
            "dataset_uri": str(dataset),
            "checkpoint_uri": str(tmp_path / "checkpoints"),
            "num_epochs": 3,
            "batch_size_per_worker": 8,
            "optimizer": OptimizerConfig(learning_rate=0.003),
            "averaging": AveragingConfig(frequency=3),
            "device": "cpu",
        }
        return TrainJob(**(settings | changes))

    return make


@dataclass(frozen=True)
class Finished:
    """How a command ended: its code and both outputs, which a user sees mixed in a terminal."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture(scope="session")
def start_cli(tmp_path_factory):
    """A function that starts the command line as a session leader; what still runs at the end is killed."""
    running = []
    folder = tmp_path_factory.mktemp("working_directory")
    command = Path(sys.executable).with_name("shardmean")

    def start(*arguments: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([command, *arguments], cwd=folder, start_new_session=True, **pipes)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.communicate()


@pytest.fixture(scope="session")
def run_cli(start_cli):
    """A function that runs the command line to its end, 90 seconds at most."""

    def run(*arguments: str, timeout_s: int = 90) -> Finished:
        process = start_cli(*arguments)
        out, err = process.communicate(timeout=timeout_s)
        return Finished(process.returncode, out, err)

    return run


def _wait_for(condition, *, timeout_s: float = 60, what: str = "") -> object:
    """The first true value of `condition`, asked 50 times a second; fails after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s in vain for {what or condition}")


@pytest.fixture(scope="session")
def wait_for():
    return _wait_for


@pytest.fixture
def fill(tmp_path):
    """A function that writes files whose content is their path, and gives their folder."""

    def fill(*paths: str, folder: Path = tmp_path / "source") -> Path:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(path)
        return folder

    return fill


@pytest.fixture
def to_s3(new_bucket):
    """A function that copies a folder into a new bucket, and gives the copy's URI."""

    def to_s3(folder: Path) -> str:
        uri = filesystem.join(new_bucket(), "a folder, 100% odd")
        system, path = filesystem.locate(uri)
        fs.copy_files(str(folder), path, destination_filesystem=system)
        return uri

    return to_s3
