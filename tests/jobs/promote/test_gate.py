"""The gate: each criterion on both sides of its limit, against values computed otherwise."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from shardmean.jobs.config.promote import PromoteConfig
from shardmean.jobs.promote.gate import bootstrap, discordant, judge, mcnemar
from shardmean.jobs.tracking.measurement import Measurement
from shardmean.model.evaluation.predictions import Predictions

ROWS = f"test:{'0' * 32}"


def measured(metrics=None, recall=None, latency=None, right=None, **values):
    predictions = None
    if right is not None:
        labels = np.zeros(len(right), np.int32)
        ids = np.array([f"{number:032x}" for number in range(len(right))], np.bytes_)
        predictions = Predictions(ids, labels, np.where(right, 0, 1).astype(np.int32))
    return Measurement(ROWS, metrics or values, recall or {}, latency, predictions)


def passes(config, challenger, champion=None):
    return [(each.name.removeprefix("promote."), each.has_passed) for each in judge(config, challenger, champion)]


def improvement(ours, theirs, metric="accuracy", **settings):
    config = PromoteConfig(metric=metric, **settings)
    (criterion,) = judge(config, measured(**{metric: ours}), measured(**{metric: theirs}))
    return criterion.has_passed


@pytest.mark.parametrize(
    ("ours", "theirs", "settings", "expected"),
    [
        (0.91, 0.9, {}, True),
        (0.9, 0.9, {}, False),
        (0.89, 0.9, {}, False),
        (0.75, 0.5, {"min_improvement": 0.25}, True),
        (0.74, 0.5, {"min_improvement": 0.25}, False),
        (0.75, 0.5, {"min_improvement": 0.5, "improvement": "relative"}, True),
        (0.74, 0.5, {"min_improvement": 0.5, "improvement": "relative"}, False),
        (0.1, 0.0, {"min_improvement": 5, "improvement": "relative"}, True),
        (0.4, 0.5, {"metric": "loss"}, True),
        (0.5, 0.4, {"metric": "loss"}, False),
        (0.25, 0.5, {"metric": "loss", "min_improvement": 0.5, "improvement": "relative"}, True),
        (0.3, 0.5, {"metric": "ece", "min_improvement": 0.25}, False),
    ],
)
def test_how_much_better_it_must_be(ours, theirs, settings, expected):
    assert improvement(ours, theirs, **settings) is expected


def test_without_a_champion_only_the_floors_count():
    assert judge(PromoteConfig(), measured(accuracy=0.1), None) == []
    config = PromoteConfig(min_metrics={"accuracy": 0.5, "loss": 1})
    assert passes(config, measured(accuracy=0.5, loss=1)) == [("min_metrics", True)] * 2
    assert passes(config, measured(accuracy=0.49, loss=1.01)) == [("min_metrics", False)] * 2
    assert passes(config, measured(f1_macro=0.9)) == [("min_metrics", False)] * 2, "not measured"


def test_each_class_has_its_own_floor_or_that_of_all_others():
    config = PromoteConfig(min_class_recall={"*": 0.5, "cat": 0.9})
    criteria = judge(config, measured(accuracy=1, recall={"cat": 0.89, "dog": 0.5, "fox": 0.4}), None)
    assert [(each.text, each.has_passed) for each in criteria] == [
        ("class cat 0.89, at least 0.9", False), ("class dog 0.5, at least 0.5", True),
        ("class fox 0.4, at least 0.5", False),
    ]  # fmt: skip
    (absent,) = judge(PromoteConfig(min_class_recall={"owl": 0.1}), measured(accuracy=1, recall={"cat": 1.0}), None)
    assert (absent.has_passed, absent.text) == (False, "class owl not measured, at least 0.1")


@pytest.mark.parametrize(("latency", "expected"), [(5.0, True), (5.1, False), (None, False)])
def test_one_image_may_take_so_long(latency, expected):
    assert passes(PromoteConfig(max_latency_ms=5), measured(accuracy=1, latency=latency)) == [
        ("max_latency_ms", expected)
    ]


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (1, 4), (12, 4), (30, 25)])
def test_mcnemar_is_the_exact_tail_of_a_fair_coin(better, worse):
    num = better + worse
    tail = sum(comb(num, heads) for heads in range(better, num + 1)) / 2**num
    assert mcnemar(better, worse, 1000) == pytest.approx(tail)


def test_the_bootstrap_resamples_pairs_of_rows():
    random = np.random.default_rng(5)
    is_ours, is_theirs = np.array([1] * 10 + [0] * 4 + [1] * 86), np.array([0] * 10 + [1] * 4 + [1] * 86)
    drawn = random.integers(0, 100, (20_000, 100))
    direct = (is_ours[drawn].sum(1) <= is_theirs[drawn].sum(1)).mean()
    assert bootstrap(10, 4, 100) == pytest.approx(direct, abs=0.01)
    assert bootstrap(10, 4, 100) == bootstrap(10, 4, 100)
    assert bootstrap(0, 0, 100) == 1


@pytest.mark.parametrize("test", ["mcnemar", "bootstrap"])
def test_a_better_accuracy_must_not_be_chance(test):
    config = PromoteConfig(significance=test)
    theirs = measured(accuracy=0.5, right=[True] * 50 + [False] * 50)
    clear = measured(accuracy=0.6, right=[True] * 60 + [False] * 40)
    chance = measured(accuracy=0.52, right=[True] * 52 + [False] * 48)
    assert passes(config, clear, theirs) == [("min_improvement", True), ("significance", True)]
    assert passes(config, chance, theirs)[1] == ("significance", test == "bootstrap" and bootstrap(2, 0, 100) <= 0.05)
    assert passes(config, measured(accuracy=0.6), theirs)[1] == ("significance", False), "not kept"


def test_rows_are_paired_by_their_ids_whatever_their_order():
    ours = measured(accuracy=1, right=[True, False, True, True]).predictions
    theirs = measured(accuracy=1, right=[False, True, True, True]).predictions
    order = np.array([2, 0, 3, 1])
    shuffled = Predictions(theirs.ids_N[order], theirs.labels_N[order], theirs.predicted_N[order])
    assert discordant(ours, theirs) == discordant(ours, shuffled) == (1, 1, 4)
