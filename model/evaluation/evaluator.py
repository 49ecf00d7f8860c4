"""Evaluations that merge: each worker counts its own rows, the driver adds the counts and computes the metrics.

All metrics are of one thing: the float32 probabilities that the model gives each row. The predicted class is the one of
the highest probability, the lowest class number of equal ones, as in the model that is served. The same rows give the
same metrics however they are split over workers, up to the rounding of float64 sums. Memory depends on the number of
classes, not of rows.

Shapes: B examples, K classes, M confidence bins, R ranks, S score bins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..dataset.loader import minibatches, on_device
from ..errors import UserError
from . import metrics
from .metrics import Calibration, RocCurves
from .predictions import Predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..dataset.manifest import Split
    from ..dataset.reader import Dataset, Examples
    from ..dataset.sampler import EpochPlan
    from ..networks.classifier import Classifier

TOP_KS = (3, 5)


@dataclass(frozen=True)
class Mistake:
    """One misclassified example: true and predicted class number, the latter's probability, the loss, the pixels."""

    path: str
    label: int
    predicted: int
    probability: float
    loss: float
    pixels_CHW: NDArray[np.uint8]


@dataclass(eq=False)
class Evaluation:
    """Counts over some rows.

    `confusion_KK[i, j]` counts rows of class i that were predicted as j. `scores_2KS` counts by class and bin of its
    score: rows of other classes, then rows of the class. `ranks_R[r]` counts rows with r classes ranked above the true
    one (the last: or more). `confidence_3M` is as in `metrics.confidence_bins`.
    """

    confusion_KK: NDArray[np.int32]
    scores_2KS: NDArray[np.int32]
    ranks_R: NDArray[np.int64]
    confidence_3M: NDArray[np.float64]
    loss_sum: float = 0.0
    worst: list[Mistake] = field(default_factory=list)
    predictions: Predictions | None = None
    """The rows one by one, where they were asked for."""

    @classmethod
    def empty(cls, num_classes: int) -> Evaluation:
        """An evaluation of no rows."""
        return cls(
            np.zeros((num_classes, num_classes), dtype=np.int32),
            np.zeros((2, num_classes, metrics.num_score_bins(num_classes)), dtype=np.int32),
            np.zeros(max(TOP_KS) + 1, dtype=np.int64),
            np.zeros((3, metrics.NUM_CONFIDENCE_BINS)),
        )

    def add(
        self, labels_B: NDArray[np.int64], probabilities_BK: NDArray[np.float32], losses_B: NDArray[np.float32]
    ) -> None:
        """Count some rows, with their class probabilities and finite losses."""
        _, num_classes, num_bins = self.scores_2KS.shape
        predicted_B, classes_K = probabilities_BK.argmax(axis=1), np.arange(num_classes)
        np.add.at(self.confusion_KK, (labels_B, predicted_B), 1)
        is_own_BK = classes_K == labels_B[:, None]
        cells_BK = (is_own_BK * num_classes + classes_K) * num_bins + metrics.score_bins(probabilities_BK, num_bins)
        self.scores_2KS += np.bincount(cells_BK.ravel(), minlength=self.scores_2KS.size).reshape(self.scores_2KS.shape)
        own_B1 = np.take_along_axis(probabilities_BK, labels_B[:, None], axis=1)
        is_above_BK = (probabilities_BK > own_B1) | ((probabilities_BK == own_B1) & (classes_K < labels_B[:, None]))
        ranks_B = np.minimum(np.count_nonzero(is_above_BK, axis=1), max(TOP_KS))
        self.ranks_R += np.bincount(ranks_B, minlength=len(self.ranks_R))
        self.confidence_3M += metrics.confidence_bins(probabilities_BK.max(axis=1), predicted_B == labels_B)
        self.loss_sum += float(losses_B.sum(dtype=np.float64))

    @classmethod
    def merged(cls, parts: Sequence[Evaluation], *, num_mistakes: int) -> Evaluation:
        """The evaluation of all parts' rows together, with the worst mistakes, at most `num_mistakes`."""
        whole = cls.empty(len(parts[0].confusion_KK))
        for part in parts:
            whole.confusion_KK += part.confusion_KK
            whole.scores_2KS += part.scores_2KS
            whole.ranks_R += part.ranks_R
            whole.confidence_3M += part.confidence_3M
            whole.loss_sum += part.loss_sum
            whole.worst += part.worst
        whole.worst = _worst(whole.worst, num_mistakes)
        predictions = [part.predictions for part in parts if part.predictions is not None]
        whole.predictions = Predictions.concatenated(predictions) if predictions else None
        return whole

    @property
    def num_examples(self) -> int:
        """Rows counted."""
        return int(self.confusion_KK.sum())

    @property
    def num_wrong(self) -> int:
        """Rows of another class than the predicted one."""
        return self.num_examples - int(self.confusion_KK.trace())

    @property
    def accuracy(self) -> float:
        """Share of rows whose predicted class is theirs."""
        return metrics.averages(self.confusion_KK)["accuracy"]

    @property
    def roc_curves(self) -> RocCurves:
        """ROC curves of each class against the rest."""
        return RocCurves(*self.scores_2KS)

    @property
    def calibration(self) -> Calibration:
        """The reliability diagram."""
        return Calibration(*self.confidence_3M)

    def per_class(self) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
        """Metrics of each class, (K,): `metrics.class_metrics`, the area under its ROC curve, and the area's bound.

        The area and its bound are NaN for a class that has no area (see `RocCurves.areas`).
        """
        curves = self.roc_curves
        return {**metrics.class_metrics(self.confusion_KK), "roc_auc": curves.areas(), "roc_auc_bound": curves.bounds()}

    def metrics(self) -> dict[str, float]:
        """All metrics by name, each finite; `config.training.MetricName` lists them."""
        num_rows, num_classes = max(1, self.num_examples), len(self.confusion_KK)
        return {
            "loss": self.loss_sum / num_rows,
            **{f"top_{k}_accuracy": int(self.ranks_R[:k].sum()) / num_rows for k in TOP_KS if k < num_classes},
            **metrics.averages(self.confusion_KK),
            "mcc": metrics.mcc(self.confusion_KK),
            **self.roc_curves.averages(),
            "ece": self.calibration.ece(),
        }


