"""Fine-tuning over Spark and MLflow: from a registered model or a checkpoint, resumed, with a new head, and served."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest
import torch

from shardmean.jobs.config.job import TrackingConfig, TrainJob
from shardmean.jobs.tracking.client import connect
from shardmean.jobs.train.initial_weights import find_pretrained
from shardmean.jobs.train.job import train
from shardmean.jobs.train.run_directory import RunDirectory, directory_of
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.config.optimizer import OptimizerConfig
from shardmean.model.errors import UserError
from shardmean.model.training import checkpoint

pytestmark = pytest.mark.usefixtures("spark")
CHAMPION = "models:/shardmean@champion"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("fine_tuning")


@pytest.fixture(scope="module")
def tracking(home, new_store) -> TrackingConfig:
    return new_store(home / "mlflow")


@pytest.fixture
def job(train_job, tracking):
    """A function that gives a training which logs to this module's store."""
    return lambda **changes: train_job(tracking=tracking, **{"num_workers": 2, **changes})


@pytest.fixture(scope="module")
def source(dataset, home, tracking):
    """A trained model: version 1 of `shardmean`, the champion, and its checkpoints' folder."""
    job = TrainJob(
        dataset_uri=str(dataset), checkpoint_uri=str(home / "checkpoints"), num_epochs=4, batch_size_per_worker=8,
        optimizer={"learning_rate": 0.003}, averaging={"frequency": 3}, device="cpu", tracking=tracking,
    )  # fmt: skip
    done = train(job)
    (folder,) = (home / "checkpoints").iterdir()
    return done, folder


def state_of(version: str) -> dict[str, torch.Tensor]:
    return find_pretrained(f"models:/shardmean/{version}").state


def tags(tracking, run_id: str) -> dict[str, str]:
    return mlflow.MlflowClient(tracking.uri).get_run(run_id).data.tags


def test_from_the_champion_with_a_frozen_layer(job, source, tracking):
    done, _ = source
    tuned = train(job(num_epochs=1, fine_tuning={"start_from": CHAMPION, "freeze": ["0.*"]}))
    run = mlflow.MlflowClient(tracking.uri).get_run(tuned.run_id)
    assert run.data.tags["started_from"] == f"models:/shardmean/{done.model_version}"
    assert run.data.params["fine_tuning.start_from"] == CHAMPION
    assert run.data.params["fine_tuning.freeze"] == "['0.*']"
    before, after = state_of(done.model_version), state_of(tuned.model_version)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"body.0.weight", "body.0.bias"}
    assert tuned.metrics["accuracy"] > 0.9, "as its origin's, after one epoch"


def test_a_new_head_learns_other_classes_and_is_served(job, source, tmp_path, make_images, vectorize_job, tracking):
    """The DataSet's own mean and deviation differ; the model is stored with those of its origin."""
    names = ("ground", "sky")
    images = make_images(tmp_path / "images", names, num_per_class=30, size=28, seed=4)
    vectorize(vectorize_job(images, tmp_path / "set", size=28, shard_bytes=10**6))
    changes = {"dataset_uri": str(tmp_path / "set"), "num_epochs": 4}
    with pytest.raises(
        UserError, match=r"knows 3 classes \(low, middle, top\) and the DataSet has 2 classes \(ground,"
    ):
        train(job(**changes, fine_tuning={"start_from": CHAMPION}))
    settings = {"start_from": CHAMPION, "freeze": ["[0-6].*"], "replace_head": True}
    tuned = train(job(**changes, fine_tuning=settings))
    origin, stored = (
        find_pretrained(f"models:/shardmean/{source[0].model_version}"),
        find_pretrained(f"models:/shardmean/{tuned.model_version}"),
    )
    assert (stored.model_spec["mean"], stored.model_spec["std"]) == (
        origin.model_spec["mean"],
        origin.model_spec["std"],
    )
    assert torch.equal(stored.state["body.3.weight"], origin.state["body.3.weight"])
    files = sorted(images.rglob("*.png"))
    model = mlflow.pyfunc.load_model(f"models:/shardmean/{tuned.model_version}")
    found = model.predict(pd.DataFrame({"image": [path.read_bytes() for path in files]}))
    assert (found.label == [path.parent.name for path in files]).mean() > 0.9


def test_from_a_checkpoint(job, source, tracking):
    done, folder = source
    file = folder / f"epoch-{done.num_epochs:06d}.pt"
    still = OptimizerConfig(name="sgd", learning_rate=1e-6)
    tuned = train(job(num_epochs=1, optimizer=still, fine_tuning={"start_from": str(folder)}))
    assert tags(tracking, tuned.run_id)["started_from"] == str(file)
    for name, tensor in state_of(done.model_version).items():
        torch.testing.assert_close(state_of(tuned.model_version)[name], tensor, rtol=1e-3, atol=1e-4)
        assert torch.equal(find_pretrained(str(file)).state[name], tensor)


