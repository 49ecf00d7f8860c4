"""The pictures of a training, each a matplotlib figure: augmentation, curves, confusion matrix, worst mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.evaluation import Evaluation

MAX_NUMBERED_CLASSES = 30
INK, TRAIN, HELD_OUT = "#1f2933", "#9aa5b1", "#0b6bcb"


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


def learning_curves(history: Sequence[dict[str, float]], best_epoch: int) -> Figure:
    """Loss and validation accuracy by epoch; a line marks the epoch whose state became the model."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    loss.plot(epochs, [h["train_loss"] for h in history], color=TRAIN, marker=".", label="train")
    loss.plot(epochs, [h["validation_loss"] for h in history], color=HELD_OUT, marker=".", label="validation")
    loss.set(title="Loss (cross-entropy)", xlabel="epoch", yscale="log")
    accuracy.plot(epochs, [100 * h["validation_accuracy"] for h in history], color=HELD_OUT, marker=".")
    accuracy.set(title="Validation accuracy (%)", xlabel="epoch")
    for axes in (loss, accuracy):
        axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=":", label=f"chosen: epoch {best_epoch}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(frameon=False)
    return figure


def confusion_matrix(evaluation: Evaluation, class_names: Sequence[str], split: str) -> Figure:
    """Rows are true classes, columns found ones; colour is the share of the row, numbers are counts."""
    counts_KK = evaluation.confusion_KK
    size = min(14.0, 3 + 0.5 * len(class_names))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    share_KK = counts_KK / np.maximum(1, counts_KK.sum(axis=1, keepdims=True))
    image = axes.imshow(share_KK, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axes.set(xlabel="found", ylabel="true")
    axes.set_title(f"{split}: {evaluation.accuracy:.2%} of {evaluation.num_examples} examples found")
    if len(class_names) <= MAX_NUMBERED_CLASSES:
        labels = [name if len(name) <= 20 else f"{name[:19]}…" for name in class_names]
        axes.set_xticks(range(len(labels)), labels, rotation=0 if max(map(len, labels)) < 4 else 60, parse_math=False)
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
        for (row, column), count in np.ndenumerate(counts_KK):
            if count:
                ink = "white" if share_KK[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=8)
    return figure


def worst_mistakes(evaluation: Evaluation, class_names: Sequence[str], split: str) -> Figure:
    """The examples of greatest loss whose class was not found, with what was found and how surely."""
    mistakes = evaluation.worst
    columns = min(6, max(3, len(mistakes)))
    num_rows = max(1, -(-len(mistakes) // columns))
    figure = Figure(figsize=(1.9 * columns, 2.3 * num_rows + 0.6), layout="constrained")
    wrong = evaluation.num_examples - int(evaluation.confusion_KK.trace())
    figure.suptitle(f"{split}: the worst {len(mistakes)} of {wrong} mistakes (true → found, probability of the latter)")
    for number, axes in enumerate(figure.subplots(num_rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(mistakes):
            mistake = mistakes[number]
            axes.imshow(mistake.pixels_CHW.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            found = f"{class_names[mistake.label][:12]} → {class_names[mistake.predicted][:12]}"
            axes.set_title(f"{found}\n{mistake.probability:.0%}", fontsize=9, parse_math=False)
            axes.text(
                0.5,
                -0.02,
                mistake.path[-26:],
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=6,
                parse_math=False,
            )
    return figure
