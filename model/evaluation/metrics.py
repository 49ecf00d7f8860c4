"""The arithmetic of an evaluation's figures, from counts that add up over workers. Pure numpy.

Every figure is a finite float, and 0 where there is nothing to divide by. docs/evaluation.md defines each.

Shapes: B rows, K classes, M confidence bins, S steps of ROC curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .bounded_histogram import BoundedHistogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_CONFIDENCE_BINS = 15  # as Guo et al. (2017)
_SCORE_BITS = 31
# The smallest float32 above 0 is one unit of 2^-149: sums of float32 values are exact whole numbers of units.
_UNIT_BITS = 149


def in_units(values_B: NDArray[np.floating]) -> NDArray[np.object_]:
    """Finite float32 values as Python's whole numbers of units, whose sums are exact in any order."""
    whole = [int(value) for value in np.ldexp(values_B.astype(np.float64), _UNIT_BITS).tolist()]
    return np.array(whole, dtype=object)


def mean_of_units(total: int, num_rows: int) -> float:
    """The mean of `num_rows` values whose sum is `total` units, rounded once; 0 for no rows."""
    return total / (max(1, num_rows) << _UNIT_BITS)


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Rows of each class: truly of it, taken for it, and both."""

    actual_K: NDArray[np.int64]
    predicted_K: NDArray[np.int64]
    hits_K: NDArray[np.int64]

    @classmethod
    def of(cls, pairs: BoundedHistogram, num_classes: int) -> ClassCounts:
        """The counts in a tally of (true class x K + found class)."""
        actual_N, predicted_N = np.divmod(pairs.keys_N, num_classes)
        sums_3K = np.zeros((3, num_classes), dtype=np.int64)
        np.add.at(sums_3K[0], actual_N, pairs.counts_N)
        np.add.at(sums_3K[1], predicted_N, pairs.counts_N)
        np.add.at(sums_3K[2], actual_N, np.where(actual_N == predicted_N, pairs.counts_N, 0))
        return cls(*sums_3K)

    @property
    def num_rows(self) -> int:
        """Rows of all classes."""
        return int(self.actual_K.sum())

    @property
    def accuracy(self) -> float:
        """Share of rows whose class was found."""
        return int(self.hits_K.sum()) / max(1, self.num_rows)

    def per_class(self) -> dict[str, NDArray[np.float64]]:
        """Precision, recall and F1 of each class, (K,); as scikit-learn's with zero_division=0."""
        return {
            "precision": self.hits_K / np.maximum(1, self.predicted_K),
            "recall": self.hits_K / np.maximum(1, self.actual_K),
            "f1": 2 * self.hits_K / np.maximum(1, self.actual_K + self.predicted_K),
        }

    def averages(self) -> dict[str, float]:
        """Precision, recall and F1 over classes, as scikit-learn averages them.

        macro: mean over the classes that occur as true or found ones; weighted: by true rows; micro: over all rows,
        which is the accuracy, since every row has one true and one found class.
        """
        occurs_K = (self.actual_K > 0) | (self.predicted_K > 0)
        metrics = {}
        for name, values_K in self.per_class().items():
            metrics[f"{name}_macro"] = float(values_K[occurs_K].mean()) if occurs_K.any() else 0.0
            metrics[f"{name}_micro"] = self.accuracy
            metrics[f"{name}_weighted"] = float(values_K @ self.actual_K) / max(1, self.num_rows)
        return metrics

    def mcc(self) -> float:
        """Matthews' correlation coefficient for K classes (Gorodkin 2004, R_K), -1 to 1."""
        num_rows, hits = self.num_rows, int(self.hits_K.sum())
        together = num_rows * hits - int(self.actual_K @ self.predicted_K)
        actual_spread = num_rows**2 - int(self.actual_K @ self.actual_K)
        predicted_spread = num_rows**2 - int(self.predicted_K @ self.predicted_K)
        spread = math.sqrt(actual_spread) * math.sqrt(predicted_spread)
        return max(-1.0, min(1.0, together / spread)) if spread else 0.0


