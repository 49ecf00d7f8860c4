"""From spark-submit to the first optimizer step, line by line, and what the first epoch takes over the second.

python -m benchmarks.first_step [--repeats 5] [--work /tmp/shardmean-benchmarks]

Each time the real job runs by `spark-submit --master local[2] jobs/cli/__main__.py train` with MLflow on SQLite, two
epochs of the LeNet recipe on Fashion-MNIST, two workers. benchmarks/hooks notes from outside when each process reaches
which point; of two workers the later one counts. Medians of the repeats, after one run to warm the disk and to make
MLflow's database.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.fashion import fashion_dataset
from benchmarks.measure import parsed, parser, print_table
from shardmean.jobs.spark.java import java_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
STEP = "first step"


def main() -> None:
    """Run the job and print both tables."""
    options = parsed(parser(__doc__))
    fashion_dataset(options.work)
    runs = [Events(run_job(options.work)) for _ in range(options.repeats + 1)][1:]
    _print("From spark-submit to the end of the first optimizer step:", "s", [start_lines(run) for run in runs])
    epochs = [(epoch_lines(run, 0), epoch_lines(run, 1)) for run in runs]
    print("The first epoch and the second:")
    rows = []
    for name in epochs[0][0]:
        first, second = (statistics.median(pair[number][name] for pair in epochs) for number in (0, 1))
        rows.append([name, f"{first:.2f}", f"{second:.2f}", f"{first - second:+.2f}"])
    print_table(["", "first, s", "second, s", "more, s"], rows)


def run_job(work: Path) -> list[dict[str, float | str]]:
    """Run the job once and return what its processes noted, with the time of the start."""
    folder = work / "first-step"
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    folder.mkdir(exist_ok=True)
    events = folder / "events.jsonl"
    events.unlink(missing_ok=True)
    started = time.time()
    done = subprocess.run(_command(work, folder), env=_environment(events), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the job failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    return [{"point": "submit", "begin": started, "end": started, "process": 0}, *lines]


def _command(work: Path, folder: Path) -> list[str]:
    submit = shutil.which("spark-submit", path=str(Path(sys.executable).parent)) or "spark-submit"
    return [
        submit, "--master", "local[2]", str(ROOT / "jobs" / "cli" / "__main__.py"), "train",
        "--pipeline", str(ROOT / "configs" / "pipelines" / "fashion.yaml"),
        f"dataset_uri={work / 'fashion-train'}", f"checkpoint_uri={folder / 'checkpoints'}", "num_epochs=2",
        "device=cpu", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", f"tracking.artifact_uri={folder / 'artifacts'}",
        "tracking.experiment=first-step", "tracking.registered_model=first-step",
    ]  # fmt: skip


def _environment(events: Path) -> dict[str, str]:
    paths = [str(ROOT / "benchmarks" / "hooks"), str(ROOT)]
    return {
        **os.environ,
        **(java_environment() or {}),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(paths),
        "SHARDMEAN_EVENTS": str(events),
    }


class Events:
    """What the processes of one run noted."""

    def __init__(self, lines: Sequence[dict[str, float | str]]) -> None:
        self._lines = lines

    def begin(self, point: str, number: int = 0) -> float:
        """When a point was begun, of several times the one with this number."""
        return self._of(point, "begin")[number]

    def end(self, point: str, number: int = 0) -> float:
        """When a point was ended, likewise."""
        return self._of(point, "end")[number]

    def last(self, point: str, which: str, after: float, before: float) -> float:
        """The last time at which a point was begun or ended between two times: the slower worker's."""
        return max(at for at in self._of(point, which) if after <= at <= before)

    def started(self, point: str) -> float:
        """When the process that noted a point began."""
        process = next(line["process"] for line in self._lines if line["point"] == point)
        return next(float(line["begin"]) for line in self._lines if line["process"] == process)

    def _of(self, point: str, which: str) -> list[float]:
        found = sorted(float(line[which]) for line in self._lines if line["point"] == point)
        assert found, f"no process noted {point!r}: was it renamed? See benchmarks/hooks"
        return found


def start_lines(run: Events) -> dict[str, float]:
    """Seconds of each part of the way to the first step."""
    epoch = run.begin("Trainer.next_state"), run.end("Trainer.next_state")
    arrived = run.last("attempt", "begin", *epoch)
    marks = {
        "spark-submit: JVM, then the driver's Python": run.started("train"),
        "the driver's imports, config, checks of the DataSet": run.begin("SparkSession.Builder.getOrCreate"),
        "Spark session": run.end("SparkSession.Builder.getOrCreate"),
        "MLflow run": run.end("Tracker.__init__"),
        "to the first segment": epoch[0],
        "Spark job, start of Python for the workers": run.last("process", "begin", *epoch),
        "workers' imports": arrived,
        "DataSet and plan": run.last("WorkerGroup.__init__", "begin", *epoch),
        "workers meet": run.last("WorkerGroup.__init__", "end", *epoch),
        "network, reading and the first step": run.last(STEP, "end", *epoch),
    }
    times = [run.begin("submit"), *marks.values()]
    parts = {name: later - earlier for name, earlier, later in zip(marks, times, times[1:], strict=False)}
    return {**parts, "together": times[-1] - times[0]}


def epoch_lines(run: Events, number: int) -> dict[str, float]:
    """Seconds of each part of one epoch; the slower worker's."""
    begin, end = run.begin("Trainer.next_state", number), run.end("Trainer.next_state", number)
    arrived = run.last("attempt", "begin", begin, end)
    met = run.last("WorkerGroup.__init__", "end", begin, end)
    stepped = run.last(STEP, "end", begin, end)
    left = run.last("attempt", "end", begin, end)
    return {
        "Spark job, worker processes' start and imports": arrived - begin,
        "DataSet, plan, workers meet": met - arrived,
        "network, reading and the first step": stepped - met,
        "all other steps and averagings": left - stepped,
        "results to the driver": end - left,
        "together": end - begin,
    }


def _print(title: str, unit: str, runs: list[dict[str, float]]) -> None:
    print(title)
    rows = []
    for name in runs[0]:
        values = [run[name] for run in runs]
        rows.append([name, *(f"{f(values):.2f}" for f in (statistics.median, min, max))])
    print_table(["", f"median {unit}", "min", "max"], rows)


if __name__ == "__main__":
    main()
