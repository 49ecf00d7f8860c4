"""What all benchmarks share: their options, timing of several sides in turn, and what they print."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyspark
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

DEFAULT_WORK = Path("/tmp/shardmean-benchmarks")


def parser(description: str | None, *, is_timed: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes; one that is not timed has no repeats."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if is_timed:
        made.add_argument("--repeats", type=int, default=5, help="times each side is measured, after one to warm up")
    made.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder for DataSets and results, made if absent")
    return made


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given, with the work folder made and the machine printed."""
    options = made.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    return options


def in_turn(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measure all sides one after the other, `repeats` times after one round to warm up; each gives a number."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, measure in sides.items():
            os.sync()  # what one side left to the disk is not the next one's burden
            found = measure()
            if repeat:
                values[name].append(found)
    return values


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def print_compared(metrics: Mapping[str, Sequence[float]], unit: str, *, base: str, places: int = 2) -> None:
    """A row per side: median, least and most of its values, and the median as a multiple of the base's."""
    base_median = statistics.median(metrics[base])
    rows = [
        [name, *(f"{f(values):.{places}f}" for f in (statistics.median, min, max)), _ratio(values, base_median)]
        for name, values in metrics.items()
    ]
    print_table(["", f"median {unit}", "min", "max", f"x {base}"], rows)


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table in Markdown, as docs/performance.md shows it."""
    lines = [list(head), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n", flush=True)


def machine() -> str:
    """The machine, the versions and the commit, in one line."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory_kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return (
        f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}, {memory_kib / 2**20:.0f} GiB, "
        f"{_system()}, Python {platform.python_version()}, torch {torch.__version__}, pyspark {pyspark.__version__}, "
        f"commit {commit()}"
    )


def commit() -> str:
    """The commit of this code, marked when files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def peak_mib(pid: int) -> float:
    """The most memory that a process ever had in RAM, pages of mapped files included."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _ratio(values: Sequence[float], base: float) -> str:
    return f"{statistics.median(values) / base:.3f}" if base else "-"


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
