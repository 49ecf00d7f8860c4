"""`make demo` as a new user sees it: its DAGs by `airflow dags test`, the summary, and the lines it tells to paste."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.dags.conftest import SHARDMEAN, clean_environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def first(home: Path) -> tuple[str, float]:
    """The output of the first demo and its longest silence in seconds."""
    process = subprocess.Popen(
        [SHARDMEAN, "demo"], env=clean_environment(home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines, longest, last = [], 0.0, time.monotonic()
    for line in process.stdout:
        lines.append(line)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert process.wait() == 0, "".join(lines[-30:])
    return "".join(lines), longest


def test_it_ends_with_a_summary_and_at_least_97_percent(first: tuple[str, float]) -> None:
    accuracy = re.search(r"test accuracy +([\d.]+)%", first[0])
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
    assert "registered model  digits version 1 (challenger, champion)" in first[0]
    picture = re.search(r"confusion matrix +(\S+\.png)", first[0])
    assert picture is not None
    assert Path(picture[1]).read_bytes().startswith(b"\x89PNG")


def test_nobody_looks_at_a_still_screen(first: tuple[str, float]) -> None:
    # The promise is 5 s; a loaded machine is given twice that.
    assert first[1] < 10


def test_the_three_lines_work_when_pasted(first: tuple[str, float], tmp_path: Path) -> None:
    lines = re.findall(r"^(?:import mlflow;|model = |print\().*$", first[0], re.MULTILINE)
    assert len(lines) == 3
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^0 +7 +0\.\d+|^0 +7 +1\.0", done.stdout, re.MULTILINE), done.stdout


def processes_of(home: Path) -> list[psutil.Process]:
    """What runs with a folder as its SHARDMEAN_HOME."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("SHARDMEAN_HOME") == str(home):
                found.append(process)
    return found


def test_a_demo_that_is_told_to_end_leaves_no_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [SHARDMEAN, "demo"], env=clean_environment(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "DAG digits_vectorize" in line:
            break
    while len(processes_of(tmp_path)) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(60) == 130, rest
    assert psutil.wait_procs(processes_of(tmp_path), timeout=5)[1] == []


def test_a_second_demo_does_only_what_is_needed(first: tuple[str, float], home: Path) -> None:
    started = time.monotonic()
    done = subprocess.run([SHARDMEAN, "demo"], env=clean_environment(home), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert "DAG digits_vectorize" not in done.stdout
    assert time.monotonic() - started < 30
