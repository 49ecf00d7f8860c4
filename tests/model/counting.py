"""An evaluation made of rows that a test gives, for the tests of metrics, of early stopping and of plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmean.model.evaluation.evaluator import Evaluation, Mistake

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


def counted(
    labels_B: np.ndarray, probabilities_BK: np.ndarray, losses_B: np.ndarray, worst: Sequence[Mistake] = ()
) -> Evaluation:
    evaluation = Evaluation.empty(probabilities_BK.shape[1])
    evaluation.add(labels_B, probabilities_BK, losses_B)
    evaluation.worst = list(worst)
    return evaluation
