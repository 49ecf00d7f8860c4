"""A training that is killed again and again, by the same command each time, ends with the bits of one left in peace."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import psutil
import pytest
import torch

from shardmean.jobs.config.job import TrackingConfig, TrainJob
from shardmean.jobs.spark.session import JVM_ENDED
from shardmean.jobs.train.job import train
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.training import checkpoint

if TYPE_CHECKING:
    import subprocess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
NUM_EPOCHS = 6
SPARK = {
    "spark.master": "local[2]",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


@dataclass
class Try:
    """How one try ended: exit code, both outputs, epochs done when it was struck, and its status in MLflow."""

    code: int
    text: str
    struck_after: int
    was_clean: bool
    status: str


@dataclass
class Story:
    job: TrainJob
    home: Path
    tries: dict[str, Try] = field(default_factory=dict)

    @property
    def last_epoch(self) -> int:
        return max((int(p.stem[-6:]) for p in self.home.glob("checkpoints/*/epoch-*.pt")), default=0)

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.job.tracking.uri)


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """Python processes that Spark's daemon has forked."""
    family = psutil.Process(process.pid).children(recursive=True)
    daemons = {p.pid: p for p in family if p.status() != "zombie" and "pyspark.daemon" in " ".join(p.cmdline())}
    return [child for child in daemons.values() if child.ppid() in daemons]


@pytest.fixture(scope="module")
def story(spark, tmp_path_factory, make_images, vectorize_job, new_store, start_cli, wait_for):
    """Five tries of one command: driver, worker and JVM killed, the driver told to end, and one left in peace."""
    home = tmp_path_factory.mktemp("resume")
    images = make_images(home / "images", num_per_class=160, size=28)
    vectorize(vectorize_job(images, home / "set", size=28, shard_bytes=100_000))
    # One image a minibatch and an average each: long epochs, so that a blow falls into the middle of one.
    job = TrainJob(
        dataset_uri=str(home / "set"), checkpoint_uri=str(home / "checkpoints"), num_epochs=NUM_EPOCHS,
        device="cpu", max_segment_retries=0,
        network="small_cnn", batch_size_per_worker=2, averaging={"frequency": 2}, tracking=new_store(home / "mlflow"),
        spark=SPARK,
    )  # fmt: skip
    (home / "job.json").write_text(job.model_dump_json())
    told = Story(job, home)

    def busy_worker(process: subprocess.Popen) -> psutil.Process:
        """A worker that has computed since the last checkpoint: it is in the middle of an epoch."""
        before = {worker.pid: sum(worker.cpu_times()[:2]) for worker in workers(process)}

        def busy():
            alive = [w for w in workers(process) if w.pid in before]
            return next((w for w in alive if sum(w.cpu_times()[:2]) > before[w.pid] + 0.1), None)

        return wait_for(busy, what="a worker at work")

    def kill_driver(process: subprocess.Popen) -> None:
        os.kill(process.pid, signal.SIGKILL)

    def kill_worker(process: subprocess.Popen) -> None:
        busy_worker(process).kill()

    def kill_jvm(process: subprocess.Popen) -> None:
        busy_worker(process)
        next(child for child in psutil.Process(process.pid).children() if child.name() == "java").kill()

    def terminate_driver(process: subprocess.Popen) -> None:
        busy_worker(process)
        os.kill(process.pid, signal.SIGTERM)

    def attempt(name: str, strike, *, after: int) -> None:
        process = start_cli("train", "--config", str(home / "job.json"), "--result", str(home / f"{name}.json"))
        struck_after, family = 0, []
        if strike:
            ended = lambda: process.poll() is not None  # noqa: E731
            wait_for(lambda: told.last_epoch >= after or ended(), what=f"epoch {after}")
            if not ended():
                family = psutil.Process(process.pid).children(recursive=True)
                strike(process)
                struck_after = told.last_epoch
        out, err = process.communicate(timeout=90)
        gone = psutil.wait_procs(family, timeout=20)[1] == []
        (run,) = told.client.search_runs(["1"])
        told.tries[name] = Try(process.returncode, out + err, struck_after, gone, run.info.status)

    attempt("driver killed", kill_driver, after=1)
    attempt("worker killed", kill_worker, after=2)
    attempt("JVM killed", kill_jvm, after=3)
    attempt("driver told to end", terminate_driver, after=4)
    attempt("in peace", None, after=NUM_EPOCHS)
    return told


