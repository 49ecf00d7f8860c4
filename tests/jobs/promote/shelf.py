"""A registered model in an MLflow store of its own, whose versions have figures without a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shardmean.jobs.config.promote import PromoteConfig
from shardmean.jobs.promote.promotion import CHALLENGER, Promoter
from shardmean.jobs.tracking.measurement import Measurement, record, recorded
from shardmean.model.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import mlflow

NAME, ROWS, OTHER_ROWS = "digits", f"test:{'0' * 32}", f"test:{'1' * 32}"


def measured(accuracy: float, rows: str = ROWS, right: list[bool] | None = None, **metrics: float) -> Measurement:
    """Figures of a model; `right` says on which rows its prediction is right."""
    predictions = None
    if right is not None:
        ids = np.array([f"{number:032x}" for number in range(len(right))], np.bytes_)
        predictions = Predictions(ids, np.zeros(len(right), np.int32), np.where(right, 0, 1).astype(np.int32))
    return Measurement(rows, {"accuracy": accuracy, **metrics}, {"cat": accuracy}, None, predictions)


@dataclass
class Shelf:
    """The registered model; `add` gives a version as a training leaves it, `offer` also holds it against the gate."""

    client: mlflow.MlflowClient
    experiment: str
    asked: list[str] = field(default_factory=list)

    def add(self, figures: Measurement | None) -> str:
        run_id = self.client.create_run(self.experiment).info.run_id
        version = self.client.create_model_version(NAME, source=f"/models/{run_id}", run_id=run_id)
        if figures is not None:
            record(self.client, version, "d" * 32, figures)
        self.client.set_registered_model_alias(NAME, CHALLENGER, str(version.version))
        return str(version.version)

    def promoter(self, **settings: Any) -> Promoter:
        return Promoter(self.client, NAME, PromoteConfig(**settings))

    def offer(self, figures: Measurement, measure: Any = None, **settings: Any) -> tuple[str, Any]:
        """A new version and what the gate said; it is promoted if it passed."""
        version, promoter = self.add(figures), self.promoter(**settings)
        decision = promoter.decide(version, figures, measure or self.unmeasured)
        if decision.has_passed:
            promoter.promote_by_gate(decision, figures)
        return version, decision

    def unmeasured(self, version: Any) -> None:
        self.asked.append(str(version.version))

    def alias(self, name: str = "champion") -> str | None:
        found = self.client.get_registered_model(NAME).aliases.get(name)
        return None if found is None else str(found)

    def tags(self, version: str) -> dict[str, str]:
        return dict(self.client.get_model_version(NAME, version).tags)

    def recorded(self, version: str, rows: str = ROWS) -> Measurement | None:
        return recorded(self.client, self.client.get_model_version(NAME, version), rows)
