"""The wheel holds all that the code reads, so that an installation needs no clone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from zipfile import ZipFile

import pytest

from tests.paths import ROOT

from .dags.conftest import clean_environment

FOLDERS = ("configs", "dags", "jobs", "model")
READ = """
import shardmean.dags.train_cnn, shardmean.dags.vectorize_images
from shardmean.jobs.config.job import config_folder
print(shardmean.dags.vectorize_images.JOB.image.height_px, shardmean.dags.train_cnn.JOB.network, config_folder())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content in a folder. It is built from a copy: a clone's own `build` may hold what is long deleted."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in (*FOLDERS, "shardmean"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(target), str(source)], check=True, timeout=120)
    (wheel,) = target.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_it_holds_every_file_of_its_folders(installed):
    ours = {path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()}
    ours = {path for path in ours if "__pycache__" not in path.parts}
    package = installed / "shardmean"
    found = {path.relative_to(package) for name in FOLDERS for path in (package / name).rglob("*") if path.is_file()}
    assert found == ours
    (top_level,) = installed.glob("*.dist-info/top_level.txt")
    assert top_level.read_text() == "shardmean\n"


def test_the_dags_read_its_configs_far_from_any_clone(installed, tmp_path):
    environment = clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path), PYTHONPATH=str(installed))
    done = subprocess.run(
        [sys.executable, "-c", READ], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"28 small_cnn {installed}/shardmean/configs"
