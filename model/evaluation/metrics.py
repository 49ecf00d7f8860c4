"""The arithmetic of an evaluation's metrics, from counts that add up over workers. Pure numpy.

Every metric is a finite float, and 0 where there is nothing to divide by. docs/evaluation.md defines each.

Shapes: B rows, K classes, M confidence bins, S score bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_CONFIDENCE_BINS = 15  # as Guo et al. (2017)
# Two counts per class and score bin take 4 bytes each: 1.3 MB for 10 classes, 4.2 MB for 32 to 2,048.
MIN_SCORE_BINS, MAX_SCORE_BINS, MAX_SCORE_CELLS = 2**8, 2**14, 2**19
# ln(p / (1 - p)) of about the smallest normal float32 p and the largest below 1; beyond the scale, bins widen with it.
_MIN_LOGIT, _MAX_LOGIT, _LOGIT_SCALE = -87, 17, 8


def class_metrics(confusion_KK: NDArray[np.int32]) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
    """Rows of each class, rows predicted as it, precision, recall and F1, each (K,); zero_division=0."""
    actual_K, predicted_K, hits_K = confusion_KK.sum(axis=1), confusion_KK.sum(axis=0), confusion_KK.diagonal()
    return {
        "examples": actual_K,
        "predicted": predicted_K,
        "precision": hits_K / np.maximum(1, predicted_K),
        "recall": hits_K / np.maximum(1, actual_K),
        "f1": 2 * hits_K / np.maximum(1, actual_K + predicted_K),
    }


def averages(confusion_KK: NDArray[np.int32]) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over classes as scikit-learn does.

    macro: mean over the classes that occur as true or predicted ones; weighted: by true rows; micro: over all rows,
    which is the accuracy, since every row has one true and one predicted class.
    """
    per_class = class_metrics(confusion_KK)
    actual_K, num_rows = per_class["examples"], max(1, int(confusion_KK.sum()))
    metrics = {"accuracy": int(confusion_KK.trace()) / num_rows}
    occurs_K = (actual_K > 0) | (per_class["predicted"] > 0)
    for name in ("precision", "recall", "f1"):
        metrics[f"{name}_macro"] = float(per_class[name].sum() / max(1, np.count_nonzero(occurs_K)))
        metrics[f"{name}_micro"] = metrics["accuracy"]
        metrics[f"{name}_weighted"] = float(per_class[name] @ actual_K) / num_rows
    return metrics


def mcc(confusion_KK: NDArray[np.int32]) -> float:
    """Matthews correlation coefficient for K classes (Gorodkin 2004, R_K), -1 to 1."""
    actual_K, predicted_K = confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)
    num_rows, num_hits = int(actual_K.sum()), int(confusion_KK.trace())
    covariance = num_rows * num_hits - int(actual_K @ predicted_K)
    actual_variance = num_rows**2 - int(actual_K @ actual_K)
    predicted_variance = num_rows**2 - int(predicted_K @ predicted_K)
    scale = math.sqrt(actual_variance) * math.sqrt(predicted_variance)
    return max(-1.0, min(1.0, covariance / scale)) if scale else 0.0


