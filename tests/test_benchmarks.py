"""Benchmarks import, and the points that they watch from outside exist: a rename would otherwise break them unseen."""

from __future__ import annotations

import importlib
import importlib.util
import re
from operator import attrgetter

import pytest

from tests.paths import ROOT

FOLDER = ROOT / "benchmarks"
NEEDS = {"etl_memory": "psutil", "growth": "psutil"}


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.py")))
def test_it_imports(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_the_hooks_of_first_step_wrap_what_there_is():
    spec = importlib.util.spec_from_file_location("hooks_of_first_step", FOLDER / "hooks" / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    assert not hooks.EVENTS, "nothing is wrapped in the tests' own process"
    for module, points in hooks.POINTS.items():
        for point in points:
            assert callable(attrgetter(point)(importlib.import_module(module))), f"{module}: {point}"
    noted = {"submit", "process", "first step", "second step", *(p for points in hooks.POINTS.values() for p in points)}
    read = re.findall(r'(?:begin|end|last|started)\("([^"]+)"', (FOLDER / "first_step.py").read_text())
    assert read
    assert set(read) <= noted
