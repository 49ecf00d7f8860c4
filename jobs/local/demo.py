"""`make demo`: the whole pipeline on scikit-learn's 1,797 handwritten digits, by Airflow's own machinery."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape

from shardmean.jobs.common.local_paths import data_dir
from shardmean.jobs.common.logging import LOG_MARK
from shardmean.jobs.config.loading import load_pipeline, pipelines_folder
from shardmean.jobs.local import dag_runs, stack
from shardmean.jobs.local.child_process import follow
from shardmean.jobs.local.dag_runs import MARK
from shardmean.jobs.promote.by_hand import promoter
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.dataset.manifest import load_manifest, manifest_uri
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from shardmean.jobs.config.job import TrainJob, VectorizeJob
    from shardmean.jobs.config.pipeline import Pipeline

console = Console(highlight=False, soft_wrap=True)


def demo() -> int:
    """Make what is missing of images, DataSet and training, print a summary, and return the exit code."""
    started = time.monotonic()
    environment = stack.prepare()
    pipeline = _load_demo(environment)
    vectorize_job, train_job = pipeline.vectorize, pipeline.train
    images = Path(vectorize_job.source.uri)
    _write_digits(images)
    is_current = _dataset_is_current(vectorize_job)
    result = _finished_training(train_job) if is_current else None
    if result is None:
        with console.status("Airflow's database ..."):
            stack.migrate(environment)
        stages = ("train", "promote") if is_current else ("vectorize", "train", "promote")
        _run_dags([f"{pipeline.name}_{stage}" for stage in stages], environment)
        result = _newest_result()
        with promoter(result["model_name"], result["tracking_uri"]) as registered:
            result["aliases"] = registered.aliases_of(result["model_version"])
        _memory().write_text(json.dumps({"settings": _settings(train_job), "result": result}, indent=1))
    else:
        console.print("images, DataSet and model are up to date: nothing to do")
    _summarize(result, images)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. `make up` shows it all in Airflow and MLflow.")
    return 0


def write_first_images(environment: dict[str, str]) -> None:
    """Write the demo's images before the first `up`, or its first scheduled run would fail. Writes no others."""
    images = Path(_load_demo(environment).vectorize.source.uri)
    if images == data_dir() / "images" / "digits" and not images.exists() and find_spec("sklearn"):
        _write_digits(images)


def _load_demo(environment: dict[str, str]) -> Pipeline:
    os.environ["SHARDMEAN_HOME"] = environment["SHARDMEAN_HOME"]
    return load_pipeline(pipelines_folder() / "digits.yaml")


def _write_digits(folder: Path) -> None:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the demo's digits come with scikit-learn: pip install 'shardmean[demo]'") from None
    digits = load_digits()
    num_new = 0
    for number, (pixels_HW, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        file = folder / str(label) / f"{number:04d}.png"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            # scikit-learn gives 0 to 16.
            Image.fromarray((pixels_HW * 255 / 16).astype(np.uint8)).save(file)
            num_new += 1
    if num_new:
        console.print(f"wrote {num_new} PNG files of handwritten digits to {folder}")


def _dataset_is_current(job: VectorizeJob) -> bool:
    if not filesystem.exists(manifest_uri(job.dataset_uri)):
        return False
    manifest = load_manifest(job.dataset_uri)
    same_settings = (manifest.image, manifest.split) == (job.image, job.split)
    return same_settings and manifest.source.fingerprint == scan(job.source, job.airflow.allowed_roots).fingerprint


def _memory() -> Path:
    return data_dir() / "demo.json"


def _settings(job: TrainJob) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"airflow", "promote"})


def _finished_training(job: TrainJob) -> dict[str, Any] | None:
    try:
        memory = json.loads(_memory().read_text())
    except (FileNotFoundError, ValueError):
        return None
    result: dict[str, Any] = memory["result"]
    is_same = memory["settings"] == _settings(job) and (data_dir() / "mlflow.db").exists()
    return result if is_same and result["dataset_digest"] == load_manifest(job.dataset_uri).digest else None


def _newest_result() -> dict[str, Any]:
    files = sorted((data_dir() / "results" / "train").glob("*.json"), key=lambda file: file.stat().st_mtime)
    result: dict[str, Any] = json.loads(files[-1].read_text()) if files else {"error": "no result was written"}
    if "error" in result:
        raise RetryableError(f"digits_train: {result['error']}")
    return result


def _run_dags(dag_ids: list[str], environment: dict[str, str]) -> None:
    """Run DAGs with `airflow dags test` and show the jobs' own lines; all lines go to a log file."""
    log_file = data_dir() / "logs" / "demo.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    phase = "Airflow is starting"
    with log_file.open("w") as log:

        def show(line: str) -> bool:
            nonlocal phase
            lines.append(line)
            log.write(f"{line}\n")
            if line.startswith(MARK):
                console.print(f"\n[bold]DAG {line.removeprefix(MARK)}[/]")
                return True
            if "Spark-Submit cmd" in line:
                phase = "Spark is starting"
            if LOG_MARK not in line:
                return False
            console.print(f"  {escape(_message(line))}")
            phase = "Airflow is finishing the run" if "plots:" in line else "the job is working"
            return True

        def beat(seconds: float) -> None:
            console.print(f"  ... {phase}, {seconds:.0f} s", style="dim")

        code = follow([sys.executable, "-m", dag_runs.__name__, *dag_ids], show, beat, env=environment)
    if code or any("state=failed" in line for line in lines):
        tail = "\n".join(lines[-15:])
        raise RetryableError(f"a DAG failed; the end of {log_file}:\n{tail}")


def _message(line: str) -> str:
    # Airflow's log puts the logger's name and file behind our message.
    return re.sub(r" \[airflow\.[^]]*\].*$", "", line.split(f"{LOG_MARK} ", 1)[1].rstrip()).rstrip()


def _summarize(result: dict[str, Any], images: Path) -> None:
    metrics = result["metrics"]
    image = min(images.glob("7/*.png"))
    wrong = round((1 - metrics["accuracy"]) * result["num_examples"])
    console.rule("Result")
    console.print(
        f"{result['split']} accuracy     [bold]{metrics['accuracy']:.2%}[/] ({wrong} wrong of {result['num_examples']})"
    )
    console.print(f"confusion matrix  {result['plots_uri']}/confusion_matrix.png")
    console.print(f"MLflow run        {result['run_id']} in {result['tracking_uri']}")
    aliases = ", ".join(result["aliases"])
    console.print(f"registered model  {result['model_name']} version {result['model_version']} ({aliases})")
    console.print("\nUse it, in .venv/bin/python:\n")
    console.print(f'import mlflow; mlflow.set_tracking_uri("{result["tracking_uri"]}")', style="cyan")
    console.print(f'model = mlflow.pyfunc.load_model("models:/{result["model_name"]}@champion")', style="cyan")
    console.print(f'print(model.predict([{{"image": open("{image}", "rb").read()}}]))', style="cyan", markup=False)