def test_a_run_goes_on_from_what_it_found_though_the_alias_has_moved(job, source, tracking, monkeypatch):
    done, _ = source
    settings = {"num_epochs": 2, "fine_tuning": {"start_from": "models:/shardmean@base"}, "seed": 5}
    client = mlflow.MlflowClient(tracking.uri)
    client.set_registered_model_alias("shardmean", "base", done.model_version)
    whole = train(job(**settings, run_key="whole"))

    class KilledError(Exception):
        pass

    def killed(*_arguments):
        raise KilledError

    before_any = job(**settings, run_key="before")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", killed)
        with pytest.raises(KilledError):
            train(before_any)
    save, after_one = RunDirectory.save, job(**settings, run_key="after")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "save", lambda run, state: (save(run, state), killed()))
        with pytest.raises(KilledError):
            train(after_one)
    client.set_registered_model_alias("shardmean", "base", whole.model_version)
    # The new runs that take their place in MLflow say what was started from, too.
    for run in client.search_runs(["1"], "attributes.status = 'FAILED'"):
        client.delete_run(run.info.run_id)
    for again in (train(before_any), train(after_one)):
        assert again.metrics == whole.metrics
        assert tags(tracking, again.run_id)["started_from"] == f"models:/shardmean/{done.model_version}"
    client.delete_registered_model_alias("shardmean", "base")
    assert train(after_one).run_id == again.run_id, "finished: nothing is looked for"


def test_what_a_run_starts_from_is_part_of_its_identity(job):
    def folder(**fine_tuning):
        one = job(fine_tuning=fine_tuning, run_key="nightly")
        return directory_of(one, "one")

    several = [folder(), folder(start_from=CHAMPION), folder(start_from=CHAMPION, freeze=["0.*"])]
    assert len({*several, folder(start_from=CHAMPION, replace_head=True)}) == 4


@pytest.mark.parametrize(("uri", "message"), [
    ("models:/shardmean@nobody", r"models:/shardmean@nobody: MLflow has no such model \(.*correct the name or alias"),
    ("models:/nothing/1", r"models:/nothing/1: MLflow has no such model \("),
    ("models:/other/1", r"models:/other/1 is no model of Shardmean: it has no data/classifier"),
    ("/nowhere", "/nowhere: no checkpoint there that can be read; give the folder of one run"),
    ("/nowhere/epoch-000001.pt", r"/nowhere/epoch-000001.pt: not found; give a checkpoint's file, or the folder"),
])  # fmt: skip
def test_nothing_to_start_from(source, tracking, tmp_path, uri, message):
    connect(tracking)
    if "other" in uri:
        experiment = mlflow.create_experiment("other", artifact_location=str(tmp_path))
        with mlflow.start_run(experiment_id=experiment):
            mlflow.pyfunc.log_model(
                name="model", python_model=lambda model_input: model_input, registered_model_name="other",
                pip_requirements=[],
            )  # fmt: skip
    with pytest.raises(UserError, match=message):
        find_pretrained(uri)


def test_a_stored_model_that_would_execute_something_is_refused(source, tracking, tmp_path):
    connect(tracking)
    folder = tmp_path / "classifier"
    folder.mkdir()
    (folder / "classifier.json").write_text("{}")
    torch.save(tmp_path.touch, folder / "weights.pt")
    experiment = mlflow.create_experiment("evil", artifact_location=str(tmp_path / "artifacts"))
    with mlflow.start_run(experiment_id=experiment):
        logged = mlflow.pyfunc.log_model(
            name="model", loader_module="json", data_path=str(folder), registered_model_name="evil",
            pip_requirements=[],
        )  # fmt: skip
    with pytest.raises(UserError, match=r"models:/evil/1 cannot be read \(UnpicklingError: Weights only load failed"):
        find_pretrained(f"models:/evil/{logged.registered_model_version}")


def test_a_file_of_torchs_that_is_no_checkpoint_is_the_users_mistake(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other.pt: not a readable checkpoint .*; give one that this project wrote"):
        find_pretrained(str(tmp_path / "other.pt"))


def test_a_checkpoint_tells_what_it_is_of(source):
    model_spec = checkpoint.load_latest(str(source[1])).model_spec
    assert model_spec["class_names"] == ["low", "middle", "top"]
    assert (model_spec["network"], model_spec["image"]["height_px"], len(model_spec["mean"])) == ("lenet", 28, 1)
