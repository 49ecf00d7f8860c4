"""Sides of a comparison in images a second, and the table that says whether ours is as fast as it should be."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.measure import print_table, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from benchmarks.etl_ours import Run
    from benchmarks.processes import Processes


class Rates:
    """Sides that make examples of as many images, and what ours says of its runs."""

    def __init__(self, num_images: int) -> None:
        self._num_images = num_images
        self._runs: list[Run] = []
        self._bare_cpu_s: list[float] = []

    def of(self, work: Callable[[], object]) -> Callable[[], float]:
        """Images a second of any work."""
        return lambda: self._num_images / seconds(work)

    def of_bare(self, processes: Processes) -> Callable[[], float]:
        """Images a second of the bare loop, whose processes answer with their CPU seconds."""
        return self.of(lambda: self._bare_cpu_s.append(sum(processes.ask("all"))))

    def of_ours(self, run: Callable[[], Run]) -> Callable[[], float]:
        """Images a second inside the Spark jobs of a run of the ETL."""

        def rate() -> float:
            self._runs.append(run())
            return self._num_images / self._runs[-1].tasks_s

        return rate

    def print_account(self) -> None:
        """Ours beyond the rate inside its Spark jobs: medians over the runs after the first."""
        runs = self._runs[1:]

        def median(value: Callable[[Run], float]) -> float:
            return statistics.median(map(value, runs))

        whole_s = median(lambda run: run.whole_s)
        rows: dict[str, object] = {
            "images/s with all that the driver does": f"{self._num_images / whole_s:.0f}",
            "seconds of the whole run": f"{whole_s:.2f}",
            "... of its Spark jobs": f"{median(lambda run: run.tasks_s):.2f}",
            "... of the first of them, which reads the images": f"{median(lambda run: run.jobs_s[0]):.2f}",
            "tasks of that job": len(runs[-1].accounts[0]),
            "share of the cores' time in which one ran": f"{median(lambda run: run.busy):.0%}",
            "CPU seconds of all tasks": f"{median(lambda run: run.cpu_s):.2f}",
            "CPU seconds of the bare loop": f"{statistics.median(self._bare_cpu_s[1:]):.2f}",
            "most memory of a Python worker, MiB": f"{median(lambda run: run.peak_mib):.0f}",
        }
        print("Ours in detail (medians):")
        print_table(["", ""], rows.items())


def print_aims(metrics: Mapping[str, Sequence[float]], aims: Iterable[tuple[str, str, float]]) -> None:
    """A row for each (side, other, aim): how many times the other's median the side's is, and what it should be."""
    medians = {name: statistics.median(values) for name, values in metrics.items()}
    rows = [
        [
            f"{side} against {other}",
            f"{medians[side] / medians[other]:.3f}",
            f"{aim:g}",
            _verdict(medians, side, other, aim),
        ]
        for side, other, aim in aims
        if other in medians
    ]
    print_table(["", "ratio", "aim", ""], rows)


def _verdict(medians: Mapping[str, float], side: str, other: str, aim: float) -> str:
    return "reached" if medians[side] >= aim * medians[other] else "missed"
