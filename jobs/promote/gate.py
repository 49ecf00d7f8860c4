"""The gate between challenger and champion: each criterion's measured value, limit and verdict. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardmean.model.config.training import LOWEST_IS_BEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.jobs.config.promote import PromoteConfig
    from shardmean.jobs.tracking.measurement import Measurement
    from shardmean.model.evaluation.predictions import Predictions

NUM_RESAMPLES = 10_000
EVERY_OTHER_CLASS = "*"


@dataclass(frozen=True)
class Criterion:
    """One reason for or against a promotion, in words that hold the measured value and the limit."""

    name: str
    has_passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'passed' if self.has_passed else 'failed'}: {self.name}: {self.text}"


def judge(config: PromoteConfig, challenger: Measurement, champion: Measurement | None) -> list[Criterion]:
    """All criteria for a challenger; without a champion those that need none. Both are measured on the same rows.

    What a criterion needs and was not measured fails it.
    """
    criteria = [*_floors(config, challenger)]
    if champion is not None:
        assert champion.rows == challenger.rows, "two models are compared on the same rows"
        criteria.append(_improvement(config, challenger, champion))
        if config.significance != "off":
            criteria.append(_significance(config, challenger, champion))
    return criteria


def needs_predictions(config: PromoteConfig) -> bool:
    """Whether the gate looks at single rows."""
    return config.significance != "off"


def value_of(measured: Measurement, metric: str) -> float | None:
    """A metric with the better value above: the negative of loss and ece. None where it was not measured."""
    value = measured.metrics.get(metric)
    return value if value is None or metric not in LOWEST_IS_BEST else -value


def _floors(config: PromoteConfig, challenger: Measurement) -> Iterator[Criterion]:
    for metric, limit in config.min_metrics.items():
        value = challenger.metrics.get(metric)
        is_loss = metric in LOWEST_IS_BEST
        has_passed = value is not None and (value <= limit if is_loss else value >= limit)
        text = f"{metric} {_shown(value)}, at {'most' if is_loss else 'least'} {limit:g}"
        yield Criterion("promote.min_metrics", has_passed, text)
    rest = config.min_class_recall.get(EVERY_OTHER_CLASS)
    limits = dict.fromkeys(challenger.class_recall, rest) if rest is not None else {}
    for name, least in (limits | {k: v for k, v in config.min_class_recall.items() if k != EVERY_OTHER_CLASS}).items():
        recall = challenger.class_recall.get(name)
        has_passed = recall is not None and least is not None and recall >= least
        yield Criterion("promote.min_class_recall", has_passed, f"class {name} {_shown(recall)}, at least {least:g}")
    if config.max_latency_ms is not None:
        latency = challenger.latency_ms
        has_passed = latency is not None and latency <= config.max_latency_ms
        text = f"{_shown(latency)} ms for one image, at most {config.max_latency_ms:g} ms"
        yield Criterion("promote.max_latency_ms", has_passed, text)


def _improvement(config: PromoteConfig, challenger: Measurement, champion: Measurement) -> Criterion:
    ours, theirs = value_of(challenger, config.metric), value_of(champion, config.metric)
    shown = [measured.metrics.get(config.metric) for measured in (challenger, champion)]
    text = f"{config.metric} {_shown(shown[0])}, the champion's {_shown(shown[1])} on the same rows"
    if ours is None or theirs is None:
        return Criterion("promote.min_improvement", has_passed=False, text=text)
    gain = ours - theirs
    if config.improvement == "relative":
        gain = gain / abs(theirs) if theirs else np.inf * np.sign(gain)
    least = config.min_improvement
    text += f"; better by {gain:.6g}, " + (f"at least {least:g} ({config.improvement})" if least else "more than 0")
    return Criterion("promote.min_improvement", bool(gain >= least if least else gain > 0), text)


def _significance(config: PromoteConfig, challenger: Measurement, champion: Measurement) -> Criterion:
    if challenger.predictions is None or champion.predictions is None:
        return Criterion("promote.significance", has_passed=False, text="the predictions of both were not kept")
    num_better, num_worse, num_rows = discordant(challenger.predictions, champion.predictions)
    test = mcnemar if config.significance == "mcnemar" else bootstrap
    chance = test(num_better, num_worse, num_rows)
    text = (
        f"{config.significance}: right on {num_better} rows where the champion is wrong and wrong on {num_worse} where "
        f"it is right, by chance with probability {chance:.3g}, at most {config.significance_level:g}"
    )
    return Criterion("promote.significance", chance <= config.significance_level, text)


def discordant(ours: Predictions, theirs: Predictions) -> tuple[int, int, int]:
    """Rows on which only we are right, on which only they are, and all rows."""
    ours, theirs = ours.sorted(), theirs.sorted()
    assert (ours.ids_N == theirs.ids_N).all(), "the rows are the same"
    is_ours_N, is_theirs_N = (each.predicted_N == each.labels_N for each in (ours, theirs))
    return int((is_ours_N & ~is_theirs_N).sum()), int((~is_ours_N & is_theirs_N).sum()), len(ours.ids_N)


def mcnemar(num_better: int, num_worse: int, num_rows: int) -> float:  # noqa: ARG001 - as `bootstrap`
    """The one-sided exact probability that so many discordant rows favor us, were both models equally good.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions" (1947).
    """
    from scipy.stats import binomtest

    num = num_better + num_worse
    return float(binomtest(num_better, num, 0.5, alternative="greater").pvalue) if num else 1.0


def bootstrap(num_better: int, num_worse: int, num_rows: int) -> float:
    """The share of resampled row sets on which we are not more accurate; the same numbers give the same share.

    Source: P. Koehn, "Statistical significance tests for machine translation evaluation" (2004), for pairs of models.
    """
    shares = np.array([num_better, num_worse, num_rows - num_better - num_worse]) / max(1, num_rows)
    drawn_R3 = np.random.default_rng(0).multinomial(num_rows, shares, NUM_RESAMPLES)
    return float((drawn_R3[:, 0] <= drawn_R3[:, 1]).mean())


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.6g}"
