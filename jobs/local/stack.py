"""The embedded stack: Airflow on SQLite and one MLflow server, on loopback, for one machine and one user."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from shardmean.jobs.common.local_paths import artifacts, data_dir, store_uri
from shardmean.jobs.spark.java import LOCAL_SETTINGS, java_environment
from shardmean.model.errors import RetryableError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]
HOST = "127.0.0.1"
READY_TIMEOUT_S, STOP_TIMEOUT_S = 180, 25


def scripts_folder() -> Path:
    """Where this environment's programs lie: beside its python in a virtual environment, elsewhere on Debian's own."""
    return Path(sysconfig.get_path("scripts"))


def prepare(airflow_port: int = 8080, tracking_uri: str | None = None, host: str = HOST) -> dict[str, str]:
    """Make the folders, secrets and settings that Airflow and the jobs need; returns the environment to run them in.

    What ties the parts of the stack together is ours, whatever the caller's environment says: PATH's first folder,
    SHARDMEAN_HOME as an absolute path, AIRFLOW_HOME, the DAGs' folder, Airflow's address, secret and one user, and
    MLflow's tracking URI and silence. All else that the caller sets (a Spark connection, say) stays.
    """
    folder = data_dir()
    airflow_home = folder / "airflow"
    airflow_home.mkdir(parents=True, exist_ok=True)
    address = f"http://{HOST}:{airflow_port}"
    ours = {
        "PATH": f"{scripts_folder()}:{os.environ.get('PATH', '')}",
        "SHARDMEAN_HOME": str(folder),
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__API__HOST": host,
        "AIRFLOW__API__PORT": str(airflow_port),
        # Tasks talk to the API server too; without this they look for it at port 8080.
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret(airflow_home / "jwt_secret", 64),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "MLFLOW_TRACKING_URI": tracking_uri or store_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    defaults = {
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "PYSPARK_PYTHON": sys.executable,
        **(java_environment() or {}),
    }
    if "AIRFLOW_CONN_SPARK_DEFAULT" not in os.environ:
        defaults |= _local_spark(folder / "spark")
    return {**defaults, **os.environ, **ours}


def _local_spark(conf_dir: Path) -> dict[str, str]:
    conf_dir.mkdir(parents=True, exist_ok=True)
    settings = {**LOCAL_SETTINGS, "spark.driver.host": HOST}
    (conf_dir / "spark-defaults.conf").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    # Two slots at least, also on a machine with one core: the default training has two workers.
    master = "local[*]" if (os.cpu_count() or 1) >= 2 else "local[2]"
    return {
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": master}),
        "SPARK_CONF_DIR": str(conf_dir),
        "SPARK_LOCAL_IP": HOST,
    }


def _secret(file: Path, num_bytes: int) -> str:
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_urlsafe(num_bytes))
    return file.read_text()


def migrate(environment: dict[str, str]) -> None:
    """Create or update Airflow's database. Raises RetryableError."""
    done = subprocess.run(
        ["airflow", "db", "migrate"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise RetryableError(f"airflow db migrate failed: {_tail(done.stdout + done.stderr)}")


@dataclass
class Component:
    """A server of the stack: its command, how to ask whether it is ready, and its log."""

    name: str
    command: list[str]
    log_file: Path
    health_url: str
    health_key: str | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, environment: dict[str, str]) -> None:
        """Start it in a session of its own, so that a Ctrl-C in the terminal reaches only us."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def is_ready(self) -> bool:
        """Whether it answers now."""
        try:
            with urllib.request.urlopen(self.health_url, timeout=5) as answer:  # noqa: S310 - our own http address
                if self.health_key is None:
                    return bool(answer.status == 200)
                return bool(json.load(answer).get(self.health_key, {}).get("status") == "healthy")
        except (OSError, ValueError):
            return False

    def check_alive(self) -> None:
        """Raise RetryableError with the end of its log if it has ended."""
        assert self.process is not None, "only a started component is checked"
        if self.process.poll() is not None:
            tail = _tail(self.log_file.read_text(errors="replace"))
            raise RetryableError(
                f"{self.name} ended with code {self.process.returncode}: {tail}\n(log: {self.log_file})"
            )

    def stop(self, deadline: float) -> None:
        """Ask it to end; kill its whole session when it does not."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-8:])


def check_port(host: str, port: int, option: str) -> None:
    """Raise UserError when something listens on a port already, or the number is none."""
    if not 1024 <= port <= 65535:
        raise UserError(f"{option} {port}: choose a port from 1024 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port {port} is taken: stop what uses it, or choose another with {option}") from error


def components(host: str, airflow_port: int, mlflow_port: int) -> list[Component]:
    """The servers of the stack."""
    scripts = scripts_folder()
    airflow_health = f"http://{HOST}:{airflow_port}/api/v2/monitor/health"
    mlflow = [f"{scripts}/mlflow", "server", "--workers", "1", "--host", host, "--port", str(mlflow_port)]
    mlflow += ["--backend-store-uri", store_uri(), "--artifacts-destination", str(artifacts())]
    if host == HOST:
        # The root is the folder itself, not the server's proxy for it: a training without the server writes there too.
        # Who reaches the server from another machine, or from outside a container, has no such folder.
        mlflow += ["--default-artifact-root", str(artifacts())]
    logs = data_dir() / "logs"

    def airflow(name: str, health_key: str, *options: str) -> Component:
        command = [f"{scripts}/airflow", name, *options]
        return Component(f"Airflow {name}", command, logs / f"{name}.log", airflow_health, health_key)

    return [
        Component("MLflow server", mlflow, logs / "mlflow.log", f"http://{HOST}:{mlflow_port}/health"),
        airflow("api-server", "metadatabase"),
        airflow("scheduler", "scheduler", "--skip-serve-logs"),
        airflow("dag-processor", "dag_processor"),
        # For missed deadlines.
        airflow("triggerer", "triggerer"),
    ]


def up(*, host: str, airflow_port: int, mlflow_port: int, before_start: Callable[[dict[str, str]], None]) -> int:
    """Run the stack until Ctrl-C or SIGTERM, then stop it all. Returns the exit code.

    `before_start` gets the stack's environment when the ports are known to be free.
    """
    console = Console(highlight=False, soft_wrap=True)
    if airflow_port == mlflow_port:
        raise UserError(f"--airflow-port and --mlflow-port are both {airflow_port}: choose two")
    check_port(host, airflow_port, "--airflow-port")
    check_port(host, mlflow_port, "--mlflow-port")
    environment = prepare(airflow_port, f"http://{HOST}:{mlflow_port}", host)
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    before_start(environment)
    password = _password()
    with console.status("Airflow's database ..."):
        migrate(environment)
    stack = components(host, airflow_port, mlflow_port)
    try:
        for component in stack:
            component.start(environment)
        _await_ready(stack, console)
        console.print(f"\n[bold]Airflow[/]  http://{HOST}:{airflow_port}   user admin, password {password}")
        console.print(f"[bold]MLflow[/]   http://{HOST}:{mlflow_port}   no login")
        console.print(f"Logs are in {data_dir() / 'logs'}. Ctrl-C stops everything.")
        while True:
            for component in stack:
                component.check_alive()
            time.sleep(1)
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(stack, console)


def _await_ready(stack: list[Component], console: Console) -> None:
    waiting, started = list(stack), time.monotonic()
    last_said = started
    while waiting:
        for component in list(waiting):
            component.check_alive()
            if component.is_ready():
                waiting.remove(component)
                console.print(f"  {component.name} is ready after {time.monotonic() - started:.0f} s")
                last_said = time.monotonic()
        if time.monotonic() - started > READY_TIMEOUT_S:
            names = ", ".join(component.name for component in waiting)
            raise RetryableError(f"{names}: not ready after {READY_TIMEOUT_S} s; see {data_dir() / 'logs'}")
        if waiting and time.monotonic() - last_said > 4:
            console.print(f"  waiting for {', '.join(c.name for c in waiting)}, {time.monotonic() - started:.0f} s")
            last_said = time.monotonic()
        time.sleep(0.3)


def _stop(stack: list[Component], console: Console) -> None:
    console.print("stopping ...")
    for component in stack:
        if component.process is not None and component.process.poll() is None:
            component.process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for component in stack:
        component.stop(deadline)
    console.print("stopped")


def _password() -> str:
    # The file that Airflow's SimpleAuthManager keeps its passwords in; it makes one where there is none.
    file = data_dir() / "airflow" / "simple_auth_manager_passwords.json.generated"
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(json.dumps({"admin": secrets.token_urlsafe(9)}))
    return str(json.loads(file.read_text())["admin"])
