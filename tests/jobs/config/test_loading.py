"""How a job's config is read: what wins over what, and that each mistake is answered with key, value, limit, remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.loading import load_job, load_pipeline, load_stage, pipelines_folder
from shardmean.jobs.config.source import EXAMPLE_COLUMNS
from shardmean.model.dataset.shard import SCHEMA
from shardmean.model.errors import UserError
from tests.jobs.config.loaded import TRAIN, VECTORIZE, YAML, refusal, train_job, train_refusal

CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_names_that_every_dataset_has_are_those_of_its_shards():
    assert tuple(SCHEMA.names) == EXAMPLE_COLUMNS


def test_yaml(write):
    job = load_job(TrainJob, write(YAML))
    assert (job.averaging.frequency, job.averaging.weights, job.num_epochs, job.num_workers) == (7, "uniform", 9, 2)


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json(write, indent):
    text = json.dumps(TRAIN | {"averaging": {"frequency": 7}}, indent=indent)
    assert load_job(TrainJob, write(text, "job.json")).averaging.frequency == 7


def test_later_parts_win_and_leave_the_rest(write):
    params = json.dumps({"averaging.frequency": 8, "num_epochs": 10})
    job = load_job(TrainJob, write(YAML), ["averaging.frequency=9"], params)
    assert (job.averaging.frequency, job.averaging.weights, job.num_epochs) == (9, "uniform", 10)


def test_params_may_be_nested(write):
    job = load_job(TrainJob, write(YAML), (), '{"averaging": {"frequency": 9}}')
    assert (job.averaging.frequency, job.averaging.weights) == (9, "uniform")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("pipelines/*.yaml")), ids=lambda file: file.stem)
def test_shipped_pipelines_load(file, monkeypatch):
    monkeypatch.setenv("SHARDMEAN_HOME", "/somewhere")
    pipeline = load_pipeline(file)
    assert pipeline.name == file.stem
    assert pipeline.train.dataset_uri == pipeline.vectorize.dataset_uri == f"/somewhere/datasets/{file.stem}"
    assert pipeline.train.tracking.registered_model == pipeline.train.tracking.experiment == file.stem
    assert (load_stage(VectorizeJob, file), load_stage(TrainJob, file)) == (pipeline.vectorize, pipeline.train)


def test_relative_paths_start_at_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = train_job(
        "dataset_uri=x/y", "checkpoint_uri=s3://bucket/c", dataset_uri="x/y", checkpoint_uri="s3://bucket/c"
    )
    assert (job.dataset_uri, job.checkpoint_uri) == (f"{tmp_path}/x/y", "s3://bucket/c")


@pytest.mark.parametrize(("given", "kept"), [("5", 5), (5, 5), ("epoch", "epoch")])
def test_frequency(given, kept):
    assert train_job(averaging={"frequency": given}).averaging.frequency == kept
    assert train_job(f"averaging.frequency={given}").averaging.frequency == kept


@pytest.mark.parametrize("given", [0, -1, "never", 1.5, 1_000_001])
def test_wrong_frequency_is_one_clear_line(given):
    lines = [line for line in train_refusal(f"averaging.frequency={given}").splitlines() if "frequency" in line]
    assert len(lines) == 1
    assert lines[0].strip().startswith(f"averaging.frequency = {given!r}: ")
    assert "epoch" in lines[0]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("averaging.frequenzy=5", ["averaging.frequenzy: unknown key", "did you mean averaging.frequency?"]),
        ("learning_rate=1", ["learning_rate: unknown key", "did you mean optimizer.learning_rate?"]),
        ("optimizer.lr=1", ["optimizer.lr: unknown key", "optimizer.learning_rate"]),
        ("batch_size=8", ["batch_size: unknown key", "did you mean batch_size_per_worker?"]),
        ("zzz=8", ["zzz: unknown key", "known keys: ", "num_workers"]),
        ("num_epochs=many", ["num_epochs = 'many'", "valid integer"]),
        ("num_epochs=0", ["num_epochs = 0", "greater than or equal to 1"]),
        ("num_workers=2.5", ["num_workers = 2.5", "integer"]),
        ("optimizer.learning_rate=0", ["optimizer.learning_rate = 0", "greater than 0"]),
        ("optimizer.learning_rate=.nan", ["optimizer.learning_rate = nan", "finite"]),
        ("device=tpu", ["device = 'tpu'", "'auto', 'cpu' or 'cuda'"]),
        ("averaging=5", ["averaging = 5: a section, ", "for example averaging.frequency=5; known keys: averaging."]),
        ("optimizer=sgd", ["optimizer = 'sgd': a section, ", "for example optimizer.name=sgd; known keys: optimizer."]),
        ("optimizer=0.1", ["optimizer = 0.1: a section, ", "for example optimizer.learning_rate=0.1; known keys: "]),
        ("augmentation=true", ["augmentation = True: a section, ", "for example augmentation.probability=VALUE; "]),
        ("optimizer=[sgd]", ["optimizer = ['sgd']: a section, ", "for example optimizer.name=VALUE; known keys: "]),
        ("optimizer.schedule=cosine", ["optimizer.schedule = 'cosine': a section", "optimizer.schedule.name=cosine; "]),
        ("tracking=http://u:secret@h", ["tracking = 'http://h': a section, ", "known keys: tracking.artifact_uri, "]),
        ("network=alexnet", ["network = 'alexnet'", "lenet, small_cnn, ", "my_package.nets:make"]),
        ("layers=[{layer: relu}]", ["layers are given, but network is lenet"]),
        ("layers=[{layer: relu}, {layer: conv, channels: 0, size: 3}]", ["layers, no. 2 channels: 0: ", "equal to 1"]),
        ("layers=[{layer: conv, channels: 1, size: 3}]", ["layers, no. 1 size: unknown key"]),
        ("layers=[{layer: convolution}]", ["layers, no. 1: input tag 'convolution'", "'conv', 'linear'"]),
        ("layers=[relu]", ["layers, no. 1: 'relu': input should be a valid dictionary"]),
        ("optimizer.momentum=0.9", ["momentum is 0.9, but adam has none", "set it to 0 or use sgd"]),
        ("run_key=a/b", ["run_key = 'a/b': use letters, digits, '.', '_' and '-', 200 at most"]),
        ("run_key=2026-11-26T02:03:04+00:00", ["run_key = '2026-11-26T02:03:04+00:00': use letters"]),
        ("run_key=.a", ["run_key = '.a'", "begin with a letter or digit"]),
        ("run_key=" + "a" * 201, ["200 at most"]),
        ("airflow.retry_delay_s=601", ["airflow.retry_delay_s = 601", "less than or equal to 600"]),
        ("airflow.pools=gpus", ["airflow.pools: unknown key", "did you mean airflow.pool?"]),
        ("dataset_digest=abc", ["dataset_digest = 'abc'", "match"]),
        (
            "tracking.uri=postgresql://u:secret@h/db",
            ["tracking.uri = 'postgresql://h/db': a URI must hold no password", "set MLFLOW_TRACKING_URI in the"],
        ),
        ("tracking.uri=postgresql://h/db?user=u&password=secret", ["h/db?user=u&password=...': a URI must hold no"]),
        ("dataset_uri=s3://key:secret@bucket/x", ["dataset_uri = 's3://bucket/x': a URI must hold no password"]),
        ("num_epochs", ["override 'num_epochs'", "expected key=value"]),
        ("=3", ["override '=3'", "expected key=value"]),
        ("num_epochs=[1,", ["num_epochs=[1,", "quote the value"]),
        ("tracking.uri=${oc.env:SHARDMEAN_UNSET}", ["SHARDMEAN_UNSET", "${...}"]),
    ],
)
def test_wrong_override(override, parts):
    message = train_refusal(override)
    for part in parts:
        assert part in message
    assert "\n    " not in message, "pydantic's own text has such lines"
    assert "secret" not in message


@pytest.mark.parametrize(
    ("text", "overrides", "params"),
    [
        ("", ["optimizer=sgd", "optimizer.learning_rate=0.1"], "{}"),
        ("optimizer: sgd\n", ["optimizer.learning_rate=0.1"], "{}"),
        ("", ["optimizer=sgd"], '{"optimizer.learning_rate": 0.1}'),
        ("", [], '{"optimizer": "sgd", "optimizer.learning_rate": 0.1}'),
    ],
)
def test_a_sections_plain_value_is_not_dropped_for_a_key_of_it(write, text, overrides, params):
    message = refusal(file=write(YAML + text), overrides=["num_workers=0", *overrides], params=params)
    assert "optimizer = 'sgd': a section" in message
    assert "num_workers = 0" in message


def test_a_mistake_of_many_is_told_with_all_others_and_the_file(write):
    message = refusal(file=write(YAML + "num_workers: 0\nseed: -1\nstages: 3\n"))
    assert message.startswith("config error in ")
    assert "job.yaml:\n" in message
    for part in ("num_workers = 0", "seed = -1", "stages: unknown key", "key=value on the command line"):
        assert part in message


def test_without_a_file_an_example_of_one_is_named():
    for kind in (TrainJob, VectorizeJob):
        remedy = refusal(kind).splitlines()[-1]
        assert remedy == "  give key=value, or a pipeline's file, such as --pipeline configs/pipelines/digits.yaml"
        load_stage(kind, CONFIGS.parent / remedy.rpartition(" ")[2])


def test_missing_keys_are_named_as_they_must_be_set():
    assert "checkpoint_uri: missing; set checkpoint_uri=VALUE" in refusal(overrides=["dataset_uri=/x"])
    message = refusal(VectorizeJob)
    assert "dataset_uri: missing; set dataset_uri=VALUE" in message
    assert "source.uri" in message, "source=VALUE would be refused"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"split": {"train": 0.5}}, ["split", "is 0.7 and must be 1"]),
        ({"split": {"train": 0, "validation": 0.5, "test": 0.5}}, ["train is 0"]),
        ({"image": {"height_px": 4097}}, ["image.height_px = 4097", "less than or equal to 4096"]),
        ({"image": {"background": [0, 0, 256]}}, ["image.background", "black, gray, white, #rrggbb, or three whole"]),
        ({"image": {"padding": "red"}}, ["image.padding = 'red'", "black, gray, white, #rrggbb"]),
        ({"image": {"decode_timeout_s": 0}}, ["image.decode_timeout_s = 0", "greater than 0"]),
        ({"image": {"min_side_px": 0}}, ["image.min_side_px = 0", "greater than or equal to 1"]),
        ({"image": {"channels": 2}}, ["image.channels = 2", "1 or 3"]),
        ({"image": {"height_px": 4096, "width_px": 4096, "channels": 3, "resize": "crop"}}, ["resize = 'crop'"]),
        ({"source": {"uri": "/x", "layout": "zip"}}, ["source.layout = 'zip'", "'folders', 'table' or 'idx'"]),
        ({"shard_bytes": 10}, ["shard_bytes = 10", "1024"]),
        ({"max_rejected_fraction": 2}, ["max_rejected_fraction = 2", "less than or equal to 1"]),
        ({"dataset_uri": ""}, ["dataset_uri = ''", "at least 1"]),
    ],
)
def test_wrong_vectorize_job(change, parts):
    message = refusal(VectorizeJob, params=json.dumps(VECTORIZE | change))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("num_epochs: 3\nnum_epochs: 4\n", ["duplicate key num_epochs", "line 2"]),
        ("a: [1,\n", ["is not valid YAML or JSON", "line "]),
        ("\tnum_epochs: 1\n", ["is not valid YAML or JSON"]),
        ("- num_epochs\n- 3\n", ["expected keys with values, found a list"]),
        ("42\n", ["expected keys with values"]),
        ("seed: ${no.such.key}\n", ["no.such.key", "check the ${...} references"]),
        ("seed: ${oc.env:SHARDMEAN_UNSET}\n", ["SHARDMEAN_UNSET", "check the ${...} references"]),
        ("num_epochs: 3\n---\nnum_epochs: 4\n", ["single document"]),
    ],
)
def test_wrong_file(write, text, parts):
    message = refusal(file=write(text))
    for part in parts:
        assert part in message
    if "references" not in message:
        assert "job.yaml" in message


def test_files_that_cannot_be_read(tmp_path):
    assert "none.yaml: not found (from " in refusal(file=tmp_path / "none.yaml")
    assert f"config file {tmp_path}: Is a directory; correct --pipeline or --config" in refusal(file=tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    assert "binary.yaml is not valid YAML or JSON" in refusal(file=tmp_path / "binary.yaml")


def test_what_is_absent_where_the_dags_look_names_their_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDMEAN_CONFIG_DIR", str(tmp_path))
    (tmp_path / "pipelines" / "pets.yaml").mkdir(parents=True)
    remedy = "let the folder pipelines of SHARDMEAN_CONFIG_DIR hold a readable {}, on every Airflow machine"
    for name in ("digits.yaml", "pets.yaml"):
        with pytest.raises(UserError, match=remedy.format(name)):
            load_pipeline(pipelines_folder() / name)
    assert "correct --pipeline or --config" in refusal(file=tmp_path / "elsewhere" / "train.yaml")


@pytest.mark.parametrize(
    ("params", "part"),
    [("{", "--params is not JSON"), ("[1]", "must be a JSON object of dotted keys, got [1]"), ("3", "JSON object")],
)
def test_wrong_params(params, part):
    assert part in refusal(params=params)


@pytest.mark.parametrize(
    "params",
    [
        {"tracking.uri": "${oc.env:HOME}"},
        {"tracking": {"uri": "${oc.env:HOME}"}},
        {"spark": {"spark.x": "a ${dataset_uri} b"}},
    ],
)
def test_references_in_params_are_refused(params):
    """Params come from a web form: they must not read the environment of the machine that runs the job."""
    assert "is allowed in config files only" in refusal(params=json.dumps(TRAIN | params))


@pytest.mark.parametrize(
    "uri", ["databricks", "http://someone@mlflow:5000", "sqlite:////folder/mlflow.db", "postgresql://h:5432/db"]
)
def test_a_tracking_uri_without_password_stays_as_it_is(uri):
    assert train_job(tracking={"uri": uri}).tracking.uri == uri


def test_a_number_as_run_key():
    assert train_job("run_key=20261123").run_key == "20261123"
