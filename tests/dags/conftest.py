"""A whole embedded stack for the tests of the DAGs: real Airflow, real MLflow, a few hundred digits, free ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARDMEAN = str(Path(sys.executable).with_name("shardmean"))
QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def write_digits(folder: Path, numbers: range) -> None:
    digits = load_digits()
    for number in numbers:
        file = folder / str(digits.target[number]) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(file)


def write_configs(folder: Path, airflow: str = "{}") -> Path:
    """One pipeline, digits, in a folder of configs; gives its file."""
    home = "${oc.env:SHARDMEAN_HOME}"
    file = folder / "pipelines" / "digits.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        f"name: digits\n"
        f"vectorize: {{source: {{uri: '{home}/images'}}, dataset_uri: '{home}/dataset'}}\n"
        f"train: {{checkpoint_uri: '{home}/checkpoints', num_epochs: 2}}\n"
        f"airflow: {airflow}\n"
    )
    return file


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    taken = ("AIRFLOW", "MLFLOW", "SHARDMEAN", "SPARK", "PYSPARK")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(taken)}
    return {**kept, "SHARDMEAN_HOME": str(home), "JDK_JAVA_OPTIONS": QUICK_JVM, **more}


@dataclass
class Stack:
    home: Path
    airflow: str
    mlflow: str
    password: str
    process: subprocess.Popen[str]
    token: str = ""

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.airflow + path, data, headers, method=method)
        # Airflow 3.3 answers 500 to a question for asset events while a run that one created has not started yet.
        for wait_s in (1, 2, 4, None):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code < 500 or body is not None or wait_s is None:
                    raise
                time.sleep(wait_s)
        raise AssertionError("the loop ends by return or raise")

    def trigger(self, dag_id: str, conf: dict[str, Any]) -> str:
        run = self.call(f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf})
        return str(run["dag_run_id"])

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        return list(self.call(f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"])

    def finished(self, dag_id: str, run_id: str, timeout_s: float = 180) -> dict[str, Any]:
        path = f"/api/v2/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
        return wait_for(
            lambda: found if (found := self.call(path))["state"] in ("success", "failed") else None, timeout_s
        )

    def task(self, dag_id: str, run_id: str, task_id: str, more: str = "") -> dict[str, Any]:
        run = quote(run_id, safe="")
        return dict(self.call(f"/api/v2/dags/{dag_id}/dagRuns/{run}/taskInstances/{task_id}{more}"))


def wait_for(probe: Any, timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.5)
    pytest.fail(f"not within {timeout_s} s")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("stack")
    write_configs(home / "configs")
    write_digits(home / "images", range(400))
    airflow_port, mlflow_port = free_ports(2)
    process = subprocess.Popen(
        [SHARDMEAN, "up", f"--airflow-port={airflow_port}", f"--mlflow-port={mlflow_port}"],
        env=clean_environment(home, SHARDMEAN_CONFIG_DIR=str(home / "configs")),
        stdout=(home / "up.log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: "Ctrl-C stops" in (home / "up.log").read_text() or process.poll() is not None, 180)
        assert process.poll() is None, (home / "up.log").read_text()
        passwords = json.loads((home / "airflow" / "simple_auth_manager_passwords.json.generated").read_text())
        running = Stack(
            home, f"http://127.0.0.1:{airflow_port}", f"http://127.0.0.1:{mlflow_port}", passwords["admin"], process
        )
        running.token = running.call("/auth/token", {"username": "admin", "password": running.password})["access_token"]
        wait_for(lambda: len(running.call("/api/v2/dags")["dags"]) == 3, 60)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("operator")
    write_configs(home / "configs")
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Any:
    """Runs tasks (see `operator_cases`), each given as a dict, in one process, and gives their outcomes."""

    def run(*cases: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.dags.operator_cases"],
            env=clean_environment(
                home, AIRFLOW_HOME=str(home), AIRFLOW_CONN_SPARK_DEFAULT='{"conn_type": "spark", "host": "local"}',
                **{"SHARDMEAN_CONFIG_DIR": str(home / "configs")} | environment,
            ),
            input="".join(f"{json.dumps(case)}\n" for case in cases),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()[-len(cases) :]]

    return run
