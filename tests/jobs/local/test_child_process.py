"""A program that is followed: its lines as they come, a sign of life when it is silent, and nothing left of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shardmean.jobs.local import child_process
from shardmean.jobs.local.child_process import follow

ROOT = Path(__file__).parents[3]
# A program with a child of its own, which ignores SIGTERM where it is told to.
PARENT = """
import signal, subprocess, sys, time
child = "import signal, time; {ignore}; print('child', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(600)
"""
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


class ShownError(Exception):
    pass


def of_group(pid: int) -> list[psutil.Process]:
    """What runs in a program's session."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.pid != pid and os.getpgid(process.pid) == pid:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def test_lines_and_signs_of_life_and_the_exit_code(monkeypatch):
    monkeypatch.setattr(child_process, "HEARTBEAT_S", 0.6)
    shown, beats = [], []
    script = "import time; print('one', flush=True); time.sleep(3); print('two  '); raise SystemExit(3)"
    code = follow([sys.executable, "-c", script], lambda line: shown.append(line) or True, beats.append)
    assert (code, shown) == (3, ["one", "two"])
    assert beats == sorted(beats)
    assert 1 <= len(beats) <= 6


def test_lines_that_are_not_shown_are_no_signs_of_life(monkeypatch):
    monkeypatch.setattr(child_process, "HEARTBEAT_S", 0.6)
    beats = []
    script = "import time\nfor _ in range(30): print('noise', flush=True); time.sleep(0.1)"
    assert follow([sys.executable, "-c", script], lambda _line: False, beats.append) == 0
    assert beats


@pytest.mark.parametrize("ignore", ["pass", IGNORE])
def test_after_an_error_nothing_of_the_program_is_left(monkeypatch, ignore):
    monkeypatch.setattr(child_process, "GRACE_S", 2)
    started, popen = [], subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(child_process.subprocess, "Popen", start)

    def show(line: str) -> bool:
        assert line == "child"
        assert len(of_group(started[0].pid)) == 1
        raise ShownError

    with pytest.raises(ShownError):
        follow([sys.executable, "-c", PARENT.format(ignore=ignore)], show, lambda _s: None)
    assert started[0].returncode is not None, "it was waited for"
    psutil.wait_procs(of_group(started[0].pid), timeout=5)
    assert of_group(started[0].pid) == []


def test_it_needs_no_package(tmp_path):
    """The bootstrap imports it before anything is installed."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import shardmean.jobs.local.bootstrap; "
        "print(sorted({'numpy', 'rich', 'pyspark'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
