"""The DAG files themselves: quick to parse, forms made of the config's schema."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .conftest import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

PARSE = """
import os, sys
import airflow.sdk
import airflow.providers.apache.spark.operators.spark_submit
def cpu():
    return sum(os.times()[:2])
before = cpu()
import shardmean.dags.train_cnn, shardmean.dags.vectorize_images
heavy = sorted({"torch", "pyspark", "mlflow", "pandas"} & set(sys.modules))
import json
dags = [shardmean.dags.vectorize_images.vectorize_images(), shardmean.dags.train_cnn.train_cnn()]
def described(dag):
    params = {key: dag.params.get_param(key) for key in dag.params}
    return [[key, param.value, param.schema] for key, param in params.items()]
params = {dag.dag_id: described(dag) for dag in dags}
print(json.dumps({"cpu_s": cpu() - before, "heavy": heavy, "params": params}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    home = tmp_path_factory.mktemp("parse")
    environment = clean_environment(home, AIRFLOW_HOME=str(home))
    done = subprocess.run([sys.executable, "-c", PARSE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_parsing_is_quick_and_imports_nothing_heavy(parsed: dict[str, object]) -> None:
    assert parsed["heavy"] == []
    assert parsed["cpu_s"] < 1


@pytest.mark.parametrize("dag_id", ["vectorize_images", "train_cnn"])
def test_the_fields_that_matter_most_stand_outside_sections(parsed: dict[str, dict[str, list]], dag_id: str) -> None:
    params = parsed["params"][dag_id]
    sections = [schema.get("section") for _, _, schema in params]
    assert sections[:6] == [None] * 6
    assert all(sections[6:])
    assert all(schema["description_md"] for _, _, schema in params), "every field says what it means"


def test_fields_carry_the_schemas_limits(parsed: dict[str, dict[str, list]]) -> None:
    fields = {key: (value, schema) for key, value, schema in parsed["params"]["train_cnn"]}
    value, schema = fields["num_epochs"]
    assert (value, schema["type"], schema["minimum"], schema["maximum"]) == (12, "integer", 1, 100_000)
    network = fields["network"][1]
    assert network["examples"][:2] == ["lenet", "small_cnn"]
    assert re.fullmatch(network["pattern"], "my_package.nets:make")
    assert not re.fullmatch(network["pattern"], "alexnet")
    assert (fields["layers"][0], fields["layers"][1]["items"]) == ([], {"type": "object"})
    assert fields["optimizer.momentum"][1]["exclusiveMaximum"] == 1
    assert fields["normalization.mean"][1]["maxItems"] == 3
    assert fields["averaging.frequency"][0] == "5"
    assert fields["fine_tuning.start_from"][1]["type"] == ["null", "string"]
    assert fields["dataset_digest"][1]["pattern"] == "^[0-9a-f]{32}$", "an older version can be chosen"


def test_no_field_names_code_a_config_file_or_a_server(parsed: dict[str, dict[str, list]]) -> None:
    """A new field of free text must be thought about: a place belongs to the job's `uris()`."""
    fields = [field for dag in parsed["params"].values() for field in dag]
    assert not [key for key, *_ in fields if key.split(".")[0] in ("spark", "airflow", "schedule")]
    assert {key for key, *_ in fields if key.startswith("tracking.")} == {
        "tracking.experiment", "tracking.registered_model"
    }  # fmt: skip
    free = {key for key, _, schema in fields if "string" in schema["type"] and not {"enum", "pattern"} & set(schema)}
    places = {"source.uri", "dataset_uri", "checkpoint_uri", "fine_tuning.start_from"}
    of_source = {"label_pattern", "path_column", "label_column", "split_column", "group_column", "group_pattern"}
    colors = {"image.background", "image.padding"}
    assert free == places | colors | {f"source.{name}" for name in of_source}
    lists = {key for key, _, schema in fields if "array" in schema["type"]}
    of_source = {"source.include", "source.exclude", "source.extra_columns"}
    assert lists == {"layers", "fine_tuning.freeze", "normalization.mean", "normalization.std"} | of_source


def test_a_broken_config_is_an_import_error_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "vectorize.yaml").write_text("source: {uri: x}\ndataset_uri: y\nshard_byte: 5\n")
    environment = clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path), SHARDMEAN_CONFIG_DIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", "import shardmean.dags.vectorize_images"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "shard_byte: unknown key; did you mean shard_bytes?" in done.stderr


def test_a_config_that_is_absent_is_an_import_error_that_names_the_variable(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path), SHARDMEAN_CONFIG_DIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", "import shardmean.dags.train_cnn"], env=environment, capture_output=True, text=True
    )
    assert f"config file {tmp_path}/train.yaml: not found" in done.stderr
    assert "let SHARDMEAN_CONFIG_DIR name a folder that holds a readable train.yaml" in done.stderr


def test_each_value_of_a_setting_of_several_types_makes_a_valid_form_and_comes_back(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.dags.form_cases"],
        env=clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path)), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cases = json.loads(done.stdout.splitlines()[-1])
    assert {key for key, *_ in cases} == {"source.max_per_class", "averaging.frequency", "averaging.synchronous_steps"}
    assert [value for key, value, *_ in cases if key == "source.max_per_class"] == [1, 10**9, "smallest", None]
    for key, value, in_form, taken in cases:
        assert (in_form, taken) == (None if value is None else str(value), value), key


TASK = """
import json
from shardmean.dags.vectorize_images import vectorize_images
(task,) = vectorize_images().tasks
seconds = {name: getattr(task, name) for name in ("retry_delay", "max_retry_delay", "execution_timeout")}
print(json.dumps({
    **{name: value and value.total_seconds() for name, value in seconds.items()},
    **{name: getattr(task, name) for name in ("pool", "queue", "retries", "retry_exponential_backoff", "_conn_id")},
}))
"""


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("", ["spark_default", "default_pool", "default", 3, 30, None]),
        (
            "airflow: {connection_id: big, pool: gpus, queue: q, retries: 1, retry_delay_s: 5, timeout_s: 60}\n",
            ["big", "gpus", "q", 1, 5, 60],
        ),
    ],
)
def test_the_config_says_how_airflow_runs_the_task(tmp_path: Path, section: str, expected: list[object]) -> None:
    (tmp_path / "vectorize.yaml").write_text(f"source: {{uri: x}}\ndataset_uri: y\n{section}")
    environment = clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path), SHARDMEAN_CONFIG_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", TASK], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    names = ("_conn_id", "pool", "queue", "retries", "retry_delay", "execution_timeout")
    assert [task[name] for name in names] == expected
    assert (task["retry_exponential_backoff"], task["max_retry_delay"]) == (2, 600), "pauses double, up to ten minutes"
