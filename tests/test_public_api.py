"""`from shardmean import ...`: what a program may import, when it is loaded, and what is said where an extra lacks."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys

import pytest

import shardmean
from tests.paths import ROOT

HEAVY = {"torch", "pyspark", "mlflow", "pandas", "airflow", "numpy", "pyarrow", "pydantic"}


def run(code: str, *, options: tuple[str, ...] = ()) -> str:
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", shardmean.__all__)
def test_each_name_is_there_and_documented(name):
    found = getattr(shardmean, name)
    assert found.__name__ == name
    assert found.__doc__, f"{name} says what it is"
    if inspect.isfunction(found) or issubclass(found, Exception):
        return
    for method, value in vars(found).items():
        if not method.startswith("_") and inspect.isfunction(value):
            assert value.__doc__, f"{name}.{method} says what it does"


def test_type_checkers_see_the_names_where_they_are():
    tree = ast.parse((ROOT / "shardmean" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.body[0], ast.ImportFrom))
    seen = {alias.name: imported.module for imported in block.body for alias in imported.names}
    assert seen == {name: getattr(shardmean, name).__module__ for name in shardmean.__all__}
    assert dir(shardmean) == shardmean.__all__ == sorted(shardmean.__all__)
    assert (ROOT / "shardmean" / "py.typed").exists()


def test_an_unknown_name_is_an_error_and_subpackages_are_found():
    with pytest.raises(AttributeError, match="module 'shardmean' has no attribute 'vectorise'"):
        shardmean.vectorise  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'vectorise' from 'shardmean'"):
        from shardmean import vectorise  # noqa: F401
    from shardmean import jobs

    assert jobs.__name__ == "shardmean.jobs"


def test_importing_it_imports_nothing_else():
    assert run(f"import shardmean, sys; print({HEAVY} & set(sys.modules))") == "set()\n"


def test_it_works_before_anything_is_installed():
    """The set-up runs in a bare interpreter."""
    bare = ("-S", "-E")
    code = "import shardmean.jobs.local.bootstrap, sys; print(any('site-packages' in path for path in sys.path))"
    assert run(code, options=bare) == "False\n"
    assert run("from shardmean import UserError", options=bare) == ""
    said = run("from shardmean import train", options=bare).splitlines()[-1]
    assert re.fullmatch(r"ModuleNotFoundError: shardmean.train needs \w+: pip install 'shardmean\[train\]'", said)