@pytest.fixture(scope="module")
def undisturbed(story, tmp_path_factory):
    """The same training in one go, with folders, experiment and database of its own."""
    home = tmp_path_factory.mktemp("undisturbed")
    tracking = TrackingConfig(
        uri=story.job.tracking.uri, experiment="other", registered_model="other", artifact_uri=str(home / "artifacts")
    )
    changes = {"checkpoint_uri": str(home / "checkpoints"), "tracking": tracking, "spark": {}}
    return train(story.job.model_copy(update=changes)), home


def test_a_killed_driver_takes_its_processes_along(story):
    killed = story.tries["driver killed"]
    assert killed.code == -signal.SIGKILL
    assert killed.struck_after >= 1
    assert killed.was_clean, "no JVM and no worker is left"


@pytest.mark.parametrize("name", ["worker killed", "JVM killed", "driver told to end", "in peace"])
def test_the_same_command_says_that_it_goes_on(story, name):
    order = list(story.tries)
    earlier = story.tries[order[order.index(name) - 1]]
    said = re.search(rf"resuming after epoch (\d+) of {NUM_EPOCHS} from the last checkpoint", story.tries[name].text)
    assert said, story.tries[name].text
    # A strike may fall while the next checkpoint is being written.
    assert int(said[1]) - earlier.struck_after in (0, 1)


def test_a_killed_worker_gives_a_clear_message(story):
    killed = story.tries["worker killed"]
    assert killed.code == 1, killed.text
    (message,) = [line for line in killed.text.splitlines() if line.startswith("shardmean: error: ")]
    expected = r"worker [01] on .+, last report in round \d+, was lost: .+; run the same command to resume"
    assert re.search(expected, message), message
    assert "org.apache.spark" not in message
    assert '"kind": "retryable"' in (story.home / "worker killed.json").read_text()
    assert killed.was_clean


def assert_no_frame_of_ours(text: str) -> None:
    """Spark and py4j log what they met, as they see fit; our own part is a message."""
    assert not re.search(r'File ".*/shardmean/(jobs|model|dags)/', text)


def test_a_killed_worker_gives_no_traceback(story):
    assert_no_frame_of_ours(story.tries["worker killed"].text)


def test_a_killed_jvm_gives_a_clear_message(story):
    killed = story.tries["JVM killed"]
    assert killed.code == 1, killed.text
    (message,) = [line for line in killed.text.splitlines() if line.startswith("shardmean: error: ")]
    assert message == f"shardmean: error: {JVM_ENDED}"
    assert_no_frame_of_ours(killed.text)
    assert '"kind": "retryable"' in (story.home / "JVM killed.json").read_text()
    assert killed.was_clean


def test_a_terminated_driver_gives_a_clear_message(story):
    told = story.tries["driver told to end"]
    assert told.code == 130, told.text
    assert "shardmean: error: interrupted; run the same command to resume" in told.text
    assert told.was_clean


def test_a_terminated_driver_gives_no_traceback(story):
    assert_no_frame_of_ours(story.tries["driver told to end"].text)


def test_the_last_try_reaches_the_end(story):
    assert story.tries["in peace"].code == 0, story.tries["in peace"].text
    assert story.last_epoch == NUM_EPOCHS


def test_all_tries_are_one_run(story):
    (run,) = story.client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    for name in ("train_loss", "validation_accuracy"):
        steps = [metric.step for metric in story.client.get_metric_history(run.info.run_id, name)]
        assert sorted(steps) == list(range(1, NUM_EPOCHS + 1))
    assert len(story.client.search_model_versions("name='shardmean'")) == 1


def test_the_parameters_are_those_of_an_undisturbed_run_bit_for_bit(story, undisturbed):
    result, home = undisturbed
    theirs = [next(h.glob(f"checkpoints/*/epoch-{NUM_EPOCHS:06d}.pt")) for h in (story.home, home)]
    struck, peaceful = (asdict(checkpoint.load(str(path))) for path in theirs)
    assert struck["best_epoch"] == peaceful["best_epoch"]
    for part in ("model", "best_model"):
        assert struck[part].keys() == peaceful[part].keys()
        for name, value in peaceful[part].items():
            assert torch.equal(struck[part][name], value), f"{part}: {name}"
    logged = [weights(f"models:/{uri}") for uri in ("shardmean/1", f"other/{result.model_version}")]
    for name, value in peaceful["best_model"].items():
        assert torch.equal(logged[0][name], value)
        assert torch.equal(logged[1][name], value)


def weights(uri: str) -> dict[str, torch.Tensor]:
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    return torch.load(folder / "data" / "classifier" / "weights.pt", weights_only=True)
