"""The plots of a training: augmentation, timeline, learning curves, metrics by class, mistakes, calibration.

Each is a matplotlib figure. With more classes than a plot can name it shows the worst and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from shardmean.model.training.phase_timer import PHASES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from shardmean.model.evaluation.evaluator import Evaluation
    from shardmean.model.training.checkpoint import Checkpoint

MAX_CLASSES, MAX_CURVES = 30, 10
# Class and file names may hold dollars, which are no formulas.
styled = rc_context({
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "text.parse_math": False,
})  # fmt: skip
INK, TRAIN, HELD_OUT, GAP = "#1f2933", "#9aa5b1", "#0b6bcb", "#e8833a"
MAX_WORKERS = 32
PHASE_COLORS = {
    "start": "#9aa5b1", "wait": "#d64545", "step": "#0b6bcb", "average": "#f0b429", "evaluate": "#3ebd93",
    "Spark": "#e4e7eb",
}  # fmt: skip


def of_training(
    final: Checkpoint, evaluation: Evaluation, class_names: Sequence[str], *, split: str, metric: str
) -> dict[str, Figure]:
    """All plots of a finished training, by name; `evaluation` is of `split`, `metric` chose the best epoch."""
    return {
        "timeline": timeline(final.timeline),
        "learning_curves": learning_curves(final.history, final.best_epoch, metric),
        "calibration": calibration(evaluation, split),
        "class_metrics": class_metrics(evaluation, class_names, split),
        "confusion_matrix": confusion_matrix(evaluation, class_names, split),
        "roc_curves": roc_curves(evaluation, class_names, split),
        "worst_mistakes": worst_mistakes(evaluation, class_names, split),
    }


def augmentation(images_NECHW: NDArray[np.uint8]) -> Figure:
    """A row for each of N training images: as it is, then as each of the first epochs shows it to the network."""
    num_rows, num_columns = images_NECHW.shape[:2]
    figure = Figure(figsize=(1.3 * num_columns, 1.3 * num_rows + 0.7), layout="constrained")
    figure.suptitle("Training images, and what augmentation makes of them in each epoch")
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for (row, column), axes in np.ndenumerate(all_axes):
        axes.set_axis_off()
        axes.imshow(images_NECHW[row, column].transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
        if row == 0:
            axes.set_title(f"epoch {column}" if column else "as it is", fontsize=9)
    return figure


@styled
def timeline(timings: Sequence[dict[str, Any]]) -> Figure:
    """Where the time went: a row per worker, its phases along the seconds of the checkpoint's segments.

    Within a segment a phase's seconds are drawn together, in the order in which phases begin. `Spark` is the rest: the
    job's start and end, and waiting until the other workers end.
    """
    num_workers = min(MAX_WORKERS, max((len(timing["workers"]) for timing in timings), default=1))
    figure = Figure(figsize=(12, 1.8 + 0.35 * num_workers), layout="constrained")
    axes = figure.subplots()
    for rank in range(num_workers):
        for name, spans in _spans(timings, rank).items():
            label = name if rank == 0 else None
            axes.broken_barh(spans, (rank - 0.35, 0.7), color=PHASE_COLORS[name], linewidth=0, label=label)
    axes.set_yticks(range(num_workers), [f"worker {rank}" for rank in range(num_workers)])
    axes.invert_yaxis()
    total = sum(timing["seconds"] for timing in timings)
    axes.set(xlabel="seconds of training", xlim=(0, max(total, 1e-3)), title="no segment was trained")
    if total:
        busy = sum(worker.get("step", 0.0) / len(one["workers"]) for one in timings for worker in one["workers"])
        axes.set_title(f"{len(timings)} segments in {total:.1f} s; a worker steps {busy / total:.0%} of the time")
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(PHASE_COLORS))
    return figure


def _spans(timings: Sequence[dict[str, Any]], rank: int) -> dict[str, list[tuple[float, float]]]:
    """Starts and lengths of one worker's phases, in seconds of training."""
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in PHASE_COLORS}
    start = 0.0
    for timing in timings:
        for seconds in timing["workers"][rank : rank + 1]:
            spark, left = max(0.0, timing["seconds"] - sum(seconds.values())), start
            for name, width in ({"Spark": spark} | {phase: seconds.get(phase, 0.0) for phase in PHASES}).items():
                spans[name].append((left, width))
                left += width
        start += timing["seconds"]
    return spans


