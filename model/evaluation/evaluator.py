"""Evaluations that merge: each worker counts its own rows, the driver adds the counts, and the figures are exact.

All figures are of one thing: the float32 probabilities that the model gives each row. The found class is the one of the
highest probability, the lowest class number of equal ones, as in the model that is served. Any partition of the same
rows gives the same figures, to the last bit. Memory depends on the number of classes, not on that of rows.

Shapes: B examples, K classes, R ranks, P pairs of true and found class, N chosen classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..dataset.loader import minibatches, on_device
from ..errors import UserError
from .bounded_histogram import BoundedHistogram
from .metrics import Calibration, ClassCounts, RocCurves, in_units, mean_of_units, tally_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from ..dataset.manifest import Split
    from ..dataset.reader import Dataset, Examples
    from ..dataset.sampler import EpochPlan
    from ..networks.classifier import Classifier

TOP_KS = (3, 5)
# ROC curves are exact up to so many scores (rows x classes): 13,107 rows of 10 classes. A key takes 16 bytes.
MIN_SCORE_KEYS = 2**17
SCORE_KEYS_PER_CLASS = 256
_MERGE_EVERY = 8


@dataclass(frozen=True)
class Mistake:
    """One example whose class was not found: true and predicted class number, the latter's probability, pixels."""

    path: str
    label: int
    predicted: int
    probability: float
    loss: float
    pixels_CHW: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Counts over some rows.

    `pairs` tallies (true class x K + found class), `scores` what ROC curves need, `ranks_R[r]` the rows with r classes
    ranked above the true one (the last: or more), `loss_units` the exact sum of losses.
    """

    num_classes: int
    pairs: BoundedHistogram
    scores: BoundedHistogram
    ranks_R: NDArray[np.int64]
    calibration: Calibration
    loss_units: int
    worst: list[Mistake]

    @classmethod
    def of(
        cls,
        labels_B: NDArray[np.int64],
        probabilities_BK: NDArray[np.float32],
        losses_B: NDArray[np.float32],
        worst: Sequence[Mistake] = (),
    ) -> Evaluation:
        """The evaluation of some rows with their class probabilities and finite losses."""
        num_classes = probabilities_BK.shape[1]
        predicted_B = probabilities_BK.argmax(axis=1)
        ranks_B = np.minimum(_ranks(labels_B, probabilities_BK), max(TOP_KS))
        return cls(
            num_classes,
            BoundedHistogram.of(labels_B * num_classes + predicted_B, max_keys=num_classes**2),
            tally_scores(labels_B, probabilities_BK, max_keys=max(MIN_SCORE_KEYS, SCORE_KEYS_PER_CLASS * num_classes)),
            np.bincount(ranks_B, minlength=max(TOP_KS) + 1),
            Calibration.of(probabilities_BK.max(axis=1), predicted_B == labels_B),
            int(in_units(losses_B).sum()),
            list(worst),
        )

    @classmethod
    def empty(cls, num_classes: int) -> Evaluation:
        """An evaluation of no rows."""
        no_losses = np.zeros(0, dtype=np.float32)
        return cls.of(np.zeros(0, dtype=np.int64), np.zeros((0, num_classes), dtype=np.float32), no_losses)

    @classmethod
    def merged(cls, parts: Iterable[Evaluation], *, num_mistakes: int) -> Evaluation:
        """The evaluation of all parts' rows together, with the worst mistakes, at most `num_mistakes`."""
        parts = list(parts)
        mistakes = [mistake for part in parts for mistake in part.worst]
        return cls(
            parts[0].num_classes,
            BoundedHistogram.merged([part.pairs for part in parts]),
            BoundedHistogram.merged([part.scores for part in parts]),
            np.sum([part.ranks_R for part in parts], axis=0),
            reduce(add, [part.calibration for part in parts]),
            sum(part.loss_units for part in parts),
            sorted(mistakes, key=lambda m: (-m.loss, m.path))[:num_mistakes],
        )

    @property
    def num_examples(self) -> int:
        """Rows counted."""
        return int(self.pairs.counts_N.sum())

    @property
    def num_wrong(self) -> int:
        """Rows whose class was not found."""
        return self.num_examples - int(self.class_counts.hits_K.sum())

    @property
    def accuracy(self) -> float:
        """Share of rows whose class was found."""
        return self.class_counts.accuracy

    @property
    def class_counts(self) -> ClassCounts:
        """Rows of each class: true, found, and both."""
        return ClassCounts.of(self.pairs, self.num_classes)

    @property
    def roc_curves(self) -> RocCurves:
        """ROC curves of each class against the rest."""
        return RocCurves.of(self.scores, self.num_classes)

    def confusion(self, classes_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """A matrix (N, N) whose `[i, j]` counts the examples of the i-th given class that were taken for the j-th."""
        places_K = np.full(self.num_classes, -1)
        places_K[classes_N] = np.arange(len(classes_N))
        rows_P, columns_P = places_K[np.stack(np.divmod(self.pairs.keys_N, self.num_classes))]
        is_inside_P = (rows_P >= 0) & (columns_P >= 0)
        counts_NN = np.zeros((len(classes_N), len(classes_N)), dtype=np.int64)
        counts_NN[rows_P[is_inside_P], columns_P[is_inside_P]] = self.pairs.counts_N[is_inside_P]
        return counts_NN

    def per_class(self) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
        """Figures of each class, (K,): its examples, those predicted as it, precision, recall, F1, area and its bound.

        The area and its bound are NaN for a class that has no area (see `RocCurves.areas`).
        """
        counts, curves = self.class_counts, self.roc_curves
        return {
            "examples": counts.actual_K,
            "predicted": counts.predicted_K,
            **counts.per_class(),
            "roc_auc": curves.areas(),
            "roc_auc_bound": curves.bounds(),
        }

    def metrics(self) -> dict[str, float]:
        """All figures by name, each finite; `model.training_config.FigureName` lists them."""
        counts = self.class_counts
        return {
            "accuracy": counts.accuracy,
            "loss": mean_of_units(self.loss_units, counts.num_rows),
            **{
                f"top_{k}_accuracy": int(self.ranks_R[:k].sum()) / max(1, counts.num_rows)
                for k in TOP_KS
                if k < self.num_classes
            },
            **counts.averages(),
            "mcc": counts.mcc(),
            **self.roc_curves.averages(),
            "ece": self.calibration.ece(),
        }


def _ranks(labels_B: NDArray[np.int64], probabilities_BK: NDArray[np.float32]) -> NDArray[np.int64]:
    own_B1 = np.take_along_axis(probabilities_BK, labels_B[:, None], axis=1)
    is_lower_number_BK = np.arange(probabilities_BK.shape[1]) < labels_B[:, None]
    is_above_BK = (probabilities_BK > own_B1) | ((probabilities_BK == own_B1) & is_lower_number_BK)
    ranks_B: NDArray[np.int64] = np.count_nonzero(is_above_BK, axis=1)
    return ranks_B


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

    `beat` is called after each minibatch. Raises UserError for class scores that are not finite.
    """
    parts = [Evaluation.empty(len(dataset.manifest.class_names))]
    model.eval()
    windows = plan.windows(rank)
    for batch in minibatches(dataset, windows, split, batch_size=plan.layout.batch_size, with_names=True):
        probabilities_BK, losses_B = _predicted(model, batch, split)
        mistakes = _worst_mistakes(batch, probabilities_BK, losses_B, num_mistakes)
        parts.append(Evaluation.of(batch.labels_N, probabilities_BK, losses_B, mistakes))
        if len(parts) > _MERGE_EVERY:
            parts = [Evaluation.merged(parts, num_mistakes=num_mistakes)]
        beat()
    model.train()
    return Evaluation.merged(parts, num_mistakes=num_mistakes)


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
