"""Training on a real standalone cluster: the bits of local workers, lost executors, and GPUs for the training alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import psutil
import pytest
import torch

from shardmean.jobs.train.job import train
from shardmean.jobs.train.run_directory import directory_of
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.storage.lease import Lease
from shardmean.model.training import checkpoint
from tests.jobs.cluster import running_cluster

if TYPE_CHECKING:
    from shardmean.jobs.config.job import TrainJob

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
NUM_EPOCHS = 3


@pytest.fixture
def cluster_job(train_job, standalone_cluster, new_store, tmp_path):
    """A job on the cluster, written to a file for the command line: its path, and the job."""

    def make(name: str = "job", **changes) -> tuple[Path, TrainJob]:
        spark = standalone_cluster.settings | changes.pop("spark", {})
        settings = {
            "checkpoint_uri": str(tmp_path / name), "tracking": new_store(tmp_path / f"{name}-mlflow"),
            "num_epochs": NUM_EPOCHS, "network": "small_cnn", "spark": spark,
        }  # fmt: skip
        job = train_job(**settings | changes)
        file = tmp_path / f"{name}.json"
        file.write_text(job.model_dump_json())
        return file, job

    return make


def last_checkpoint(job: TrainJob) -> checkpoint.Checkpoint:
    (folder,) = Path(job.checkpoint_uri).iterdir()
    return checkpoint.load_latest(str(folder))


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture
def undisturbed(spark, cluster_job):
    """The same training on Spark's local mode."""
    _, job = cluster_job("local")
    train(job.model_copy(update={"spark": {}}))
    return last_checkpoint(job)


