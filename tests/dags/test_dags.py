"""The DAG files themselves: quick to parse, forms made of the config's schema."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shardmean.dags

from .conftest import clean_environment, write_configs

PARSE = """
import json, os, sys
from pathlib import Path
import airflow.sdk
import airflow.providers.apache.spark.operators.spark_submit
import airflow.providers.standard.operators.trigger_dagrun
def cpu():
    return sum(os.times()[:2])
before = cpu()
import shardmean.dags.shardmean_pipelines as module
seconds = cpu() - before
heavy = sorted({"torch", "pyspark", "mlflow", "pandas"} & set(sys.modules))
dags = {name: value for name, value in vars(module).items() if isinstance(value, airflow.sdk.DAG)}
def described(dag):
    params = {key: dag.params.get_param(key) for key in dag.params}
    return [[key, param.value, param.schema] for key, param in params.items()]
params = {name: described(dag) for name, dag in dags.items()}
print(json.dumps({"cpu_s": seconds, "heavy": heavy, "params": params}))
"""


def parse(home: Path, configs: Path | None = None) -> dict[str, Any]:
    where = {} if configs is None else {"SHARDMEAN_CONFIG_DIR": str(configs)}
    environment = clean_environment(home, AIRFLOW_HOME=str(home), **where)
    done = subprocess.run([sys.executable, "-c", PARSE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return parse(tmp_path_factory.mktemp("parse"))


def test_parsing_is_quick_and_imports_nothing_heavy(parsed: dict[str, Any]) -> None:
    assert parsed["heavy"] == []
    assert parsed["cpu_s"] < 1
    assert sorted(parsed["params"]) == [
        f"{name}_{stage}" for name in ("digits", "fashion") for stage in ("promote", "train", "vectorize")
    ]


def test_fifty_pipelines_parse_in_two_seconds_and_a_broken_one_leaves_49(tmp_path: Path) -> None:
    file = write_configs(tmp_path)
    text = file.read_text()
    for number in range(49):
        (file.parent / f"pile-{number:02d}.yaml").write_text(text.replace("name: digits", f"name: pile-{number:02d}"))
    (file.parent / "pile-07.yaml").write_text("name: pile-07\nvectorize: {source: {uri: /x}, datset_uri: /y}\n")
    parsed = parse(tmp_path, tmp_path)
    assert parsed["heavy"] == []
    assert parsed["cpu_s"] < 2
    assert len(parsed["params"]) == 3 * 49 + 1
    assert "pile-07_train" not in parsed["params"]
    dags, errors = parsed_by_airflow(tmp_path, tmp_path)
    assert len(dags) == 3 * 49
    ((broken, message),) = errors.items()
    assert broken == str(file.parent / "pile-07.yaml")
    assert "vectorize.datset_uri: unknown key; did you mean vectorize.dataset_uri?" in message


# The folder is parsed as Airflow's DAG processor does it, and the DAGs are serialized for its database.
BY_AIRFLOW = """
import json, sys
import structlog
from airflow.dag_processing.dagbag import DagBag
from airflow.dag_processing.processor import _serialize_dags
bag = DagBag(dag_folder=sys.argv[1])
dags, errors = _serialize_dags(bag, structlog.get_logger())
print(json.dumps([[dag.dag_id for dag in dags], {**bag.import_errors, **errors}]))
"""


def parsed_by_airflow(home: Path, configs: Path) -> tuple[list[str], dict[str, str]]:
    environment = clean_environment(home, AIRFLOW_HOME=str(home), SHARDMEAN_CONFIG_DIR=str(configs))
    folder = str(Path(shardmean.dags.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", BY_AIRFLOW, folder], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    dags, errors = json.loads(done.stdout.splitlines()[-1])
    return dags, errors


@pytest.mark.parametrize("dag_id", ["digits_vectorize", "digits_train"])
def test_the_fields_that_matter_most_stand_outside_sections(parsed: dict[str, dict[str, list]], dag_id: str) -> None:
    params = parsed["params"][dag_id]
    sections = [schema.get("section") for _, _, schema in params]
    num_outside = {"digits_vectorize": 5, "digits_train": 6}[dag_id]
    assert sections[:num_outside] == [None] * num_outside
    assert all(sections[num_outside:])
    assert all(schema["description_md"] for _, _, schema in params), "every field says what it means"


def test_fields_carry_the_schemas_limits(parsed: dict[str, dict[str, list]]) -> None:
    fields = {key: (value, schema) for key, value, schema in parsed["params"]["digits_train"]}
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
    assert [key for key, *_ in parsed["params"]["digits_promote"]] == ["version"]
    fields = [field for name, dag in parsed["params"].items() for field in dag if not name.endswith("_promote")]
    assert not [key for key, *_ in fields if key.split(".")[0] in ("spark", "airflow", "tracking", "promote")]
    free = {key for key, _, schema in fields if "string" in schema["type"] and not {"enum", "pattern"} & set(schema)}
    places = {"source.uri", "fine_tuning.start_from"}
    of_source = {"label_pattern", "path_column", "label_column", "split_column", "group_column", "group_pattern"}
    colors = {"image.background", "image.padding"}
    assert free == places | colors | {f"source.{name}" for name in of_source}
    lists = {key for key, _, schema in fields if "array" in schema["type"]}
    of_source = {"source.include", "source.exclude", "source.extra_columns"}
    assert lists == {"layers", "fine_tuning.freeze", "normalization.mean", "normalization.std"} | of_source


DIGITS = "name: digits\nvectorize: {source: {uri: /x}, dataset_uri: /y}\ntrain: {checkpoint_uri: /z}\n"
ELSEWHERE = DIGITS.replace("train: {", "train: {dataset_uri: /w, ")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("other", DIGITS, "name = 'digits' is taken by"),
        ("other", "name: Digits 2\n", "name = 'Digits 2': string should match pattern"),
        ("digits", f"{DIGITS}airflow: {{schedule: at 3}}\n", "airflow.schedule = 'at 3': not a cron expression"),
        ("digits", f"{DIGITS}airflow: {{timezone: Berlin}}\n", "airflow.timezone = 'Berlin': no such time zone"),
        ("digits", ELSEWHERE, "train.dataset_uri is /w and that of vectorize is /y"),
        ("digits", "name: [digits\n", "is not valid YAML or JSON"),
    ],
)
def test_a_broken_pipeline_is_an_import_error_of_its_own_file(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    file = write_configs(tmp_path).with_name(f"{name}.yaml")
    file.write_text(text)
    dags, errors = parsed_by_airflow(tmp_path, tmp_path)
    assert sorted(dags) == (["digits_promote", "digits_train", "digits_vectorize"] if name == "other" else [])
    assert list(errors) == [str(file)]
    assert message in errors[str(file)]


def test_a_folder_without_pipelines_says_what_to_do(tmp_path: Path) -> None:
    dags, errors = parsed_by_airflow(tmp_path, tmp_path)
    ((file, message),) = errors.items()
    assert (dags, Path(file).name) == ([], "shardmean_pipelines.py")
    assert f"{tmp_path}/pipelines: no pipelines (*.yaml): make one by `shardmean init NAME SOURCE`" in message
    (tmp_path / "vectorize.yaml").touch()
    assert f"convert them by `shardmean init --from {tmp_path}`" in parsed_by_airflow(tmp_path, tmp_path)[1][file]


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
from shardmean.dags.shardmean_pipelines import digits_vectorize as dag
task = dag.get_task("vectorize")
seconds = {name: getattr(task, name) for name in ("retry_delay", "max_retry_delay", "execution_timeout")}
print(json.dumps({
    **{name: value and value.total_seconds() for name, value in seconds.items()},
    **{name: getattr(task, name) for name in ("pool", "queue", "retries", "retry_exponential_backoff", "_conn_id")},
    "owner": task.owner, "tags": sorted(dag.tags),
}))
"""


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{}", ["spark_default", "default_pool", "default", 3, 30, None, "airflow", ["digits", "shardmean"]]),
        (
            "{connection_id: big, pool: gpus, queue: q, retries: 1, retry_delay_s: 5, timeout_s: 9, owner: a}",
            ["big", "gpus", "q", 1, 5, 9, "a", ["digits", "shardmean"]],
        ),
    ],
)
def test_the_pipeline_says_how_airflow_runs_its_tasks(tmp_path: Path, section: str, expected: list[object]) -> None:
    write_configs(tmp_path, section)
    environment = clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path), SHARDMEAN_CONFIG_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", TASK], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    names = ("_conn_id", "pool", "queue", "retries", "retry_delay", "execution_timeout", "owner", "tags")
    assert [task[name] for name in names] == expected
    assert (task["retry_exponential_backoff"], task["max_retry_delay"]) == (2, 600), "pauses double, up to ten minutes"


