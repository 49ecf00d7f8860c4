"""Metrics against scikit-learn on the same rows, ordinary ones and those on which definitions differ."""

from __future__ import annotations

import json
import re
import warnings
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs
from sklearn.calibration import calibration_curve

from shardmean.model.config.training import MetricName
from shardmean.model.evaluation.metrics import num_score_bins, score_bins
from tests.model.counting import counted

if TYPE_CHECKING:
    from shardmean.model.evaluation.evaluator import Evaluation

# More classes than the largest k of top-k.
NUM_CLASSES = 7
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:sklearn")
Rows = tuple[np.ndarray, np.ndarray]


def normalized(weights_BK: np.ndarray) -> np.ndarray:
    return (weights_BK / weights_BK.sum(axis=1, keepdims=True)).astype(np.float32)


def losses_of(labels_B: np.ndarray, probabilities_BK: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities_BK[np.arange(len(labels_B)), labels_B], np.float32(1e-30)))


def evaluation_of(rows: Rows) -> Evaluation:
    return counted(*rows, losses_of(*rows))


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
    """All metrics of some rows are scikit-learn's, areas within their bounds."""
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
    expected["ece"] = their_ece(found_B == labels_B, probabilities_BK.max(axis=1))
    evaluation = evaluation_of(rows)
    metrics, ours = evaluation.metrics(), evaluation.per_class()
    macro, weighted = metrics.pop("roc_auc_macro"), metrics.pop("roc_auc_weighted")
    assert metrics == pytest.approx(expected, rel=1e-9, abs=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(ours["roc_auc"])), list(areas))
    np.testing.assert_array_equal(np.isnan(ours["roc_auc_bound"]), np.isnan(ours["roc_auc"]))
    bounds = ours["roc_auc_bound"][list(areas)] + 1e-12
    assert (abs(ours["roc_auc"][list(areas)] - list(areas.values())) <= bounds).all()
    if areas:
        assert abs(macro - np.mean(list(areas.values()))) <= bounds.mean()
        assert abs(weighted - np.average(list(areas.values()), weights=num_rows)) <= np.average(
            bounds, weights=num_rows
        )
    else:
        assert macro == weighted == 0
    values = theirs.precision_recall_fscore_support(labels_B, found_B, labels=range(NUM_CLASSES), zero_division=0)
    for name, value in zip(("precision", "recall", "f1", "examples"), values, strict=True):
        np.testing.assert_allclose(ours[name], value)


def their_ece(is_hit_B: np.ndarray, confidence_B: np.ndarray) -> float:
    accuracies, confidences = calibration_curve(is_hit_B, confidence_B, n_bins=15)
    places_B = np.searchsorted(np.linspace(0, 1, 16)[1:-1], confidence_B)
    num_rows = np.bincount(places_B)
    return float(np.abs(accuracies - confidences) @ num_rows[num_rows > 0]) / len(is_hit_B)


@ALL_CASES
def test_metrics_are_scikit_learns(rows):
    check(rows)


