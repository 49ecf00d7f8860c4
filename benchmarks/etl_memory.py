"""Peak memory of the ETL for few and for ten times as many images: of the driver, of Spark's JVM and of its workers.

python -m benchmarks.etl_memory [small] [photographs] [--work /tmp/shardmean-benchmarks]

Small: 10,000 and 100,000 PNG files of 28 x 28; photographs: 1,000 and 10,000 of 500 x 375 to 224 x 224 RGB. Each is a
run of `shardmean vectorize` in a process of its own, whose tree is asked ten times a second for its peaks (VmHWM).
What workers share with each other counts in each.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import psutil

from benchmarks.etl_ours import CORES, SETTINGS
from benchmarks.measure import parsed, parser, peak_mib, print_table
from benchmarks.pictures import noise_folder, photograph_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[Path, int], Path]

INTERVAL_S = 0.1
KINDS = ("driver", "JVM", "worker")
PHOTOGRAPHS = {"image.height_px": 224, "image.width_px": 224, "image.channels": 3}
PARTS: dict[str, tuple[Make, tuple[int, int], dict[str, int]]] = {
    "small": (noise_folder, (10_000, 100_000), {}),
    "photographs": (photograph_folder, (1_000, 10_000), PHOTOGRAPHS),
}


def main() -> None:
    """Measure and print a table for each part asked for, or for all."""
    options = parser(__doc__, is_timed=False)
    options.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)}")
    options.add_argument("--divide", type=int, default=1, help="take so many times fewer images, to try the program")
    given = parsed(options)
    for part in given.parts or PARTS:
        make, sizes, image = PARTS[part]
        sizes = tuple(num // given.divide for num in sizes)
        peaks = {num: peaks_mib(make(given.work, num), given.work / "memory-set", image) for num in sizes}
        few, many = (peaks[num] for num in sizes)
        print(f"{part}, local[{CORES}], peaks in MiB; the aim is that they do not grow:")
        rows = [[kind, f"{few[kind]:.0f}", f"{many[kind]:.0f}", f"{many[kind] / few[kind]:.2f}"] for kind in KINDS]
        print_table(["", *(f"{num:,} images" for num in sizes), "ratio"], rows)


def peaks_mib(images: Path, dataset: Path, image: dict[str, int]) -> dict[str, float]:
    """The highest peak of a process of each kind in one run of the ETL."""
    shutil.rmtree(dataset, ignore_errors=True)
    params = {"source.uri": str(images), "dataset_uri": str(dataset), "max_rejected_fraction": 1, **image}
    params |= {f"spark.{key}": value for key, value in SETTINGS.items()}
    command = [sys.executable, "-m", "shardmean.jobs.cli", "vectorize", "--params", json.dumps(params)]
    peaks: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryFile() as log:
        process = psutil.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            for kind, pid in tree(process):
                peaks[kind] = max(peaks[kind], _peak(pid))
            time.sleep(INTERVAL_S)
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode())
    return peaks


def tree(driver: psutil.Popen) -> list[tuple[str, int]]:
    """The processes of a run that live, and what each is."""
    found = [("driver", driver.pid)]
    for process in _children(driver):
        if _name(process) == "java":
            found.append(("JVM", process.pid))
            found.extend(("worker", worker.pid) for worker in _children(process))
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _peak(pid: int) -> float:
    try:
        return peak_mib(pid)
    except (OSError, IndexError):  # it has ended
        return 0


if __name__ == "__main__":
    main()