@styled
def learning_curves(history: Sequence[dict[str, float]], best_epoch: int, metric: str = "accuracy") -> Figure:
    """Loss, and the validation metric that decides, by epoch; a line marks the epoch whose state became the model.

    Where the loss decides, the accuracy stands beside it. Without a validation split the training loss decides.
    """
    shown = "accuracy" if metric == "loss" else metric
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, deciding = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    loss.plot(epochs, [h["train_loss"] for h in history], color=TRAIN, marker=".", label="train")
    if all("validation_loss" in h for h in history):
        loss.plot(epochs, [h["validation_loss"] for h in history], color=HELD_OUT, marker=".", label="validation")
        deciding.plot(epochs, [100 * h[f"validation_{shown}"] for h in history], color=HELD_OUT, marker=".")
        deciding.set(title=f"Validation {shown.replace('_', ' ')} (%)", xlabel="epoch")
    else:
        metric = "train loss"
        deciding.set(title="No validation split", xlabel="epoch")
    loss.set(title="Loss (cross-entropy)", xlabel="epoch", yscale="log")
    for axes in (loss, deciding):
        label = f"chosen by {metric.replace('_', ' ')}: epoch {best_epoch}"
        axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=":", label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.legend()
    return figure


@styled
def confusion_matrix(evaluation: Evaluation, class_names: Sequence[str], split: str) -> Figure:
    """Rows are true classes, columns found ones; color is the share of the true class, numbers are counts."""
    counts_KK = evaluation.confusion_KK
    actual_K = counts_KK.sum(axis=1)
    shown_N, more = _first(counts_KK.diagonal() - actual_K, MAX_CLASSES, "most mistakes")
    shown_N.sort()
    counts_NN = counts_KK[np.ix_(shown_N, shown_N)]
    share_NN = counts_NN / np.maximum(1, actual_K[shown_N, None])
    size = max(5, 3 + 0.4 * len(shown_N))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share_NN, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    accuracy = f"accuracy {evaluation.accuracy:.2%} over {evaluation.num_examples:,} examples"
    axes.set_title(f"{split}: {accuracy}{more}")
    labels = [_short(class_names[number]) for number in shown_N]
    axes.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 60)
    axes.set_yticks(range(len(labels)), labels)
    for (row, column), count in np.ndenumerate(counts_NN):
        if count:
            ink = "white" if share_NN[row, column] > 0.5 else INK
            axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=8)
    return figure


@styled
def class_metrics(evaluation: Evaluation, class_names: Sequence[str], split: str) -> Figure:
    """Precision, recall and F1 of each class, the lowest F1 on top."""
    metrics = evaluation.per_class()
    shown_N, more = _first(metrics["f1"], MAX_CLASSES, "lowest F1")
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(shown_N)), layout="constrained")
    axes = figure.subplots()
    places_N = np.arange(len(shown_N))
    precision_N, recall_N, f1_N = (100 * metrics[name][shown_N] for name in ("precision", "recall", "f1"))
    axes.hlines(places_N, np.minimum(precision_N, recall_N), np.maximum(precision_N, recall_N), color=TRAIN, zorder=1)
    axes.scatter(precision_N, places_N, color=HELD_OUT, marker=">", label="precision")
    axes.scatter(recall_N, places_N, color=GAP, marker="<", label="recall")
    axes.scatter(f1_N, places_N, color=INK, marker="|", s=90, label="F1")
    labels = [f"{_short(class_names[number])}  ({metrics['examples'][number]:,})" for number in shown_N]
    axes.set_yticks(places_N, labels)
    axes.set(xlabel="precision, recall, F1 (%)", ylim=(len(shown_N) - 0.4, -0.6))
    axes.set_title(f"{split}: classes (examples) by F1{more}")
    axes.grid(axis="x", color=TRAIN, alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@styled
def calibration(evaluation: Evaluation, split: str) -> Figure:
    """Reliability diagram: accuracy by the probability of the predicted class, above how many examples have it."""
    bins = evaluation.calibration
    has_rows_M, edges = bins.num_M > 0, np.linspace(0, 1, len(bins.num_M) + 1)
    left_M, width = edges[:-1][has_rows_M], edges[1]
    accuracy_M, sure_M = bins.accuracies()[has_rows_M], bins.mean_confidences()[has_rows_M]
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(left_M, accuracy_M, width, align="edge", color=HELD_OUT, edgecolor="white", label="accuracy")
    upper.hlines(sure_M, left_M, left_M + width, color=GAP, linewidth=2.5, label="mean probability")
    upper.vlines(left_M + width / 2, accuracy_M, sure_M, color=GAP, linewidth=1.2)
    upper.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="perfect")
    upper.set(ylabel="accuracy", ylim=(0, 1.02))
    upper.set_title(f"{split}: expected calibration error {bins.ece():.2%}")
    upper.legend(loc="upper left")
    lower.bar(left_M, bins.num_M[has_rows_M], width, align="edge", color=TRAIN, edgecolor="white")
    lower.set(xlabel="probability of the predicted class", ylabel="examples", xlim=(0, 1))
    lower.set(yscale="log", ylim=(0.7, 2 * max(1, bins.num_M.max())))
    return figure


