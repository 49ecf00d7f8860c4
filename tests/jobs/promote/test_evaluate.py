"""The job `evaluate` and what Airflow's tasks make of it: measured once for each set of rows, by all workers."""

from __future__ import annotations

import pytest

from shardmean.jobs.promote.job import evaluate
from shardmean.jobs.promote.recorded import judge_recorded, promote_recorded
from shardmean.jobs.spark.barrier import BarrierLauncher
from shardmean.jobs.train.job import skip_reason, train
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.errors import UserError

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture
def pile(tmp_path, make_images, vectorize_job):
    """A function that publishes a DataSet of so many images per class; each call adds others."""

    def publish(num_per_class: int) -> str:
        images = make_images(tmp_path / "images", num_per_class=num_per_class, size=28, seed=num_per_class)
        vectorize(vectorize_job(images, tmp_path / "set", size=28, shard_bytes=10 * 784))
        return str(tmp_path / "set")

    return publish


@pytest.fixture
def sent(monkeypatch):
    """The number of workers' segments that were sent."""
    segments, run = [], BarrierLauncher.run
    monkeypatch.setattr(
        BarrierLauncher,
        "run",
        lambda launcher, work, tasks: (segments.append(tasks[0].split), run(launcher, work, tasks))[1],
    )
    return segments


def test_a_challenger_is_measured_once_for_each_set_of_rows_judged_and_promoted(
    pile, train_job, new_store, tmp_path, sent
):
    job = train_job(tracking=new_store(tmp_path / "mlflow"), dataset_uri=pile(20), num_epochs=1)
    trained = train(job, may_promote=False)
    assert trained.aliases == ["challenger"]
    sent.clear()
    first = evaluate(job)
    assert (first["model_version"], first["champion"], first["has_passed"], sent) == ("1", None, True, [])
    assert first["metrics"] == trained.metrics
    verdict = judge_recorded(job, "1", first["rows"])
    assert verdict.decision.has_passed
    assert promote_recorded(job, "1", first["rows"], by="ann", is_chosen=False) == "1"

    pile(40)
    better = train(job.model_copy(update={"num_epochs": 6}), may_promote=False)
    sent.clear()
    second = evaluate(job)
    assert (second["model_version"], second["champion"], sent) == (better.model_version, "1", ["test"]), "the champion"
    assert second["rows"] != first["rows"]
    again = evaluate(job)
    assert (again, len(sent)) == (second, 1), "both were measured on these rows"
    by_number = evaluate(job, version="1")
    assert (by_number["model_version"], by_number["has_passed"]) == ("1", True), "it is champion"


def test_what_is_not_registered_is_the_users_mistake(train_job, new_store, tmp_path, dataset):
    job = train_job(tracking=new_store(tmp_path / "mlflow"))
    with pytest.raises(UserError, match="has no version challenger"):
        evaluate(job)
    train(job)
    with pytest.raises(UserError, match="has no version 7"):
        evaluate(job, version="7")


def test_a_version_that_was_trained_with_these_settings_is_known_and_no_other(pile, train_job, new_store, tmp_path):
    uri = pile(20)
    job = train_job(tracking=new_store(tmp_path / "mlflow"), dataset_uri=uri, num_epochs=1)
    assert skip_reason(job) is None
    run_id = train(job).run_id
    for changes in ({}, {"run_key": "other"}, {"keep_checkpoints": 5}, {"promote": {"metric": "loss"}}):
        skipped = skip_reason(type(job).model_validate(job.model_dump() | changes))
        assert skipped["run_id"] == run_id
        assert "was trained with these settings already" in skipped["skipped"]
    assert skip_reason(job.model_copy(update={"num_epochs": 2})) is None
    assert skip_reason(job.model_copy(update={"seed": 5})) is None
    pile(30)
    assert skip_reason(job) is None
