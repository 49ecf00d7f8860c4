"""A job ends with the task that submitted it, also by kill -9, and with nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from shardmean.jobs.common.parent_process import VARIABLE, mark
from shardmean.model.storage.lease import start_of

# The task submits the job through a shell that lives on, as spark-submit's JVM does.
TASK = """
import os, subprocess, sys, time
from shardmean.jobs.common.parent_process import mark
subprocess.Popen(
    ["bash", "-c", f"{sys.executable} -c '{sys.argv[1]}'; true"], env={**os.environ, **mark()}, start_new_session=True
)
time.sleep(60)
"""
JOB = """
import os, pathlib, time
from shardmean.jobs.common.parent_process import end_with_parent
end_with_parent()
pathlib.Path("PIDFILE").write_text(str(os.getpid()))
time.sleep(60)
"""


def job_of(task: subprocess.Popen, pid_file) -> psutil.Process:
    while not pid_file.exists() or not pid_file.read_text():
        assert task.poll() is None
        time.sleep(0.05)
    return psutil.Process(int(pid_file.read_text()))


def test_a_task_that_is_killed_takes_its_job_along(tmp_path):
    job = JOB.replace("PIDFILE", str(tmp_path / "pid"))
    task = subprocess.Popen([sys.executable, "-c", TASK, job])
    found = job_of(task, tmp_path / "pid")
    try:
        time.sleep(1.5)
        assert found.is_running(), "the task lives, and so does its job"
        task.send_signal(signal.SIGKILL)
        task.wait()
        found.wait(10)
    finally:
        if found.is_running():
            found.kill()


@pytest.mark.parametrize("value", ["", "other-host 1 5", "nonsense", f"{mark()[VARIABLE].rpartition(' ')[0]} "])
def test_a_parent_that_is_not_named_here_ends_nothing(value, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, value)
    code = "from shardmean.jobs.common.parent_process import end_with_parent as e; e(); import time; time.sleep(2.5)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_process_that_is_none_has_no_start():
    assert start_of(2**22 + 1) == ""
    assert start_of(1) != ""