@dataclass(frozen=True, eq=False)
class Calibration:
    """A reliability diagram: rows in M equal bins (low, high] of the found class's probability, their hits and sums.

    `confidence_M` is the sum of those probabilities in units (see `in_units`).
    """

    num_M: NDArray[np.int64]
    hits_M: NDArray[np.int64]
    confidence_M: NDArray[np.object_]

    @classmethod
    def of(cls, confidences_B: NDArray[np.floating], is_hit_B: NDArray[np.bool_]) -> Calibration:
        """The diagram of rows whose class was found with these probabilities, rightly or not."""
        bins_B = np.ceil(confidences_B.astype(np.float64) * NUM_CONFIDENCE_BINS).astype(np.int64) - 1
        bins_B = np.clip(bins_B, 0, NUM_CONFIDENCE_BINS - 1)
        confidence_M = np.zeros(NUM_CONFIDENCE_BINS, dtype=object)
        np.add.at(confidence_M, bins_B, in_units(confidences_B))
        num_M = np.bincount(bins_B, minlength=NUM_CONFIDENCE_BINS)
        return cls(num_M, np.bincount(bins_B[is_hit_B], minlength=NUM_CONFIDENCE_BINS), confidence_M)

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(self.num_M + other.num_M, self.hits_M + other.hits_M, self.confidence_M + other.confidence_M)

    def ece(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean over rows of their bin's |accuracy - confidence|."""
        gaps = (
            abs((int(hits) << _UNIT_BITS) - sum_) for hits, sum_ in zip(self.hits_M, self.confidence_M, strict=True)
        )
        return mean_of_units(sum(gaps), int(self.num_M.sum()))

    def mean_confidences(self) -> NDArray[np.float64]:
        """Mean probability of each bin, (M,); 0 for an empty one."""
        means = [mean_of_units(sum_, int(num)) for sum_, num in zip(self.confidence_M, self.num_M, strict=True)]
        return np.array(means, dtype=np.float64)

    def accuracies(self) -> NDArray[np.float64]:
        """Share of hits in each bin, (M,); 0 for an empty one."""
        return self.hits_M / np.maximum(1, self.num_M)


def tally_scores(
    labels_B: NDArray[np.int64], probabilities_BK: NDArray[np.float32], *, max_keys: int
) -> BoundedHistogram:
    """All scores of some rows for `RocCurves`: a key is whether the row is of the class, the class, and its score.

    A score's bits rise with the probability p: those of float32 p up to 1/2, and above it those of 1 - p, which float32
    has exactly, turned about. So no two probabilities share a key, and a tally that has dropped b bits still knows
    min(p, 1 - p) to a factor of 1 + 2^(b - 23).
    """
    num_rows, num_classes = probabilities_BK.shape
    small_BK = np.minimum(probabilities_BK, np.float32(1) - probabilities_BK)
    bits_BK = np.ascontiguousarray(small_BK).view(np.int32).astype(np.int64)
    half = int(np.float32(0.5).view(np.int32))
    scores_BK = np.where(probabilities_BK > 0.5, 2 * half - bits_BK, bits_BK)
    series_BK = np.broadcast_to(np.arange(num_classes), (num_rows, num_classes)).copy()
    series_BK[np.arange(num_rows), labels_B] += num_classes
    return BoundedHistogram.of(((series_BK << _SCORE_BITS) | scores_BK).ravel(), max_keys=max_keys)


@dataclass(frozen=True, eq=False)
class RocCurves:
    """One class against the rest, for each class: its rows and the others' at each distinct score.

    Steps are in order of class, and within it of rising score.
    """

    num_classes: int
    classes_S: NDArray[np.int64]
    positives_S: NDArray[np.int64]
    negatives_S: NDArray[np.int64]
    is_exact: bool

    @classmethod
    def of(cls, scores: BoundedHistogram, num_classes: int) -> RocCurves:
        """The curves of scores that `tally_scores` counted."""
        score_bits = _SCORE_BITS - scores.dropped_bits
        series_N, scores_N = scores.keys_N >> score_bits, scores.keys_N & ((1 << score_bits) - 1)
        is_positive_N, classes_N = series_N >= num_classes, series_N % num_classes
        steps_S, places_N = np.unique((classes_N << score_bits) | scores_N, return_inverse=True)
        positives_S, negatives_S = np.zeros((2, len(steps_S)), dtype=np.int64)
        np.add.at(positives_S, places_N, np.where(is_positive_N, scores.counts_N, 0))
        np.add.at(negatives_S, places_N, np.where(is_positive_N, 0, scores.counts_N))
        return cls(num_classes, steps_S >> score_bits, positives_S, negatives_S, scores.dropped_bits == 0)

    def curve(self, class_number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False and true positive rate of one class as its threshold falls, from (0, 0) to (1, 1)."""
        of_class_S = self.classes_S == class_number
        rates = []
        for counts_S in (self.negatives_S, self.positives_S):
            falling = np.cumsum(counts_S[of_class_S][::-1])
            rates.append(np.concatenate([[0.0], falling / max(1, falling[-1] if len(falling) else 0)]))
        return rates[0], rates[1]

    def areas(self) -> NDArray[np.float64]:
        """Area under each class's curve, (K,); NaN for a class without rows, or without rows of others.

        It is the share of pairs (a row of the class, a row of another) in which the first has the higher score, equal
        scores counting half (Hanley and McNeil 1982); sums are exact in int64.
        """
        below_S = np.cumsum(self.negatives_S) - self.negatives_S
        below_S -= np.concatenate([[0], np.cumsum(self._sums(self.negatives_S))])[self.classes_S]
        return self._share_of_pairs(self.positives_S * (2 * below_S + self.negatives_S))

    def bounds(self) -> NDArray[np.float64]:
        """Most by which each class's area can differ from that of the scores before they lost bits, (K,).

        Only pairs that share a bin can have been in another order, and they count half: at most half of them is wrong.
        """
        shared_S = self.positives_S * self.negatives_S
        return self._share_of_pairs(np.zeros_like(shared_S) if self.is_exact else shared_S)

    def averages(self) -> dict[str, float]:
        """Area over the classes that have one: their mean (macro), and by their rows (weighted)."""
        areas_K, rows_K = self.areas(), self._sums(self.positives_S)
        has_area_K = ~np.isnan(areas_K)
        if not has_area_K.any():
            return {"roc_auc_macro": 0.0, "roc_auc_weighted": 0.0}
        return {
            "roc_auc_macro": float(areas_K[has_area_K].mean()),
            "roc_auc_weighted": float(np.average(areas_K[has_area_K], weights=rows_K[has_area_K])),
        }

    def _sums(self, counts_S: NDArray[np.int64]) -> NDArray[np.int64]:
        sums_K = np.zeros(self.num_classes, dtype=np.int64)
        np.add.at(sums_K, self.classes_S, counts_S)
        return sums_K

    def _share_of_pairs(self, halves_S: NDArray[np.int64]) -> NDArray[np.float64]:
        pairs_K = self._sums(self.positives_S) * self._sums(self.negatives_S)
        halves_K = self._sums(halves_S)
        shares_K = np.full(self.num_classes, np.nan)
        np.divide(halves_K, 2 * pairs_K, out=shares_K, where=pairs_K > 0)
        return shares_K