@settings(deadline=None)
@given(ROWS)
def test_metrics_are_scikit_learns_on_any_rows(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(rows)


@pytest.mark.parametrize(
    ("num_rows", "num_classes", "limit"), [(1000, 2, 1e-4), (10_000, 10, 1e-4), (10_000, 100, 5e-4)]
)
def test_areas_differ_little_from_scikit_learns(num_rows, num_classes, limit):
    """The limits are those of docs/evaluation.md."""
    labels_B, probabilities_BK = random_rows(num_rows, num_classes)
    evaluation = evaluation_of((labels_B, probabilities_BK))
    metrics, per_class = evaluation.metrics(), evaluation.per_class()
    for average in ("macro", "weighted"):
        given_scores = probabilities_BK[:, 1] if num_classes == 2 else probabilities_BK
        expected = theirs.roc_auc_score(labels_B, given_scores, multi_class="ovr", average=average)
        assert metrics[f"roc_auc_{average}"] == pytest.approx(expected, abs=limit)
    areas = [theirs.roc_auc_score(labels_B == k, probabilities_BK[:, k]) for k in range(num_classes)]
    assert per_class["roc_auc"] == pytest.approx(np.array(areas), abs=limit)
    assert 0 < per_class["roc_auc_bound"].max() < 5 * limit


def test_a_bound_is_reached_where_all_scores_share_a_bin():
    labels_B, scores_B = np.array([0, 0, 1, 1]), np.float32(0.5) + np.float32(2**-24) * np.arange(4, dtype=np.float32)
    evaluation = evaluation_of((labels_B, np.stack([scores_B, 1 - scores_B], axis=1)))
    assert len(np.unique(score_bins(scores_B, num_score_bins(2)))) == 1
    assert theirs.roc_auc_score(labels_B, scores_B) == 1
    per_class = evaluation.per_class()
    assert per_class["roc_auc"].tolist() == per_class["roc_auc_bound"].tolist() == [0.5, 0.5]


@ALL_CASES
def test_curves_are_scikit_learns_of_the_binned_scores(rows):
    labels_B, probabilities_BK = rows
    curves = evaluation_of(rows).roc_curves
    bins_BK = score_bins(probabilities_BK, num_score_bins(NUM_CLASSES))
    for k in range(NUM_CLASSES):
        if 0 < np.count_nonzero(labels_B == k) < len(labels_B):
            expected = theirs.roc_curve(labels_B == k, bins_BK[:, k], drop_intermediate=False)
            for ours, wanted in zip(curves.curve(k), expected, strict=False):
                np.testing.assert_allclose(ours, wanted)


PROBABILITY = st.floats(0, 1, width=32)


@given(st.lists(PROBABILITY, min_size=2, max_size=9), st.sampled_from([2, 10, 1000, 100_000]))
def test_bins_rise_with_the_probability(probabilities, num_classes):
    num_bins = num_score_bins(num_classes)
    bins = score_bins(np.sort(np.array(probabilities, dtype=np.float32)), num_bins)
    assert (np.diff(bins) >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < num_bins


@pytest.mark.parametrize("num_classes", [2, 10, 1000, 100_000])
def test_bins_tell_apart_the_scores_of_a_sure_network(num_classes):
    num_bins = num_score_bins(num_classes)
    powers = 10.0 ** -np.arange(37, 0, -1)
    bins = score_bins(np.float32([0, 1e-38, *powers, 0.3, 0.5, 0.7, 0.99, 0.9999, 1 - 2**-24, 1]), num_bins)
    assert bins[0] == bins[1] == 0
    assert bins[-1] == num_bins - 1
    assert (np.diff(bins[1:]) > 0).all()


@ALL_CASES
def test_the_reliability_diagram_is_scikit_learns(rows):
    labels_B, probabilities_BK = rows
    is_hit_B = probabilities_BK.argmax(axis=1) == labels_B
    accuracies, confidences = calibration_curve(is_hit_B, probabilities_BK.max(axis=1), n_bins=15)
    bins = evaluation_of(rows).calibration
    np.testing.assert_allclose(bins.accuracies()[bins.num_M > 0], accuracies)
    np.testing.assert_allclose(bins.mean_confidences()[bins.num_M > 0], confidences)


@ALL_CASES
def test_metrics_are_finite_and_fit_for_json(rows):
    metrics = evaluation_of(rows).metrics()
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert all(re.fullmatch("[a-z0-9_]+", name) and type(value) is float for name, value in metrics.items())


def test_the_config_names_every_metric():
    assert set(evaluation_of(random_rows(20)).metrics()) == set(get_args(MetricName))
    few = set(evaluation_of(random_rows(20, num_classes=4)).metrics())
    assert few == set(get_args(MetricName)) - {"top_5_accuracy"}