@styled
def roc_curves(evaluation: Evaluation, class_names: Sequence[str], split: str) -> Figure:
    """ROC curve of each class against the rest, the lowest area first; the right side widens low false rates."""
    curves = evaluation.roc_curves
    areas_K = curves.areas()
    shown_N, more = _first(areas_K, MAX_CURVES, "lowest area")
    shown_N = shown_N[~np.isnan(areas_K[shown_N])]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    whole, widened = figure.subplots(1, 2)
    lowest_false, lowest_true = 0.1, 1.0
    for place, number in enumerate(shown_N):
        false_N, true_N = curves.curve(int(number))
        first = int((false_N > 0).argmax())
        lowest_false = min(lowest_false, false_N[first])
        lowest_true = min(lowest_true, true_N[false_N <= false_N[first]][-1])
        label = f"{_short(class_names[number])}  {areas_K[number]:.4f}"
        for axes in (whole, widened):
            axes.step(false_N, true_N, where="post", color=f"C{place}", zorder=3 - place / 10, label=label)
    whole.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    whole.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    widened.set(xlabel="false positive rate (logarithmic)", xscale="log", xlim=(lowest_false, 1))
    widened.set_ylim(lowest_true - 0.1 * (1 - lowest_true) - 0.01, 1.01)
    area = f"mean area {evaluation.metrics()['roc_auc_macro']:.4f}"
    figure.suptitle(f"{split}: each class against the rest, {area}{more}")
    if len(shown_N):
        widened.legend(loc="upper left", bbox_to_anchor=(1, 1), title="class  area")
    return figure


def _first(values_K: NDArray[Any], limit: int, why: str) -> tuple[NDArray[np.int64], str]:
    """The classes of the smallest values, and what a title says where there are more."""
    shown_N = np.argsort(values_K, kind="stable")[:limit]
    more = f"\nthe {limit} of {len(values_K):,} classes with the {why}" if len(values_K) > limit else ""
    return shown_N, more


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


@styled
def worst_mistakes(evaluation: Evaluation, class_names: Sequence[str], split: str) -> Figure:
    """The examples of greatest loss whose class was not found, with what was found and how surely."""
    mistakes = evaluation.worst
    columns = min(6, max(3, len(mistakes)))
    num_rows = max(1, -(-len(mistakes) // columns))
    figure = Figure(figsize=(1.9 * columns, 2.3 * num_rows + 0.6), layout="constrained")
    figure.suptitle(
        f"{split}: the worst {len(mistakes)} of {evaluation.num_wrong:,} mistakes "
        "(true → found, probability of the latter)"
    )
    for number, axes in enumerate(figure.subplots(num_rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(mistakes):
            mistake = mistakes[number]
            axes.imshow(mistake.pixels_CHW.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            found = f"{class_names[mistake.label][:12]} → {class_names[mistake.predicted][:12]}"
            axes.set_title(f"{found}\n{mistake.probability:.0%}", fontsize=9)
            axes.text(0.5, -0.02, mistake.path[-26:], transform=axes.transAxes, ha="center", va="top", fontsize=6)
    return figure
