"""Training over Spark: the same bits as without it, every example once, and what it leaves in MLflow."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from dataclasses import replace

import mlflow
import pytest
import torch
from mlflow.exceptions import MlflowException

from shardmean.jobs.config.job import TrackingConfig
from shardmean.jobs.spark.barrier import BarrierLauncher
from shardmean.jobs.tracking.run import Tracker
from shardmean.jobs.train.job import _log_progress, train
from shardmean.jobs.train.run_directory import RunDirectory
from shardmean.model.config.optimizer import OptimizerConfig
from shardmean.model.config.training import AveragingConfig
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.errors import LeaseLostError, RetryableError, UserError
from shardmean.model.storage import filesystem
from shardmean.model.training.environment import this_environment
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.messages import Report, Rounds, Task
from shardmean.model.training.trainer import Trainer
from shardmean.model.training.worker import plan_training, train_rounds

pytestmark = pytest.mark.usefixtures("spark")


def barrier(spark, num_workers: int) -> BarrierLauncher:
    return BarrierLauncher(spark, Rendezvous("127.0.0.1"), num_workers)


def assert_same_bits(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(("num_workers", "optimizer_state"), [(1, "average"), (2, "keep"), (3, "average")])
def test_spark_and_local_workers_give_the_same_bits(spark, train_job, dataset, num_workers, optimizer_state):
    averaging = AveragingConfig(frequency=3, optimizer_state=optimizer_state)
    job = train_job(num_workers=num_workers, num_epochs=2, network="small_cnn", averaging=averaging)
    opened = Dataset(str(dataset), load_manifest(str(dataset)))
    first = Trainer(job, opened, barrier(spark, num_workers)).fit(None, lambda _state: None)
    with LocalLauncher(num_workers) as local:
        second = Trainer(job, opened, local).fit(None, lambda _state: None)
    assert_same_bits(first.model, second.model)
    assert_same_bits(first.best_model, second.best_model)
    for ours, theirs in zip(first.optimizers, second.optimizers, strict=True):
        for number, state in ours["state"].items():
            assert_same_bits(state, theirs["state"][number])
    assert [h["train_loss"] for h in first.history] == [h["train_loss"] for h in second.history]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_every_training_example_is_seen_once_an_epoch(spark, train_job, dataset, num_workers):
    job, manifest = train_job(num_workers=num_workers), load_manifest(str(dataset))
    opened = Dataset(str(dataset), manifest)
    wanted = Counter(name for s in manifest.shards_of("train") for name in opened.read(s, 0, s.num_examples).ids)
    launcher = barrier(spark, num_workers)
    model = Trainer(job, opened, launcher).first_state().model
    orders = []
    for epoch in (0, 1):
        plan = plan_training(job, manifest, epoch=epoch, num_workers=num_workers)
        task = Task(
            config=job, dataset_uri=str(dataset), digest=manifest.digest, rank=0, num_workers=num_workers,
            rounds=Rounds(epoch=epoch, first=0, stop=plan.num_rounds),
            state={"model": model, "optimizer": None, "outer_momentum": None},
            address=launcher.rendezvous.new_address(), environment=this_environment(), trace_ids=True,
        )  # fmt: skip
        reports = launcher.run(train_rounds, [replace(task, rank=rank) for rank in range(num_workers)])
        assert all(isinstance(report, Report) for report in reports)
        assert Counter(name for report in reports for name in report.ids) == wanted
        assert all(len(report.ids) == report.num_examples > 0 for report in reports)
        orders.append([report.ids for report in reports])
    assert orders[0] != orders[1]


def test_nothing_of_jobs_travels_in_a_task(train_job, tmp_path, new_store, monkeypatch):
    """No addresses, no names of MLflow: a worker gets the plain TrainingConfig."""
    sent, run = [], BarrierLauncher.run

    def keep_and_run(launcher, work, tasks):
        sent.extend(pickle.dumps(task) for task in tasks)
        return run(launcher, work, tasks)

    monkeypatch.setattr(BarrierLauncher, "run", keep_and_run)
    tracking = new_store(tmp_path)
    train(train_job(num_epochs=1, tracking=tracking, run_key="secret-key"))
    assert len(sent) == 4, "two workers, for an epoch and for the evaluation"
    for task in sent:
        assert b"TrainingConfig" in task
        for word in (
            b"jobs",
            b"TrainJob",
            tracking.uri.encode(),
            b"secret-key",
            str(tmp_path / "checkpoints").encode(),
        ):
            assert word not in task


def test_too_many_workers_for_the_slots(train_job, tmp_path, new_store):
    with pytest.raises(UserError) as caught:
        train(train_job(num_workers=4, tracking=new_store(tmp_path)))
    for part in ("num_workers is 4", "local[3]", "offers 3 slots", "lower num_workers", "local[4]"):
        assert part in str(caught.value)


def test_too_many_workers_for_the_examples(train_job, tmp_path):
    with pytest.raises(UserError, match=r"num_workers is 300, but .* lower num_workers or batch_size_per_worker"):
        train(train_job(num_workers=300, tracking=TrackingConfig(uri="http://127.0.0.1:9")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_the_users_mistake(train_job, tmp_path, new_store):
    with pytest.raises(UserError, match=r"device is cuda, but torch finds no GPU .* set device=auto or cpu"):
        train(train_job(device="cuda", tracking=new_store(tmp_path)))


def test_a_training_that_diverges_is_the_users_mistake(train_job, tmp_path, new_store):
    bad = OptimizerConfig(name="sgd", learning_rate=1e6)
    tracking = new_store(tmp_path)
    with pytest.raises(UserError, match=r"diverged: its parameters were not finite .* lower optimizer.learning_rate"):
        train(train_job(optimizer=bad, num_epochs=30, tracking=tracking))
    (run,) = mlflow.MlflowClient(tracking.uri).search_runs(["1"])
    assert run.info.status == "FAILED"


def test_an_interrupted_training_is_killed_in_mlflow_and_resumed_by_the_same_command(
    train_job, tmp_path, new_store, monkeypatch
):
    tracking, save = new_store(tmp_path), RunDirectory.save
    client = mlflow.MlflowClient(tracking.uri)

    def save_then_interrupt(run, state):
        save(run, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", save_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(train_job(tracking=tracking))
    (run,) = client.search_runs(["1"])
    assert run.info.status == "KILLED"
    assert train(train_job(tracking=tracking)).run_id == run.info.run_id
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_driver_that_lost_its_lease_neither_ends_the_winners_run_nor_sends_to_it(
    train_job, tmp_path, new_store, monkeypatch
):
    """The second epoch finds a greater number in the lease, as where another driver took over."""
    tracking, save, seen = new_store(tmp_path), RunDirectory.save, []

    def log_progress(_tracker, moment):
        seen.append(moment)

    def save_then_lose(run, state):
        save(run, state)
        filesystem.write_bytes(
            run.lease._file(run.lease._number + 1), b'{"host": "other", "pid": 1, "nonce": "theirs"}'
        )
        _log_progress(Tracker, run.lease, None)

    monkeypatch.setattr(RunDirectory, "save", save_then_lose)
    monkeypatch.setattr(Tracker, "log_progress", log_progress)
    with pytest.raises(LeaseLostError, match="this training was taken over by process"):
        train(train_job(tracking=tracking))
    (run,) = mlflow.MlflowClient(tracking.uri).search_runs(["1"])
    assert run.info.status == "RUNNING"
    assert not seen


def test_a_store_that_is_away_at_a_failure_does_not_hide_what_failed(
    train_job, tmp_path, new_store, monkeypatch, caplog
):
    tracking, listing = new_store(tmp_path), filesystem.list_names

    def save(_run, _state):
        def away(uri):
            raise RetryableError(f"cannot list {uri}: the store is away")

        monkeypatch.setattr(filesystem, "list_names", away)
        raise RetryableError("the disk is full")

    monkeypatch.setattr(RunDirectory, "save", save)
    with pytest.raises(RetryableError, match="the disk is full"):
        train(train_job(tracking=tracking))
    monkeypatch.setattr(filesystem, "list_names", listing)
    assert "cannot tell whether another driver took the run over: cannot list" in caplog.text
    (run,) = mlflow.MlflowClient(tracking.uri).search_runs(["1"])
    assert run.info.status == "FAILED"


def test_a_dataset_that_is_none(train_job, tmp_path):
    with pytest.raises(UserError, match=r"is no published DataSet .* run `shardmean vectorize`"):
        train(train_job(dataset_uri=str(tmp_path)))


def test_images_too_small_for_the_network(tmp_path, train_job, make_images, vectorize_job):
    from shardmean.jobs.vectorize.job import vectorize

    vectorize(vectorize_job(make_images(tmp_path / "images"), tmp_path / "set"))
    with pytest.raises(UserError, match=r"network lenet cannot take images of 1 x 12 x 12 .* larger images"):
        train(train_job(dataset_uri=str(tmp_path / "set"), tracking=TrackingConfig(uri="http://127.0.0.1:9")))


def test_mlflow_away_at_the_start(train_job):
    started = time.monotonic()
    with pytest.raises(RetryableError) as caught:
        train(train_job(tracking=TrackingConfig(uri="http://127.0.0.1:9")))
    assert time.monotonic() - started < 60
    for part in ("MLflow at http://127.0.0.1:9 cannot be used", "start the server or correct tracking.uri"):
        assert part in str(caught.value)


def test_mlflow_away_in_the_middle(train_job, tmp_path, new_store, monkeypatch, caplog):
    """Training goes on, and the metrics of all epochs arrive at the end."""
    tracking = new_store(tmp_path)
    log_batch, log_epochs, epochs = mlflow.MlflowClient.log_batch, Tracker.log_epochs, []

    def away_at_times(client, run_id, metrics=(), **other):
        if metrics and 2 <= len(epochs) <= 4 and len(epochs) != 3:
            raise MlflowException("the line is dead")
        return log_batch(client, run_id, metrics=metrics, **other)

    def count_epochs(tracker, history):
        epochs.append(len(history))
        log_epochs(tracker, history)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", away_at_times)
    monkeypatch.setattr(Tracker, "log_epochs", count_epochs)
    # The fourth epoch is the last: what it could not send, finish() must.
    finish = Tracker.finish
    monkeypatch.setattr(Tracker, "finish", lambda *a, **k: (epochs.append(5), finish(*a, **k))[1])
    result = train(train_job(num_epochs=4, tracking=tracking))
    assert epochs == [1, 2, 3, 4, 5]
    assert caplog.text.count("cannot be reached (the line is dead): the metrics follow later") == 2
    history = mlflow.MlflowClient(tracking.uri).get_metric_history(result.run_id, "train_loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3, 4]


def test_mlflow_away_at_the_end_then_the_same_command(train_job, tmp_path, new_store, monkeypatch):
    tracking = new_store(tmp_path)
    job = train_job(tracking=tracking)

    def away(*_arguments, **_settings):
        raise MlflowException("the line is dead")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", away)
        with pytest.raises(RetryableError, match=r"the line is dead.*repeat the command"):
            train(job)
    result = train(job)
    client = mlflow.MlflowClient(tracking.uri)
    assert result.aliases == ["challenger", "champion"]
    assert [run.info.run_id for run in client.search_runs(["1"])] == [result.run_id]
    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert len(client.search_model_versions("name='shardmean'")) == 1
