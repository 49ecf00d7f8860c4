"""What the README says is so: the tree, the links, the settings it names."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.validation_errors import leaves
from tests.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

README = (ROOT / "README.md").read_text()


def test_the_tree_names_every_package() -> None:
    named = set(re.findall(r"^([a-z]+/[a-z]+(?:/[a-z]+)*)/ ", README, re.MULTILINE))
    packages = {
        str(file.parent.relative_to(ROOT)) for top in ("jobs", "model") for file in (ROOT / top).glob("**/__init__.py")
    }
    assert named == packages - {"jobs", "model"}


def test_it_is_short() -> None:
    assert README.count("\n") <= 170


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) >= 5
    assert [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()] == []


def test_every_setting_it_names_exists() -> None:
    known = {key for kind in (VectorizeJob, TrainJob) for key, _ in leaves(kind)}
    named = set(re.findall(r"(?<![-\w])([a-z_]+(?:\.[a-z_]+)*)=[\w/]", README)) - {"host"}
    assert "image.height_px" in named
    assert named <= known


def test_every_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets


def test_a_clean_environment_costs_no_data(tmp_path: Path) -> None:
    for left, target in (({".shardmean", "mine"}, "clean"), ({".venv", "mine"}, "clean-data")):
        for name in (".venv", ".shardmean", "mine"):
            (tmp_path / name).mkdir(exist_ok=True)
        subprocess.run(["make", "-f", ROOT / "Makefile", target], cwd=tmp_path, check=True, capture_output=True)
        assert {path.name for path in tmp_path.iterdir()} == left
