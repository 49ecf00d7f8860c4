"""Histograms of whole numbers, logarithmic where the values span more than a decade."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rich.filesize import decimal

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

NUM_BINS, NUM_TICKS = 24, 6
LOG_FROM = 12.0
BINS_PER_OCTAVE = 6  # of the aspect ratio: an octave leads from 1:1 to 2:1
OCTAVES = ("1:4", "1:2", "1:1", "2:1", "4:1")


@dataclass(frozen=True)
class Histogram:
    """Counts of bins drawn with one width: a label for each, and where on the axis (0 to 1) a number is written."""

    title: str
    counts: list[int]
    labels: list[str]
    ticks: list[tuple[float, str]]
    summary: str

    @property
    def is_single(self) -> bool:
        """Whether one value is all there is: then `summary` says everything."""
        return len(self.counts) == 1


def histogram(title: str, values: NDArray[np.integer], to_text: Callable[[float], str]) -> Histogram | None:
    """A histogram of whole numbers from 0 up, which `to_text` writes. None where there are no values."""
    if not len(values):
        return None
    low, high = int(values.min()), int(values.max())
    if low == high:
        return Histogram(title, [len(values)], [to_text(low)], [], f"all {to_text(low)}")
    edges = _edges(low, high)
    counts = np.histogram(values, edges)[0].tolist()
    labels = [to_text(a) if b - a == 1 else f"{to_text(a)} to {to_text(b)}" for a, b in pairwise(edges)]
    step = -(-len(edges) // NUM_TICKS)
    ticks = [(number / len(counts), to_text(edges[number])) for number in range(0, len(edges), step)]
    summary = f"{to_text(low)} to {to_text(high)}, median {to_text(float(np.median(values)))}"
    return Histogram(title, counts, labels, ticks, summary)


def _edges(low: int, high: int) -> list[float]:
    """Whole numbers: of a few values each has its bin, of many none has less than one."""
    if low > 0 and high / low >= LOG_FROM:
        edges = np.geomspace(low, high + 1, NUM_BINS + 1)
    else:
        step = -(-(high + 1 - low) // NUM_BINS)
        edges = np.arange(low - low % step, high + 1 + step, step, dtype=np.float64)
    return [float(edge) for edge in np.unique(np.rint(edges))]


def aspect_histogram(title: str, widths: NDArray[np.integer], heights: NDArray[np.integer]) -> Histogram | None:
    """A histogram of width / height on a logarithmic axis from 1:4 to 4:1, whose middle bin is the square."""
    if not len(widths):
        return None
    ratios = widths / heights
    if ratios.min() == ratios.max():
        return Histogram(title, [len(ratios)], [f"{ratios[0]:.2f}"], [], f"all {ratios[0]:.2f}")
    limit = BINS_PER_OCTAVE * (len(OCTAVES) // 2)
    bins = np.clip(np.rint(BINS_PER_OCTAVE * np.log2(ratios)), -limit, limit).astype(np.int64)
    counts = np.bincount(bins + limit, minlength=2 * limit + 1).tolist()
    labels = [f"about {2 ** (number / BINS_PER_OCTAVE):.2f}" for number in range(-limit + 1, limit)]
    ticks = [((BINS_PER_OCTAVE * number + 0.5) / len(counts), name) for number, name in enumerate(OCTAVES)]
    shapes = {"upright": widths < heights, "square": widths == heights, "lying": widths > heights}
    summary = ", ".join(f"{100 * is_it.mean():.0f} % {name}" for name, is_it in shapes.items() if is_it.any())
    return Histogram(title, counts, ["0.25 or less", *labels, "4.00 or more"], ticks, summary)


def format_number(value: float) -> str:
    """A number as a person writes it: 1,234."""
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def format_bytes(value: float) -> str:
    """A number of bytes as a person writes it: 1.5 kB."""
    return decimal(round(value))
