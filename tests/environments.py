"""Virtual environments of their own for the wheel: an extra and what it requires, as links to what is installed here.

So they take seconds and no network, and what an extra does not bring is not there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import Distribution, distribution, packages_distributions
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def build_wheel(source: Path, target: Path) -> Path:
    """The wheel, built from a copy: a clone's own `build` may hold what is long deleted."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("configs", "dags", "jobs", "model", "shardmean"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(source)]
    subprocess.run([*PIP, *build], check=True, timeout=120)
    (wheel,) = target.glob("*.whl")
    return wheel


def make_environment(folder: Path, wheel: Path, extras: str = "") -> Path:
    """A virtual environment with `wheel[extras]`; returns its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    for found in _required(wheel, extras):
        _link(found, packages)
    python = str(folder / "bin" / "python")
    install = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*PIP, *install], cwd=folder, check=True, timeout=120)
    return folder / "bin"


def _required(wheel: Path, extras: str) -> list[Distribution]:
    """All that the wheel with some extras requires, and that requires, as it is installed here."""
    (metadata,) = Distribution.discover(path=[str(wheel)])
    found: dict[str, Distribution] = {"shardmean": metadata}
    waiting, seen = [Requirement(f"shardmean[{extras}]")], set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in (wanted.extras or set()) | {""}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                found.setdefault(name, distribution(name) if name != "shardmean" else metadata)
                waiting += _requirements(found[name].requires or [], extra)
    return [one for name, one in found.items() if name != "shardmean"]


def _requirements(lines: Iterable[str], extra: str) -> Iterator[Requirement]:
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _link(found: Distribution, packages: Path) -> None:
    """Link a distribution's files, but for programs that name the Python here: those are written anew."""
    here = str(found.locate_file(""))
    for top, files in groupby(sorted(map(str, found.files or ())), lambda file: file.partition("/")[0]):
        if len(_owners().get(top, ())) == 1:
            (packages / top).symlink_to(Path(here, top))  # a whole package
            continue
        for file in files:
            source, target = Path(here, file), packages / file
            if not source.is_file() or target.exists():  # pyspark and pyspark-client share files
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if top == ".." and (content := source.read_bytes()).startswith(f"#!{sys.prefix}".encode()):
                target.write_bytes(content.replace(sys.prefix.encode(), str(packages.parents[2]).encode(), 1))
                target.chmod(0o755)
            else:
                target.symlink_to(source)


@cache
def _owners() -> Mapping[str, list[str]]:
    return packages_distributions()
