"""Driver and workers compare a hash of the code that runs on workers: all of `model` and of `jobs`."""

from __future__ import annotations

import shutil

import pytest

from shardmean.model.training import environment
from tests.paths import ROOT


@pytest.fixture
def identity(monkeypatch):
    """A function that gives the code identity of a process whose package is in a folder."""

    def of(package) -> str:
        monkeypatch.setattr(environment, "__file__", str(package / "model" / "training" / "environment.py"))
        environment.this_environment.cache_clear()
        return environment.this_environment().shardmean

    yield of
    environment.this_environment.cache_clear()


def test_a_clone_with_links_and_an_installed_copy_have_the_same_identity(identity, tmp_path):
    for folder in ("jobs", "model"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert identity(tmp_path) == identity(ROOT / "shardmean")


@pytest.mark.parametrize("file", ["jobs/spark/barrier.py", "jobs/vectorize/shard_task.py", "model/training/worker.py"])
def test_a_change_of_code_that_workers_run_changes_it(identity, tmp_path, file):
    for folder in ("jobs", "model"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = identity(tmp_path)
    (tmp_path / file).write_text((tmp_path / file).read_text() + "# changed\n")
    assert identity(tmp_path) != before
