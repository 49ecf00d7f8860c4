"""Evaluations that merge: each worker counts its own rows, the driver adds the counts, and the figures are exact.

Shapes: B examples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from .feed import minibatches
from .replica import on_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from torch import Tensor

    from .manifest import Split
    from .networks import Classifier
    from .plan import EpochPlan
    from .shards import Dataset, Examples


@dataclass(frozen=True)
class Mistake:
    """One example whose class was not found: true and predicted class number, the latter's probability, pixels."""

    path: str
    label: int
    predicted: int
    probability: float
    loss: float
    pixels_CHW: NDArray[np.uint8]


@dataclass
class Evaluation:
    """Counts over some rows. `confusion_KK[i, j]`: examples of class i that were taken for class j."""

    confusion_KK: NDArray[np.int64]
    loss_sum: float = 0.0
    worst: list[Mistake] = field(default_factory=list)

    @classmethod
    def empty(cls, num_classes: int) -> Evaluation:
        """An evaluation of no rows."""
        return cls(np.zeros((num_classes, num_classes), dtype=np.int64))

    @classmethod
    def merged(cls, parts: Iterable[Evaluation], *, num_mistakes: int) -> Evaluation:
        """The evaluation of all parts' rows together."""
        first, *others = parts
        whole = cls(first.confusion_KK.copy(), first.loss_sum)
        whole.keep_worst(first.worst, num_mistakes)
        for part in others:
            whole.confusion_KK += part.confusion_KK
            whole.loss_sum += part.loss_sum
            whole.keep_worst(part.worst, num_mistakes)
        return whole

    def add(self, labels_B: NDArray[np.int64], predicted_B: NDArray[np.int64], losses_B: NDArray[np.float64]) -> None:
        """Count a minibatch."""
        np.add.at(self.confusion_KK, (labels_B, predicted_B), 1)
        self.loss_sum += float(losses_B.sum())

    def keep_worst(self, mistakes: list[Mistake], num_mistakes: int) -> None:
        """Keep the mistakes of the greatest loss, at most `num_mistakes`, in an order that merging leaves alone."""
        self.worst = sorted([*self.worst, *mistakes], key=lambda m: (-m.loss, m.path))[:num_mistakes]

    @property
    def num_examples(self) -> int:
        """Rows counted."""
        return int(self.confusion_KK.sum())

    @property
    def accuracy(self) -> float:
        """Share of rows whose class was found."""
        return float(self.confusion_KK.trace()) / max(1, self.num_examples)

    def figures(self) -> dict[str, float]:
        """Accuracy, mean loss, and precision, recall and F1 as means over classes (a class never seen is left out).

        Equal to scikit-learn's macro averages over the classes that occur, with zero_division=0.
        """
        hits_K = self.confusion_KK.diagonal().astype(np.float64)
        actual_K, predicted_K = self.confusion_KK.sum(axis=1), self.confusion_KK.sum(axis=0)
        recall_K = hits_K / np.maximum(1, actual_K)
        precision_K = hits_K / np.maximum(1, predicted_K)
        f1_K = 2 * hits_K / np.maximum(1, actual_K + predicted_K)
        occurs_K = (actual_K > 0) | (predicted_K > 0)
        return {
            "accuracy": self.accuracy,
            "loss": self.loss_sum / max(1, self.num_examples),
            "precision_macro": float(precision_K[occurs_K].mean()) if occurs_K.any() else 0.0,
            "recall_macro": float(recall_K[occurs_K].mean()) if occurs_K.any() else 0.0,
            "f1_macro": float(f1_K[occurs_K].mean()) if occurs_K.any() else 0.0,
        }


@torch.inference_mode()
def evaluate(
    model: Classifier,
    dataset: Dataset,
    plan: EpochPlan,
    rank: int,
    split: Split,
    *,
    num_mistakes: int,
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """A worker's part of an evaluation: counts and losses of its rows, and its worst mistakes with their pixels.

    `beat` is called after each minibatch.
    """
    device = next(model.parameters()).device
    part = Evaluation.empty(len(dataset.manifest.class_names))
    model.eval()
    windows = plan.windows(rank)
    for batch in minibatches(dataset, windows, split, batch_size=plan.dealing.batch_size, with_names=True):
        images_BCHW, labels_B = on_device(batch, device)
        scores_BK = model(images_BCHW)
        losses_B = nn.functional.cross_entropy(scores_BK, labels_B, reduction="none")
        predicted_B = scores_BK.argmax(dim=1)
        part.add(labels_B.cpu().numpy(), predicted_B.cpu().numpy(), losses_B.double().cpu().numpy())
        part.keep_worst(_mistakes(batch, scores_BK, losses_B), num_mistakes)
        beat()
    model.train()
    return part


def _mistakes(batch: Examples, scores_BK: Tensor, losses_B: Tensor) -> list[Mistake]:
    probabilities_BK = scores_BK.softmax(dim=1).cpu()
    predicted_B = probabilities_BK.argmax(dim=1)
    wrong = (predicted_B != torch.from_numpy(batch.labels_N)).nonzero().flatten().tolist()
    return [
        Mistake(
            path=batch.paths[row],
            label=int(batch.labels_N[row]),
            predicted=int(predicted_B[row]),
            probability=float(probabilities_BK[row, predicted_B[row]]),
            loss=float(losses_B[row]),
            pixels_CHW=batch.features_NCHW[row],
        )
        for row in wrong
    ]
