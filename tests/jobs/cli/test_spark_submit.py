"""What spark-submit runs: it reaches our modules by one name each, in the driver and in the tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shardmean
from shardmean.jobs.spark.java import LOCAL_SETTINGS, java_environment

REPOSITORY = Path(__file__).parents[3]
MAIN = REPOSITORY / "jobs" / "cli" / "__main__.py"
# Where a process imports what makes shards, it notes the modules of ours that it could import, or has imported, by
# another name than shardmean's.
HOOK = """
import importlib.util, json, os, sys
from pathlib import Path

FOLDERS = [os.path.join({repository!r}, name) for name in ("dags", "jobs", "model", "configs")]

class Hook:
    def find_spec(self, name, path, target=None):
        if name == "shardmean.jobs.vectorize.shard_task":
            sys.meta_path.remove(self)
            note()

def note():
    names = {{file.stem for folder in FOLDERS for file in Path(folder).rglob("*.py")}} - {{"__init__", "__main__"}}
    names |= {{Path(folder).name for folder in FOLDERS}}
    specs = [importlib.util.find_spec(name) for name in names if name not in sys.modules]
    found = [spec.origin or list(spec.submodule_search_locations)[0] for spec in specs if spec]
    found += [
        module.__file__ for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None) and name.split(".")[0] not in ("shardmean", "__main__")
    ]
    twice = [file for file in found if os.path.realpath(file).startswith(tuple(FOLDERS))]
    Path({notes!r}, f"{{os.getpid()}}.json").write_text(json.dumps([Path(sys.argv[0]).name, twice]))

sys.meta_path.insert(0, Hook())
"""


@pytest.fixture
def submit(tmp_path):
    """A function that runs the command line by spark-submit, away from the clone, and gives what processes noted."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "shardmean").symlink_to(Path(shardmean.__file__).parent)
    hook = HOOK.format(repository=str(REPOSITORY), notes=str(tmp_path / "notes"))
    (tmp_path / "path" / "sitecustomize.py").write_text(hook)
    environment = os.environ | java_environment() | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    settings = [f"--conf={key}={value}" for key, value in LOCAL_SETTINGS.items()]

    def submit(program: Path, *arguments: str) -> list[list]:
        command = [Path(sys.executable).with_name("spark-submit"), "--master=local[2]", *settings, program, *arguments]
        done = subprocess.run(
            command, env=environment | {"PYTHONPATH": str(tmp_path / "path")}, cwd=tmp_path,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(file.read_text()) for file in (tmp_path / "notes").iterdir()]

    return submit


def test_no_module_of_ours_has_a_second_name(submit, tmp_path, make_images):
    images = make_images(tmp_path / "images", num_per_class=5)
    notes = submit(MAIN, "vectorize", f"source.uri={images}", f"dataset_uri={tmp_path}/set")
    programs = {program for program, _ in notes}
    assert "__main__.py" in programs
    assert len(programs) == 2, "the driver's and the tasks'"
    assert [twice for _, twice in notes if twice] == []
