"""Histograms of whole numbers, logarithmic where the values span more than a decade."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rich.filesize import decimal

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_BINS, NUM_TICKS = 24, 6
LOG_FROM = 12.0
BINS_PER_OCTAVE, MAX_OCTAVES = 6, 2  # of the aspect ratio: an octave leads from 1:1 to 2:1

Format = Callable[[float], str]


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


def histogram(title: str, values: NDArray[np.integer], to_text: Format) -> Histogram | None:
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
    """A histogram of width / height on a logarithmic axis whose middle bin is the square."""
    if not len(widths):
        return None
    if len(np.unique(widths / heights)) == 1:
        ratio = f"{widths[0] / heights[0]:.2f}"
        return Histogram(title, [len(widths)], [ratio], [], f"all {ratio}")
    limit = BINS_PER_OCTAVE * MAX_OCTAVES
    bins = np.clip(np.rint(BINS_PER_OCTAVE * np.log2(widths / heights)), -limit, limit).astype(np.int64)
    reach = max(BINS_PER_OCTAVE, int(np.abs(bins).max()))
    counts = np.bincount(bins + reach, minlength=2 * reach + 1).tolist()
    ratios = 2.0 ** (np.arange(-reach, reach + 1) / BINS_PER_OCTAVE)
    labels = [f"about {ratio:.2f}" for ratio in ratios]
    if reach == limit:
        labels[0], labels[-1] = f"{ratios[0]:.2f} or less", f"{ratios[-1]:.2f} or more"
    octaves = range(-(reach // BINS_PER_OCTAVE), reach // BINS_PER_OCTAVE + 1)
    names = [f"{2**octave}:1" if octave >= 0 else f"1:{2**-octave}" for octave in octaves]
    at = [(BINS_PER_OCTAVE * octave + reach + 0.5) / len(counts) for octave in octaves]
    shapes = {"upright": widths < heights, "square": widths == heights, "lying": widths > heights}
    summary = ", ".join(f"{100 * is_it.mean():.0f} % {name}" for name, is_it in shapes.items() if is_it.any())
    return Histogram(title, counts, labels, list(zip(at, names, strict=True)), summary)


def format_number(value: float) -> str:
    """A number as a person writes it: 1,234."""
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def format_bytes(value: float) -> str:
    """A number of bytes as a person writes it: 1.5 kB."""
    return decimal(round(value))
