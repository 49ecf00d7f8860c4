"""When a newly registered model replaces the champion. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shardmean.model.config.base import Fraction, Settings
from shardmean.model.config.training import MetricName

Name = Annotated[str, Field(min_length=1, max_length=250)]
MIN_LEVEL, MAX_LEVEL = 1e-6, 0.5


class PromoteConfig(Settings):
    """The gate between challenger and champion, both measured on the same rows of the same split."""

    metric: MetricName = "accuracy"
    """What decides. Of loss and ece the lower value is the better one."""
    min_improvement: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    """By how much the challenger must be better than the champion. At 0 it must be better by any amount."""
    improvement: Literal["absolute", "relative"] = "absolute"
    """Whether min_improvement is a difference, or a share of the champion's value."""
    significance: Literal["off", "mcnemar", "bootstrap"] = "off"
    """Test on the paired predictions of both: McNemar's exact test, or a paired bootstrap of the accuracy."""
    significance_level: Annotated[float, Field(ge=MIN_LEVEL, le=MAX_LEVEL)] = 0.05
    """Largest probability that the challenger's better accuracy is chance (one-sided)."""
    min_metrics: dict[MetricName, Annotated[float, Field(allow_inf_nan=False)]] = {}
    """The least value of each metric named here (for loss and ece the largest), whoever is champion."""
    min_class_recall: dict[Name, Fraction] = {}
    """The least recall of each class named here; `*` stands for every other class."""
    max_latency_ms: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """The longest that one image may take on one CPU thread of the machine that evaluates, as a median; null: any."""
    approval: Literal["none", "required"] = "none"
    """Whether a person must approve in Airflow before a challenger that passed becomes champion."""
    approvers: Annotated[list[Name], Field(max_length=100)] = []
    """Airflow users who may approve; empty: all who may edit the DAG's runs."""
    approval_timeout_h: Annotated[float, Field(gt=0, le=24 * 365)] = 168
    """Hours that a challenger waits for approval; then it is rejected and stays challenger."""
