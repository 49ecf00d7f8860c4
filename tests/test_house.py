"""The house's rules that no linter knows: sizes of folders and files, and that the tools see every module."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import grimp
import pytest

from tests.paths import ROOT

FILES = sorted(file for top in ("dags", "jobs", "model") for file in (ROOT / top).rglob("*.py"))


def test_no_folder_holds_more_than_14_modules() -> None:
    per_folder = Counter(file.parent for file in FILES if file.name != "__init__.py")
    assert {folder: num for folder, num in per_folder.items() if num > 14} == {}


def test_no_file_is_longer_than_300_lines() -> None:
    python = [*FILES, *(ROOT / "shardmean").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert [file for file in python if len(file.read_text().splitlines()) > 300] == []


def test_every_package_says_what_it_holds() -> None:
    for file in FILES:
        assert (file.parent / "__init__.py").exists(), f"{file.parent} is no package"
        assert file.read_text().startswith('"""'), f"{file} does not open with what it holds"


def test_the_import_rules_see_every_module() -> None:
    graph = grimp.build_graph("shardmean")
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES)
    assert graph.modules == {"shardmean", *(f"shardmean.{name}".removesuffix(".__init__") for name in names)}


@pytest.mark.timeout(60)
def test_coverage_sees_every_module(tmp_path) -> None:
    environment = {**os.environ, "COVERAGE_FILE": str(tmp_path / "data")}
    environment = {name: value for name, value in environment.items() if not name.startswith("COV_CORE")}
    coverage = [sys.executable, "-m", "coverage"]
    script = tmp_path / "nothing.py"
    script.write_text("import shardmean.jobs.config.job\n")
    for arguments in (["run", str(script)], ["combine"], ["json", "-o", str(tmp_path / "report.json")]):
        subprocess.run([*coverage, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True)
    seen = json.loads((tmp_path / "report.json").read_text())["files"]
    assert set(seen) == {str(file.relative_to(ROOT)) for file in FILES}
    assert seen["jobs/config/job.py"]["summary"]["covered_lines"] > 50, "by its real path, not by the link"
