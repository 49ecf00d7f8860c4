"""The figures against scikit-learn on the same rows, ordinary ones and those where definitions part ways."""

from __future__ import annotations

import json
import re
import warnings
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve

from shardmean.model.config.training import MetricName
from shardmean.model.evaluation.evaluator import Evaluation
from shardmean.model.evaluation.metrics import RocCurves, in_units, mean_of_units, tally_scores

# More classes than the largest k of top-k.
NUM_CLASSES = 7
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn")
Rows = tuple[np.ndarray, np.ndarray]


def normalized(weights_BK: np.ndarray) -> np.ndarray:
    return (weights_BK / weights_BK.sum(axis=1, keepdims=True)).astype(np.float32)


def losses_of(labels_B: np.ndarray, probabilities_BK: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities_BK[np.arange(len(labels_B)), labels_B], np.float32(1e-30)))


def evaluation_of(rows: Rows) -> Evaluation:
    return Evaluation.of(*rows, losses_of(*rows))


def random_rows(num_rows: int, num_classes: int = NUM_CLASSES, sharpness: float = 2.0, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    labels_B = generator.integers(0, num_classes, num_rows)
    scores_BK = generator.normal(size=(num_rows, num_classes))
    scores_BK[np.arange(num_rows), labels_B] += 1
    return labels_B, normalized(np.exp(sharpness * scores_BK))


def sure_rows(labels: list[int], found: list[int]) -> Rows:
    return np.array(labels), np.eye(NUM_CLASSES, dtype=np.float32)[found]


def absent_class() -> Rows:
    labels_B, probabilities_BK = random_rows(100)
    return labels_B % (NUM_CLASSES - 1), probabilities_BK


def class_never_found() -> Rows:
    labels_B, probabilities_BK = random_rows(100)
    probabilities_BK[:, 2] = 0
    return labels_B, normalized(probabilities_BK)


CASES: dict[str, Rows] = {
    "random": random_rows(500),
    "sharp": random_rows(500, sharpness=40),
    "absent class": absent_class(),
    "class never found": class_never_found(),
    "ties": (random_rows(200)[0], normalized(np.random.default_rng(0).integers(1, 3, (200, NUM_CLASSES)))),
    "uniform": (random_rows(50)[0], normalized(np.ones((50, NUM_CLASSES)))),
    "perfect": sure_rows([0, 1, 2, 3, 4, 5, 6, 6], [0, 1, 2, 3, 4, 5, 6, 6]),
    "all wrong": sure_rows([0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 0]),
    "one row": random_rows(1),
    "one class": (np.full(30, 3), random_rows(30)[1]),
    "one class, always found": sure_rows([3] * 5, [3] * 5),
}
ALL_CASES = pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
WEIGHTS = st.lists(st.integers(0, 6), min_size=NUM_CLASSES, max_size=NUM_CLASSES).filter(any)
ROWS = st.lists(st.tuples(st.integers(0, NUM_CLASSES - 1), WEIGHTS), min_size=1, max_size=30).map(
    lambda rows: (np.array([label for label, _ in rows]), normalized(np.array([weights for _, weights in rows])))
)


def check(rows: Rows) -> None:
    """All figures of some rows are scikit-learn's."""
    labels_B, probabilities_BK = rows
    found_B = probabilities_BK.argmax(axis=1)
    expected = {
        "accuracy": theirs.accuracy_score(labels_B, found_B),
        "loss": losses_of(*rows).astype(np.float64).mean(),
        "mcc": theirs.matthews_corrcoef(labels_B, found_B),
    }
    for average in ("macro", "micro", "weighted"):
        values = theirs.precision_recall_fscore_support(labels_B, found_B, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), values, strict=False):
            expected[f"{name}_{average}"] = value
    for k in (3, 5):
        # scikit-learn gives ties to the higher class number, we to the lower: classes turned about, ours is theirs.
        turned = NUM_CLASSES - 1 - labels_B, probabilities_BK[:, ::-1]
        expected[f"top_{k}_accuracy"] = theirs.top_k_accuracy_score(*turned, k=k, labels=range(NUM_CLASSES))
    areas = {
        k: theirs.roc_auc_score(labels_B == k, probabilities_BK[:, k])
        for k in range(NUM_CLASSES)
        if 0 < np.count_nonzero(labels_B == k) < len(labels_B)
    }
    num_rows = [np.count_nonzero(labels_B == k) for k in areas]
    expected["roc_auc_macro"] = np.mean(list(areas.values())) if areas else 0
    expected["roc_auc_weighted"] = np.average(list(areas.values()), weights=num_rows) if areas else 0
    expected["ece"] = their_ece(found_B == labels_B, probabilities_BK.max(axis=1))
    evaluation = evaluation_of(rows)
    assert evaluation.metrics() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    ours = evaluation.per_class()
    assert {k: area for k, area in enumerate(ours["roc_auc"]) if not np.isnan(area)} == pytest.approx(areas)
    values = theirs.precision_recall_fscore_support(labels_B, found_B, labels=range(NUM_CLASSES), zero_division=0)
    for name, value in zip(("precision", "recall", "f1", "examples"), values, strict=True):
        np.testing.assert_allclose(ours[name], value)


