"""The plot of where a training's time went: a row per worker, its phases along the run's seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from shardmean.model.training.phase_timer import PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

COLORS = {
    "start": "#9aa5b1",
    "wait": "#d64545",
    "step": "#0b6bcb",
    "average": "#f0b429",
    "evaluate": "#3ebd93",
    "Spark": "#e4e7eb",
}
MAX_WORKERS = 32


def timeline(timings: Sequence[dict[str, Any]]) -> Figure:
    """The plot of a checkpoint's timeline: segments, each with its seconds and each worker's seconds by phase.

    Within a segment a phase's seconds are drawn together, in the order in which phases begin. `Spark` is the rest: the
    job's start and end, and waiting until the other workers end.
    """
    num_workers = min(MAX_WORKERS, max((len(timing["workers"]) for timing in timings), default=1))
    figure = Figure(figsize=(12, 1.8 + 0.35 * num_workers), layout="constrained")
    axes = figure.subplots()
    for rank in range(num_workers):
        for name, spans in _spans(timings, rank).items():
            axes.broken_barh(spans, (rank - 0.35, 0.7), color=COLORS[name], linewidth=0)
    total = sum(timing["seconds"] for timing in timings)
    axes.set_yticks(range(num_workers), [f"worker {rank}" for rank in range(num_workers)])
    axes.invert_yaxis()
    axes.set(xlabel="seconds of training", xlim=(0, max(total, 1e-3)), title=_title(timings, total))
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [Patch(color=color, label=name) for name, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _spans(timings: Sequence[dict[str, Any]], rank: int) -> dict[str, list[tuple[float, float]]]:
    """Starts and lengths of one worker's phases, in seconds of training."""
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in COLORS}
    left = 0.0
    for timing in timings:
        end = left + timing["seconds"]
        if rank < len(timing["workers"]):
            seconds = timing["workers"][rank]
            spark = max(0.0, timing["seconds"] - sum(seconds.values()))
            for name in ("Spark", *PHASES):
                width = spark if name == "Spark" else seconds.get(name, 0.0)
                spans[name].append((left, width))
                left += width
        left = end
    return spans


def _title(timings: Sequence[dict[str, Any]], total: float) -> str:
    if not timings or total == 0:
        return "no segment was trained"
    busy = sum(
        sum(worker.get("step", 0.0) for worker in timing["workers"]) / len(timing["workers"]) for timing in timings
    )
    return f"{len(timings)} segments in {total:.1f} s; a worker steps {busy / total:.0%} of the time"
