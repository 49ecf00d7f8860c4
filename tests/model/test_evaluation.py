"""An evaluation's laws: its figures are scikit-learn's, and merged parts are the whole in any partition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

from model.evaluation import Evaluation, Mistake

NUM_CLASSES, NUM_MISTAKES = 5, 4
CLASSES = st.integers(0, NUM_CLASSES - 1)
# Losses that floats add exactly, so that the order of adding can not show; few of them, so that some are equal.
ROWS = st.lists(st.tuples(CLASSES, CLASSES, st.integers(0, 6).map(lambda n: n / 8)), max_size=40)
Row = tuple[int, int, float]


def evaluation_of(rows: list[Row], first: int = 0) -> Evaluation:
    part = Evaluation.empty(NUM_CLASSES)
    labels, predicted, losses = np.array(rows, dtype=float).reshape(-1, 3).T
    part.add(labels.astype(np.int64), predicted.astype(np.int64), losses)
    mistakes = [
        Mistake(f"{first + place:03d}.png", label, guess, 0.5, loss, np.zeros((1, 1, 1), np.uint8))
        for place, (label, guess, loss) in enumerate(rows)
        if label != guess
    ]
    part.keep_worst(mistakes, NUM_MISTAKES)
    return part


@settings(deadline=None)
@given(ROWS.filter(bool))
def test_figures_are_scikit_learns(rows):
    labels, predicted = [label for label, _, _ in rows], [guess for _, guess, _ in rows]
    macro = {"average": "macro", "zero_division": 0}
    assert evaluation_of(rows).figures() == pytest.approx({
        "accuracy": accuracy_score(labels, predicted),
        "loss": np.mean([loss for _, _, loss in rows]),
        "precision_macro": precision_score(labels, predicted, **macro),
        "recall_macro": recall_score(labels, predicted, **macro),
        "f1_macro": f1_score(labels, predicted, **macro),
    })  # fmt: skip


@settings(deadline=None)
@given(ROWS.filter(bool))
def test_confusion_has_true_classes_in_rows(rows):
    labels, predicted = [label for label, _, _ in rows], [guess for _, guess, _ in rows]
    expected = confusion_matrix(labels, predicted, labels=range(NUM_CLASSES))
    np.testing.assert_array_equal(evaluation_of(rows).confusion_KK, expected)
    assert evaluation_of(rows).num_examples == len(rows)


def test_no_rows_give_zeros():
    assert set(Evaluation.empty(3).figures().values()) == {0.0}


@given(ROWS, st.lists(st.integers(0, 40), max_size=5), st.randoms(use_true_random=False))
def test_merged_parts_are_the_whole_in_any_partition_and_order(rows, cuts, random):
    bounds = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    pairs = list(itertools.pairwise(bounds)) or [(0, 0)]
    parts = [evaluation_of(rows[first:last], first) for first, last in pairs]
    parts.append(Evaluation.empty(NUM_CLASSES))
    random.shuffle(parts)
    merged, whole = Evaluation.merged(parts, num_mistakes=NUM_MISTAKES), evaluation_of(rows)
    np.testing.assert_array_equal(merged.confusion_KK, whole.confusion_KK)
    assert merged.figures() == whole.figures()
    assert merged.num_examples == whole.num_examples
    assert [(m.path, m.loss) for m in merged.worst] == [(m.path, m.loss) for m in whole.worst]


@given(ROWS.filter(bool), ROWS.filter(bool))
def test_merging_changes_no_part(rows, others):
    parts = [evaluation_of(rows), evaluation_of(others, len(rows))]
    Evaluation.merged(parts, num_mistakes=NUM_MISTAKES)
    for part, again in zip(parts, (evaluation_of(rows), evaluation_of(others, len(rows))), strict=True):
        np.testing.assert_array_equal(part.confusion_KK, again.confusion_KK)
        assert part.loss_sum == again.loss_sum
        assert [m.path for m in part.worst] == [m.path for m in again.worst]


@given(ROWS)
def test_the_worst_mistakes_are_those_of_the_greatest_loss(rows):
    losses = sorted((loss for label, guess, loss in rows if label != guess), reverse=True)
    assert [mistake.loss for mistake in evaluation_of(rows).worst] == losses[:NUM_MISTAKES]


def test_one_part_alone_keeps_the_limit_too():
    rows: list[Row] = [(0, 1, float(n)) for n in range(NUM_MISTAKES)]
    assert len(Evaluation.merged([evaluation_of(rows)], num_mistakes=2).worst) == 2
