"""Histograms whose bins a person can read: round edges, logarithmic where the values span more than a decade."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_BINS = 32
NUM_TICKS = 6
LOG_FROM = 12.0
# The rounded series of IEC 60063: about equal steps on a logarithmic axis, each an edge that is easily said.
_SERIES = {
    12: (1, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2),
    6: (1, 1.5, 2.2, 3.3, 4.7, 6.8),
    3: (1, 2, 5),
    1: (1,),
}
_OCTAVE = 6  # bins of the aspect ratio between 1:1 and 2:1
_MAX_OCTAVES = 2

Say = Callable[[float], str]


@dataclass(frozen=True)
class Histogram:
    """Counts of equal-looking bins: a label for each, and some places of the axis (0 to 1) with what stands there."""

    title: str
    counts: list[int]
    labels: list[str]
    ticks: list[tuple[float, str]]
    summary: str

    @property
    def is_single(self) -> bool:
        """Whether one value is all there is: then `summary` says everything."""
        return len(self.counts) == 1


def histogram(title: str, values: NDArray[np.integer], say: Say) -> Histogram | None:
    """A histogram of whole numbers from 0 up; `say` writes one of them. None where there are no values."""
    if not len(values):
        return None
    low, high = int(values.min()), int(values.max())
    if low == high:
        return Histogram(title, [len(values)], [say(low)], [], f"all {say(low)}")
    edges = _log_edges(low, high) if low > 0 and high / low >= LOG_FROM else _linear_edges(low, high)
    counts = np.histogram(values, edges)[0].tolist()
    labels = [_range(first, last, say) for first, last in pairwise(edges)]
    run_periodically = -(-len(edges) // NUM_TICKS)
    ticks = [(place / len(counts), say(edges[place])) for place in range(0, len(edges), run_periodically)]
    summary = f"{say(low)} to {say(high)}, median {say(float(np.median(values)))}"
    return Histogram(title, counts, labels, ticks, summary)


def aspect_histogram(title: str, widths: NDArray[np.integer], heights: NDArray[np.integer]) -> Histogram | None:
    """A histogram of width / height on a logarithmic axis whose middle bin is the square."""
    if not len(widths):
        return None
    limit = _OCTAVE * _MAX_OCTAVES
    places = np.clip(np.rint(_OCTAVE * np.log2(widths / heights)), -limit, limit).astype(np.int64)
    reach = max(_OCTAVE, int(np.abs(places).max()))
    counts = np.bincount(places + reach, minlength=2 * reach + 1).tolist()
    upright, lying = int((widths < heights).sum()), int((widths > heights).sum())
    parts = {"upright": upright, "square": len(widths) - upright - lying, "lying": lying}
    summary = ", ".join(f"{100 * number / len(widths):.0f} % {name}" for name, number in parts.items() if number)
    if len(np.unique(widths / heights)) == 1:
        ratio = f"{widths[0] / heights[0]:.2f}"
        return Histogram(title, [len(widths)], [ratio], [], f"all {ratio}")
    ratios = [2 ** (place / _OCTAVE) for place in range(-reach, reach + 1)]
    labels = [f"about {ratio:.2f}" for ratio in ratios]
    if reach == limit:
        labels[0], labels[-1] = f"{ratios[0]:.2f} or less", f"{ratios[-1]:.2f} or more"
    octaves = range(-(reach // _OCTAVE), reach // _OCTAVE + 1)
    ticks = [((_OCTAVE * octave + reach + 0.5) / len(counts), _octave(octave)) for octave in octaves]
    return Histogram(title, counts, labels, ticks, summary)


def say_number(value: float) -> str:
    """A number as a person writes it: 1,234."""
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.1f}"


def say_bytes(value: float) -> str:
    """A number of bytes as a person writes it: 1.5 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.0f} B"


def _octave(octave: int) -> str:
    return f"{2**octave}:1" if octave >= 0 else f"1:{2**-octave}"


def _range(first: float, last: float, say: Say) -> str:
    return say(first) if last - first == 1 else f"{say(first)} to {say(last)}"


def _linear_edges(low: int, high: int) -> list[float]:
    step = max(1, _round_up((high - low) / (MAX_BINS - 8)))
    first = low // step
    return [float(step * place) for place in range(first, high // step + 2)]


def _round_up(value: float) -> int:
    power = 10.0 ** math.floor(math.log10(value))
    return math.ceil(next(step * power for step in (1, 2, 5, 10) if step * power >= value))


def _log_edges(low: int, high: int) -> list[float]:
    decades = math.log10(high / low)
    series: Sequence[float] = next((s for size, s in _SERIES.items() if size * decades <= MAX_BINS - 8), _SERIES[1])
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    steps = [step * 10.0**decade for decade in range(first, last + 1) for step in series]
    edges = sorted({float(round(step)) for step in steps})
    begin = max(place for place, edge in enumerate(edges) if edge <= low)
    end = min(place for place, edge in enumerate(edges) if edge > high)
    return edges[begin : end + 1]