GRAPH = """
import json
from shardmean.dags.shardmean_pipelines import digits_promote as dag, digits_train, digits_vectorize
approve = dag.task_dict.get("approve")
print(json.dumps({
    "tasks": {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks},
    "waits_s": approve and approve.response_timeout.total_seconds(),
    "users": approve and approve.assigned_users,
    "tells": [len(dag.default_args["on_failure_callback"]), len(approve.notifiers) if approve else 0,
              len(dag.get_task("promote").on_success_callback), len(dag.deadline or [])],
    "assets": [[one.uri for one in task.outlets] for task in
               (digits_vectorize.get_task("publish"), digits_train.get_task("train"), dag.get_task("promote"))],
}))
"""


def graph(tmp_path: Path) -> dict[str, Any]:
    environment = clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path), SHARDMEAN_CONFIG_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", GRAPH], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_stages_follow_each_other_and_announce_what_they_made_by_its_uri(tmp_path: Path) -> None:
    write_configs(tmp_path)
    found = graph(tmp_path)
    assert found["tasks"] == {"evaluate": ["gate"], "gate": ["promote"], "promote": []}
    assert found["assets"] == [[f"file://{tmp_path}/dataset"], ["models:/digits"], ["models:/digits@champion"]]
    assert found["tells"] == [0, 0, 0, 0]


def test_approval_notifications_and_a_deadline_are_as_the_pipeline_says(tmp_path: Path) -> None:
    told = (
        "{notifications: [{connection_id: chat, kind: slack, events: [failure, approval, promotion, deadline]}, "
        "{connection_id: mail, kind: smtp, to: [a@example.org]}], deadline_s: 600, schedule: '0 3 * * *'}"
    )
    file = write_configs(tmp_path, told)
    with file.open("a") as stream:
        stream.write("promote: {approval: required, approvers: [ann], approval_timeout_h: 2}\n")
    found = graph(tmp_path)
    assert found["tasks"] == {"evaluate": ["gate"], "gate": ["approve"], "approve": ["promote"], "promote": []}
    assert (found["waits_s"], found["users"]) == (7200, [{"id": "ann", "name": "ann"}])
    assert found["tells"] == [2, 1, 1, 1]
    dags, errors = parsed_by_airflow(tmp_path, tmp_path)
    assert (len(dags), errors) == (3, {}), "Airflow can store them"