def their_ece(is_hit_B: np.ndarray, confidence_B: np.ndarray) -> float:
    accuracies, confidences = calibration_curve(is_hit_B, confidence_B, n_bins=15)
    places_B = np.searchsorted(np.linspace(0, 1, 16)[1:-1], confidence_B)
    num_rows = np.bincount(places_B)
    return float(np.abs(accuracies - confidences) @ num_rows[num_rows > 0]) / len(is_hit_B)


@ALL_CASES
def test_figures_are_scikit_learns(rows):
    check(rows)


@settings(deadline=None)
@given(ROWS)
def test_figures_are_scikit_learns_on_any_rows(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(rows)


@pytest.mark.parametrize("num_classes", [2, 3, 12])
def test_the_mean_area_is_scikit_learns_one_against_the_rest(num_classes):
    labels_B, probabilities_BK = random_rows(300, num_classes)
    metrics = evaluation_of((labels_B, probabilities_BK)).metrics()
    for average in ("macro", "weighted"):
        given_scores = probabilities_BK[:, 1] if num_classes == 2 else probabilities_BK
        expected = theirs.roc_auc_score(labels_B, given_scores, multi_class="ovr", average=average)
        assert metrics[f"roc_auc_{average}"] == pytest.approx(expected, abs=1e-5 if num_classes == 2 else 1e-12)


@ALL_CASES
def test_curves_are_scikit_learns(rows):
    labels_B, probabilities_BK = rows
    curves = evaluation_of(rows).roc_curves
    for k in range(NUM_CLASSES):
        if 0 < np.count_nonzero(labels_B == k) < len(labels_B):
            expected = theirs.roc_curve(labels_B == k, probabilities_BK[:, k], drop_intermediate=False)
            for ours, wanted in zip(curves.curve(k), expected, strict=False):
                np.testing.assert_allclose(ours, wanted)


@ALL_CASES
def test_the_reliability_diagram_is_scikit_learns(rows):
    labels_B, probabilities_BK = rows
    is_hit_B = probabilities_BK.argmax(axis=1) == labels_B
    accuracies, confidences = calibration_curve(is_hit_B, probabilities_BK.max(axis=1), n_bins=15)
    bins = evaluation_of(rows).calibration
    np.testing.assert_allclose(bins.accuracies()[bins.num_M > 0], accuracies)
    np.testing.assert_allclose(bins.mean_confidences()[bins.num_M > 0], confidences)


@ALL_CASES
def test_figures_are_finite_and_fit_for_json(rows):
    metrics = evaluation_of(rows).metrics()
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert all(re.fullmatch("[a-z0-9_]+", name) and type(value) is float for name, value in metrics.items())


def test_the_config_names_every_figure():
    assert set(evaluation_of(random_rows(20)).metrics()) == set(get_args(MetricName))
    few = set(evaluation_of(random_rows(20, num_classes=4)).metrics())
    assert few == set(get_args(MetricName)) - {"top_5_accuracy"}


@pytest.mark.parametrize("max_keys", [40, 100, 400])
@pytest.mark.parametrize("sharpness", [0.1, 2, 30])
def test_areas_of_scores_that_lost_bits_are_within_their_bound(max_keys, sharpness):
    labels_B, probabilities_BK = random_rows(2000, sharpness=sharpness)
    scores = tally_scores(labels_B, probabilities_BK, max_keys=max_keys)
    assert scores.dropped_bits > 0
    curves = RocCurves.of(scores, NUM_CLASSES)
    expected = [theirs.roc_auc_score(labels_B == k, probabilities_BK[:, k]) for k in range(NUM_CLASSES)]
    assert (abs(curves.areas() - expected) <= curves.bounds() + 1e-12).all()
    assert curves.bounds().max() <= 0.5
    if max_keys == 400:
        assert curves.bounds().max() < 0.05, "a bound that says something"


def test_areas_of_scores_on_the_grid_stay_exact():
    """Powers of 1/2, and 1 less those, differ in bits that a tally drops last."""
    generator = np.random.default_rng(0)
    labels_B = generator.integers(0, 3, 3000)
    small_BK = 0.5 ** generator.integers(1, 12, (3000, 2)).astype(np.float32)
    on_grid_BK = np.where(
        labels_B[:, None] == np.arange(2), 1 - small_BK * generator.integers(0, 2, (3000, 2)), small_BK
    )
    scores_BK = np.hstack([on_grid_BK, generator.random((3000, 1))]).astype(np.float32)
    scores = tally_scores(labels_B, scores_BK, max_keys=300)
    assert scores.dropped_bits > 15
    areas_K = RocCurves.of(scores, 3).areas()
    for k in range(2):
        assert areas_K[k] == pytest.approx(theirs.roc_auc_score(labels_B == k, scores_BK[:, k]), rel=1e-12)


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_scores_are_ranked_as_their_probabilities(first, second):
    labels_B, scores_BK = np.array([0, 1]), np.array([[first, 0], [second, 0]], dtype=np.float32)
    area = RocCurves.of(tally_scores(labels_B, scores_BK, max_keys=100), 2).areas()[0]
    assert area == (0.5 if first == second else float(first > second))


@given(st.lists(st.floats(0, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_sums_in_units_are_exact(values):
    from fractions import Fraction

    total = int(in_units(np.array(values, dtype=np.float32)).sum())
    assert mean_of_units(total, len(values)) == float(sum(map(Fraction, values)) / len(values))