def _worst(mistakes: list[Mistake], limit: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: (-mistake.loss, mistake.path))[:limit]


@torch.inference_mode()
def evaluate(
    model: Classifier,
    dataset: Dataset,
    plan: EpochPlan,
    rank: int,
    split: Split,
    *,
    num_mistakes: int,
    with_predictions: bool = False,
    beat: Callable[[Evaluation], None] = lambda _: None,
) -> Evaluation:
    """A worker's part of an evaluation: counts and losses of its rows, and its worst mistakes with their pixels.

    With `with_predictions` also which class each row got, some 40 bytes a row.
    `beat` is called after each minibatch with what was counted so far. Raises UserError for class scores that are not
    finite.
    """
    evaluation, predictions = Evaluation.empty(len(dataset.manifest.class_names)), []
    model.eval()
    windows = plan.windows(rank)
    for batch in minibatches(dataset, windows, split, batch_size=plan.layout.batch_size, with_names=True):
        probabilities_BK, losses_B = _predicted(model, batch, split)
        evaluation.add(batch.labels_N, probabilities_BK, losses_B)
        mistakes = _worst_mistakes(batch, probabilities_BK, losses_B, num_mistakes)
        evaluation.worst = _worst(evaluation.worst + mistakes, num_mistakes)
        if with_predictions:
            predicted_B = probabilities_BK.argmax(axis=1).astype(np.int32)
            ids_B = np.array(batch.ids, dtype=np.bytes_)
            predictions.append(Predictions(ids_B, batch.labels_N.astype(np.int32), predicted_B))
        beat(evaluation)
    model.train()
    evaluation.predictions = Predictions.concatenated(predictions) if predictions else None
    return evaluation


def _predicted(model: Classifier, batch: Examples, split: Split) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    images_BCHW, labels_B = on_device(batch, next(model.parameters()).device)
    scores_BK = model(images_BCHW).float()
    losses_B = nn.functional.cross_entropy(scores_BK, labels_B, reduction="none").cpu().numpy()
    is_finite_B = np.isfinite(losses_B)
    if not is_finite_B.all():
        first = int(is_finite_B.argmin())
        raise UserError(
            f"{split} split: the loss of {batch.paths[first]} is {losses_B[first]}, as of "
            f"{len(losses_B) - np.count_nonzero(is_finite_B)} of {len(losses_B)} examples read with it: "
            "the model has diverged; lower optimizer.learning_rate"
        )
    return scores_BK.softmax(dim=1).cpu().numpy(), losses_B


def _worst_mistakes(
    batch: Examples, probabilities_BK: NDArray[np.float32], losses_B: NDArray[np.float32], num_mistakes: int
) -> list[Mistake]:
    predicted_B = probabilities_BK.argmax(axis=1)
    wrong = np.flatnonzero(predicted_B != batch.labels_N).tolist()
    return [
        Mistake(
            path=batch.paths[row],
            label=int(batch.labels_N[row]),
            predicted=int(predicted_B[row]),
            probability=float(probabilities_BK[row, predicted_B[row]]),
            loss=float(losses_B[row]),
            # A view would keep the whole minibatch in memory.
            pixels_CHW=batch.features_NCHW[row].copy(),
        )
        for row in sorted(wrong, key=lambda row: (-losses_B[row], batch.paths[row]))[:num_mistakes]
    ]