@dataclass(frozen=True, eq=False)
class Calibration:
    """A reliability diagram: rows, hits and sum of confidences in M equal bins (low, high] of the confidence.

    The confidence of a row is the probability of its predicted class.
    """

    num_M: NDArray[np.float64]
    hits_M: NDArray[np.float64]
    confidence_M: NDArray[np.float64]

    def ece(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean over rows of their bin's |accuracy - confidence|."""
        return float(np.abs(self.hits_M - self.confidence_M).sum() / max(1, self.num_M.sum()))

    def mean_confidences(self) -> NDArray[np.float64]:
        """Mean probability in each bin, (M,); 0 for an empty one."""
        return self.confidence_M / np.maximum(1, self.num_M)

    def accuracies(self) -> NDArray[np.float64]:
        """Share of hits in each bin, (M,); 0 for an empty one."""
        return self.hits_M / np.maximum(1, self.num_M)


def confidence_bins(confidences_B: NDArray[np.float32], is_hit_B: NDArray[np.bool_]) -> NDArray[np.float64]:
    """What `Calibration` is made of, (3, M), for rows with these probabilities of their predicted class."""
    bins_B = np.ceil(confidences_B.astype(np.float64) * NUM_CONFIDENCE_BINS).astype(np.int64) - 1
    bins_B = np.clip(bins_B, 0, NUM_CONFIDENCE_BINS - 1)
    weights = (np.ones(len(bins_B)), is_hit_B, confidences_B)
    return np.stack([np.bincount(bins_B, weights=weight, minlength=NUM_CONFIDENCE_BINS) for weight in weights])


def num_score_bins(num_classes: int) -> int:
    """Score bins of each class: fewer for more classes, so that an evaluation's size is limited."""
    return min(MAX_SCORE_BINS, max(MIN_SCORE_BINS, MAX_SCORE_CELLS // num_classes))


def score_bins(probabilities_BK: NDArray[np.float32], num_bins: int) -> NDArray[np.int64]:
    """The bin of each probability p, which rises with p; bins widen as p / (1 - p) goes away from 1."""
    return np.searchsorted(_bin_edges(num_bins), probabilities_BK)


@cache
def _bin_edges(num_bins: int) -> NDArray[np.float32]:
    lowest, highest = np.arcsinh([_MIN_LOGIT / _LOGIT_SCALE, _MAX_LOGIT / _LOGIT_SCALE])
    logits_S = _LOGIT_SCALE * np.sinh(np.linspace(lowest, highest, num_bins - 1))
    return np.asarray(1 / (1 + np.exp(-logits_S)), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class RocCurves:
    """One class against the rest, for each class: rows of other classes and of the class, in each bin of its score."""

    negatives_KS: NDArray[np.int32]
    positives_KS: NDArray[np.int32]

    def curve(self, class_number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False and true positive rate of one class as its threshold falls, from (0, 0) to (1, 1)."""
        counts_2S = np.stack([self.negatives_KS[class_number], self.positives_KS[class_number]])
        falling_2S = np.cumsum(counts_2S[:, counts_2S.any(axis=0)][:, ::-1], axis=1)
        rates_2S = falling_2S / np.maximum(1, counts_2S.sum(axis=1, keepdims=True))
        false_S, true_S = np.concatenate([np.zeros((2, 1)), rates_2S], axis=1)
        return false_S, true_S

    def areas(self) -> NDArray[np.float64]:
        """Area under each class's curve, (K,); NaN for a class without rows, or without rows of others.

        It is the share of pairs (a row of the class, a row of another) in which the first has the higher score; pairs
        in one bin count half (Hanley and McNeil 1982).
        """
        below_KS = np.cumsum(self.negatives_KS, axis=1) - self.negatives_KS / 2
        return self._share_of_pairs(self.positives_KS * below_KS)

    def bounds(self) -> NDArray[np.float64]:
        """Most by which each class's area can differ from that of the scores themselves, (K,).

        Only pairs that share a bin can be in another order, and they count half: at most half of them is wrong.
        """
        return self._share_of_pairs(self.positives_KS * (self.negatives_KS / 2))

    def averages(self) -> dict[str, float]:
        """Area over the classes that have one: their mean (macro), and weighted by their rows."""
        areas_K, rows_K = self.areas(), self.positives_KS.sum(axis=1)
        has_area_K = ~np.isnan(areas_K)
        areas_N, rows_N = areas_K[has_area_K], rows_K[has_area_K]
        return {
            "roc_auc_macro": float(areas_N.sum() / max(1, len(areas_N))),
            "roc_auc_weighted": float(areas_N @ rows_N / max(1, rows_N.sum())),
        }

    def _share_of_pairs(self, counts_KS: NDArray[np.float64]) -> NDArray[np.float64]:
        pairs_K = self.positives_KS.sum(axis=1) * self.negatives_KS.sum(axis=1)
        return np.where(pairs_K > 0, counts_KS.sum(axis=1) / np.maximum(1, pairs_K), np.nan)
