"""The ETL on a real standalone cluster, whose executors are killed in the middle of their partitions."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from tests.jobs.whole import check_whole, rows_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]

# Each attempt at a partition leaves a file. One dies with its JVM at its fourth image, another when its shards are
# written and nothing is reported yet.
ETL = """
import os, sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
import psutil
from shardmean.jobs.config.job import VectorizeJob
from shardmean.jobs.vectorize.shard_task import PartitionTask
from shardmean.jobs.spark.task_runner import SparkRunner
from shardmean.jobs.vectorize.job import vectorize

def kill_executor():
    backend = "CoarseGrainedExecutorBackend"
    next(p for p in psutil.Process().parents() if any(backend in word for word in p.cmdline())).kill()
    os.kill(os.getpid(), 9)

class Fatal(list):
    def __iter__(self):
        yield from islice(super().__iter__(), 3)
        kill_executor()

def is_first(folder, name):
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def struck(do, folder, task):
    if not isinstance(task, PartitionTask):
        return do(task)
    (folder / f"attempt {task.positions[0]} {os.urandom(8).hex()}").touch()
    num_attempts = len(list(folder.glob("attempt *")))
    if num_attempts >= 4 and is_first(folder, "killed while reading"):
        task = replace(task, items=Fatal(task.items))
    report = do(task)
    if num_attempts >= 7 and is_first(folder, "killed before the report"):
        kill_executor()
    return report

class Struck(SparkRunner):
    def run(self, work, tasks):
        do, folder = work.do, Path(sys.argv[2])
        return super().run(replace(work, do=lambda task: struck(do, folder, task)), tasks)

job = VectorizeJob.model_validate_json(Path(sys.argv[1]).read_text())
with Struck("etl", job.spark) as runner:
    print("digest", vectorize(job, runner=runner).digest)
"""


def test_a_killed_executor_costs_its_partition_alone(standalone_cluster, tmp_path, make_images, vectorize_job):
    images = make_images(tmp_path / "images", num_per_class=60)
    undisturbed = vectorize(vectorize_job(images, tmp_path / "undisturbed"), runner=LocalRunner())
    job = vectorize_job(images, tmp_path / "set", spark=standalone_cluster.settings)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    marks = tmp_path / "marks"
    marks.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ETL, str(tmp_path / "job.json"), str(marks)],
        capture_output=True, text=True, timeout=150, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(marks.glob("killed *"))) == 2
    attempts = Counter(path.name.split()[1] for path in marks.glob("attempt *"))
    assert len(attempts) == 14, "180 images in shards of 14 at most, and an even number of tasks"
    assert sorted(attempts.values())[-3:] == [1, 2, 2], "the work of all others stays"
    assert f"digest {undisturbed.digest}" in done.stdout
    manifest = check_whole(job.dataset_uri)
    assert rows_of(job.dataset_uri).equals(rows_of(str(tmp_path / "undisturbed")))
    assert len(rows_of(job.dataset_uri)) == 180
    named = {shard.name for shard in manifest.shards}
    left = {path.name for path in (tmp_path / "set" / "shards").iterdir()} - named
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left), "what was half written has no name"
