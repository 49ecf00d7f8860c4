"""A real Spark standalone cluster on loopback: a master and workers, each a JVM of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pyspark

from shardmean.jobs.spark.java import java_environment

READY_S = 90
LEAN = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


@dataclass
class Cluster:
    """A running cluster: its URL, and the processes of its workers, for tests that kill one."""

    url: str
    status_url: str
    folder: Path
    workers: list[subprocess.Popen] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        """What a job's `spark` setting needs to run here."""
        return {
            "spark.master": self.url,
            "spark.executor.memory": "512m",
            "spark.driver.extraJavaOptions": LEAN,
            "spark.executor.extraJavaOptions": f"{LEAN} -Djava.io.tmpdir={self.temporary}",
            "spark.ui.enabled": "false",
        }

    @property
    def temporary(self) -> Path:
        """A folder for temporary files with a name as long as on YARN."""
        return self.folder / "usercache/appcache/application_1234567890123_0001/container_1234567890123_0001_01_000002"

    def num_alive(self) -> int:
        with urllib.request.urlopen(self.status_url, timeout=5) as answer:
            return sum(worker["state"] == "ALIVE" for worker in json.load(answer)["workers"])


@contextlib.contextmanager
def running_cluster(
    folder: Path, *, num_workers: int = 2, num_cores: int = 1, properties: dict[str, str] | None = None
):
    """A master and `num_workers` workers of `num_cores` cores each, with Spark `properties` for the workers."""
    environment = {
        **os.environ,
        **java_environment(),
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": LEAN,
        "SPARK_MASTER_OPTS": "-Dspark.master.rest.enabled=false",
        "PYSPARK_PYTHON": sys.executable,
    }
    file = folder / "worker.conf"
    file.write_text("".join(f"{key} {value}\n" for key, value in (properties or {}).items()))
    port, page = free_ports(2)
    cluster = Cluster(f"spark://127.0.0.1:{port}", f"http://127.0.0.1:{page}/json/", folder)
    cluster.temporary.mkdir(parents=True)
    with contextlib.ExitStack() as ends:

        def start(name: str, kind: str, *arguments: str) -> subprocess.Popen:
            log = ends.enter_context((folder / f"{name}.log").open("wb"))
            command = [f"{environment['SPARK_HOME']}/bin/spark-class", f"org.apache.spark.deploy.{kind}", *arguments]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
            ends.callback(_end, process)
            return process

        start("master", "master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", str(page))
        for number in range(num_workers):
            place = ["--host", "127.0.0.1", "--webui-port", "0", "--work-dir", str(folder / f"work-{number}")]
            size = ["--cores", str(num_cores), "--memory", "1g", "--properties-file", str(file)]
            cluster.workers.append(start(f"worker-{number}", "worker.Worker", *place, *size, cluster.url))
        _wait_until_ready(cluster, num_workers)
        yield cluster


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _wait_until_ready(cluster: Cluster, num_workers: int) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(
            OSError, json.JSONDecodeError
        ):  # Until its handlers stand, the master answers in HTML.
            if cluster.num_alive() == num_workers:
                return
        time.sleep(0.2)
    logs = "\n".join(log.read_text()[-2000:] for log in cluster.folder.glob("*.log"))
    raise AssertionError(f"the cluster was not ready in {READY_S} s:\n{logs}")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