def executors(cluster) -> list[psutil.Process]:
    """The cluster's executor JVMs."""
    family = [child for w in cluster.workers for child in psutil.Process(w.pid).children(recursive=True)]
    return [p for p in family if "CoarseGrainedExecutorBackend" in " ".join(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def test_a_cluster_gives_the_bits_of_local_workers_also_after_an_executor_was_killed(
    standalone_cluster, cluster_job, undisturbed, start_cli, wait_for
):
    file, job = cluster_job(wait_for_workers_s=60)
    process = start_cli("train", "--config", str(file))
    wait_for(lambda: list(Path(job.checkpoint_uri).glob("*/epoch-000001.pt")), what="the first epoch", timeout_s=120)
    victims = executors(standalone_cluster)
    assert len(victims) == 2, "each worker machine runs an executor"
    victims[0].kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    final = last_checkpoint(job)
    assert_same_bits(final.model, undisturbed.model)
    assert_same_bits(final.best_model, undisturbed.best_model)
    said = [line for line in out.splitlines() if "trying again (1 of 3)" in line]
    # The executor may also die between two epochs, which costs nothing.
    assert not said or re.search(r"was lost: .*; trying again", said[0]), said


LARGE_STATE = """
import json, sys
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.dataset.reader import Dataset
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.training.trainer import Trainer
from shardmean.jobs.config.job import TrainJob

with open(sys.argv[1]) as file:
    job = TrainJob.model_validate_json(file.read())
with open_session("large", job.spark) as session:
    launcher = BarrierLauncher(session, Rendezvous(driver_host(session)), 2)
    training = Trainer(job, Dataset(job.dataset_uri, load_manifest(job.dataset_uri)), launcher)
    print("trained", training.fit(None, lambda state: None).epoch)
"""


def test_states_larger_than_a_spark_message_are_trained(cluster_job):
    """As over 128 MB by default: a task that carries its state is refused, and each worker's own state counts too."""
    file, _ = cluster_job(
        num_epochs=2, network="layers", layers=[{"layer": "flatten"}, {"layer": "linear", "features": 700}],
        averaging={"frequency": "epoch", "optimizer_state": "keep"}, spark={"spark.rpc.message.maxSize": "1"},
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LARGE_STATE, str(file)],
        capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained 2" in done.stdout


GPU_SCRIPT = """#!/bin/sh
echo '{"name": "gpu", "addresses": ["ADDRESS"]}'
"""
LOOK = """
import json, sys
from pyspark import BarrierTaskContext, TaskContext
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host, task_device
from shardmean.jobs.spark.session import open_session, run_tasks
from shardmean.model.errors import UserError
from shardmean.model.distributed.rendezvous import Rendezvous

def of_etl(_number):
    return sorted(TaskContext.get().resources())

def of_training(_numbers):
    yield BarrierTaskContext.get().resources()["gpu"].addresses

def device(_numbers):
    try:
        yield task_device("auto")
    except UserError as error:
        yield error.args[0]

with open_session("gpus", json.loads(sys.argv[1])) as session:
    print("etl", run_tasks(session, of_etl, [0, 1, 2, 3]))
    launcher = BarrierLauncher(session, Rendezvous(driver_host(session)), 2)
    print("slots", launcher.num_slots())
    tasks = session.sparkContext.parallelize([0, 1], 2).withResources(launcher._profile)
    print("training", sorted(tasks.barrier().mapPartitions(of_training).collect()))
    print("devices", sorted(tasks.barrier().mapPartitions(device).collect()))
"""


def test_the_training_alone_asks_for_gpus_and_each_task_gets_its_own(tmp_path):
    """GPUs that a discovery script made up: what Spark hands out does not depend on what they are."""
    script = tmp_path / "gpus.sh"
    script.write_text(GPU_SCRIPT.replace("ADDRESS", '0", "1'))
    script.chmod(0o755)
    properties = {"spark.worker.resource.gpu.amount": "2", "spark.worker.resource.gpu.discoveryScript": str(script)}
    with running_cluster(tmp_path, num_workers=1, num_cores=2, properties=properties) as cluster:
        settings = cluster.settings | {
            "spark.executor.cores": "1", "spark.executor.resource.gpu.amount": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", LOOK, json.dumps(settings)],
            capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "etl [[], [], [], []]" in done.stdout
    assert "slots 2" in done.stdout
    assert "training [['0'], ['1']]" in done.stdout
    if not torch.cuda.is_available():
        for address in ("0", "1"):
            assert re.search(
                rf"Spark gave this task the GPU {address}, but torch \S+ finds none: install .* or set device=cpu",
                done.stdout,
            ), done.stdout


def test_a_second_driver_is_refused_and_changes_nothing(cluster_job, run_cli):
    file, job = cluster_job(spark={"spark.master": "local[2]"})
    folder = Path(directory_of(job, load_manifest(job.dataset_uri).digest))
    with Lease(str(folder), what="this training"):
        second = run_cli("train", "--config", str(file))
    assert second.code == 1, second.text
    assert f"this training is already running: process {os.getpid()} on {os.uname().nodename}" in second.text
    assert "Traceback" not in second.text
    assert [path.name for path in folder.iterdir()] == ["lease"]


def test_a_driver_that_slept_while_another_took_over_stops_and_writes_nothing_more(cluster_job, start_cli, wait_for):
    """Stopped as a machine that hangs; its lease is silent, so the same command elsewhere goes on."""
    file, job = cluster_job(num_epochs=12, spark={"spark.master": "local[2]"})
    first = start_cli("train", "--config", str(file))
    wait_for(lambda: list(Path(job.checkpoint_uri).glob("*/epoch-*.pt")), what="the first epoch", timeout_s=120)
    os.kill(first.pid, signal.SIGSTOP)
    (lease,) = Path(job.checkpoint_uri).glob("*/lease/*.json")
    holder = json.loads(lease.read_text())
    lease.write_text(json.dumps(holder | {"released": True}))
    second = start_cli("train", "--config", str(file))
    wait_for(lambda: list(Path(job.checkpoint_uri).glob("*/lease/00000002.json")), what="the second's lease")
    os.kill(first.pid, signal.SIGCONT)
    out, err = first.communicate(timeout=100)
    assert first.returncode == 1, out + err
    assert f"this training was taken over by process {second.pid}" in out + err
    # The winner trains in the same run of MLflow, which the loser may not mark as failed.
    (run,) = mlflow.MlflowClient(job.tracking.uri).search_runs(["1"])
    assert run.info.status != "FAILED"
    out, err = second.communicate(timeout=200)
    assert second.returncode == 0, out + err
    assert "resuming after epoch" in out
    assert last_checkpoint(job).epoch == 12
    (run,) = mlflow.MlflowClient(job.tracking.uri).search_runs(["1"])
    assert run.info.status == "FINISHED"
