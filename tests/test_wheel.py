"""The wheel, installed for each role far from any clone: it holds all that it reads, and needs what its extra says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from shardmean.jobs.spark.java import java_environment
from tests.environments import make_environment
from tests.paths import ROOT

pytestmark = pytest.mark.cluster
FOLDERS = ("configs", "dags", "jobs", "model")
QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
STORED = ROOT / "tests" / "data" / "v0_1_0" / "dataset"
ABSENT = """
from importlib.util import find_spec
print([name for name in {names} if find_spec(name)])
"""
READ = """
import sys
from shardmean import Dataset, TrainJob, VectorizeJob, load_manifest
dataset = Dataset(sys.argv[1])
shard = dataset.manifest.shards_of("train")[0]
print(dataset.read(shard, 0, 4).features_NCHW.shape, load_manifest(sys.argv[1]) == dataset.manifest)
"""
# As Airflow's DAG processor does it.
PARSE = """
import json, sys
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
bag = BundleDagBag(dag_folder=sys.argv[1], bundle_path=Path(sys.argv[1]))
import shardmean.dags
print(json.dumps([{id: dag.fileloc for id, dag in bag.dags.items()}, bag.import_errors, *shardmean.dags.__path__]))
"""
OF_A_TEAM = """
from airflow.sdk import DAG
from model import NAME

with DAG(NAME):
    pass
"""
# A task of Airflow's, but for its supervisor.
RUN = """
import json
from types import SimpleNamespace
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import AssetEventsResult
from airflow.sdk.execution_time.context import InletEventsAccessors, OutletEventAccessors
from shardmean.dags.shardmean_pipelines import pets_vectorize

task_runner.SUPERVISOR_COMMS = SimpleNamespace(send=lambda _: AssetEventsResult(asset_events=[]))
dag = pets_vectorize
task = dag.get_task("vectorize")
context = {
    "params": {key: dag.params.get_param(key).value for key in dag.params},
    "dag_run": SimpleNamespace(dag_id=dag.dag_id, run_id="manual", conf={}),
    "ti": SimpleNamespace(try_number=1),
    "inlet_events": InletEventsAccessors(task.inlets),
    "outlet_events": OutletEventAccessors(),
}
task.render_template_fields(context)
print(json.dumps(task.execute(context)))
"""


def run(programs: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment in a folder beside it; of this environment nothing is on its path."""
    taken = ("AIRFLOW", "MLFLOW", "PYSPARK", "PYTHON", "SHARDMEAN", "SPARK", "VIRTUAL_ENV")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(taken)}
    path = f"{programs}:{os.environ['PATH']}"
    environment = {
        **kept,
        **(java_environment() or {}),
        "JDK_JAVA_OPTIONS": QUICK_JVM,
        "PATH": path,
        "SHARDMEAN_HOME": "home",
    }
    folder = programs.parent.parent
    program = [str(programs / command[0]), *command[1:]]
    return subprocess.run(
        program, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=600, check=False
    )


def answer(programs: Path, code: str, *arguments: str, **variables: str) -> str:
    done = run(programs, "python", "-c", code, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def base(wheel, tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("base") / "venv", wheel)


@pytest.fixture(scope="module")
def airflow(wheel, tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("airflow") / "venv", wheel, "airflow")


@pytest.fixture(scope="module")
def spark(wheel, tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("spark") / "venv", wheel, "spark")


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A folder of config files, and beside it a few images in two classes."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    (folder / "configs" / "pipelines").mkdir(parents=True)
    (folder / "configs" / "pipelines" / "pets.yaml").write_text(
        f"name: pets\nvectorize: {{source: {{uri: {folder}/images}}, dataset_uri: {folder}/set, "
        f"spark: {{spark.ui.enabled: false}}}}\ntrain: {{checkpoint_uri: {folder}/runs}}\n"
    )
    return folder / "configs"


def test_it_holds_every_file_of_its_folders(wheel):
    ours = {path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()}
    ours = {str(path) for path in ours if "__pycache__" not in path.parts} | {"__init__.py", "py.typed"}
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = (name for name in names if name.endswith(".dist-info/top_level.txt"))
        assert archive.read(top_level) == b"shardmean\n"
    rest = {name for name in names if not name.startswith(top_level.partition("/")[0])}
    assert rest == {f"shardmean/{name}" for name in ours}


def test_alone_it_reads_datasets_and_says_which_extra_the_rest_needs(base):
    names = ["torch", "pyspark", "mlflow", "pandas", "airflow", "PIL", "kornia", "boto3", "jinja2"]
    assert answer(base, ABSENT.format(names=names)) == "[]"
    assert answer(base, READ, str(STORED)) == "(4, 1, 8, 8) True"
    inspected = run(base, "shardmean", "inspect", str(STORED), "--verify")
    assert (inspected.returncode, inspected.stderr) == (0, "")
    assert "all 26 shards are as published" in inspected.stdout
    for command, message in {
        "train": "shardmean train needs [a-z]+: pip install 'shardmean\\[train\\]'",
        "vectorize": "shardmean vectorize needs [a-z]+: pip install 'shardmean\\[spark\\]'",
        "demo": "shardmean demo needs PIL: pip install 'shardmean\\[all\\]'",
    }.items():
        done = run(base, "shardmean", command)
        assert done.returncode == 2
        assert re.fullmatch(f"shardmean: error: {message}\n", done.stderr)


def test_airflow_parses_the_dags_beside_those_of_a_team_without_torch_or_mlflow(airflow, configs, tmp_path):
    names = ["torch", "mlflow", "kornia", "matplotlib", "PIL"]
    assert answer(airflow, ABSENT.format(names=names)) == "[]"
    document = (ROOT / "docs" / "cluster.md").read_text()
    found = re.search(r"```python\n(.*?)```", document, re.DOTALL)
    assert found is not None
    (tmp_path / "shardmean.py").write_text(found[1])
    shutil.copytree(configs / "pipelines", tmp_path / "pipelines")
    (tmp_path / "model.py").write_text("NAME = 'pets'\n")
    (tmp_path / "pets.py").write_text(OF_A_TEAM)
    variables = {"AIRFLOW_HOME": str(tmp_path / "home"), "SHARDMEAN_CONFIG_DIR": str(configs)}
    dags, errors, folder = json.loads(answer(airflow, PARSE, str(tmp_path), **variables))
    assert errors == {}
    ours = str(tmp_path / "shardmean.py")
    assert dags == {
        "pets": str(tmp_path / "pets.py"), "pets_promote": ours, "pets_train": ours, "pets_vectorize": ours
    }  # fmt: skip
    assert Path(folder).is_relative_to(airflow.parent), "of the wheel, not of a clone"


def test_a_dag_of_an_airflow_without_spark_runs_the_etl_of_another_environment(spark, airflow, configs):
    by_hand = run(spark, "shardmean", "vectorize", f"--pipeline={configs / 'pipelines' / 'pets.yaml'}")
    assert by_hand.returncode == 0, by_hand.stderr
    assert "published" in by_hand.stdout
    variables = {
        "AIRFLOW_CONN_SPARK_DEFAULT": '{"conn_type": "spark", "host": "local[1]"}',
        "AIRFLOW_HOME": str(configs),
        "PATH": f"{spark}:{os.environ['PATH']}",
        "PYSPARK_PYTHON": str(spark / "python"),
        "SHARDMEAN_CONFIG_DIR": str(configs),
    }
    result = answer(airflow, RUN, **variables)
    manifest = json.loads((configs.parent / "set" / "manifest.json").read_text())
    assert json.loads(result)["digest"] == manifest["digest"]
