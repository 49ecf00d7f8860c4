"""Moves a registered model's aliases: challenger, champion, previous_champion. Needs MLflow's client, no torch.

MLflow changes an alias without a condition. So a version that passed the gate says so in a tag before the alias moves,
and who moved it looks again for a better one that passed: of two that finish at once the better stays, in any order.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlflow.exceptions import MlflowException

from shardmean.jobs.promote.gate import Criterion, judge, needs_predictions, value_of
from shardmean.jobs.tracking.measurement import ROWS, record, recorded
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    import mlflow
    from mlflow.entities.model_registry import ModelVersion

    from shardmean.jobs.config.promote import PromoteConfig
    from shardmean.jobs.tracking.measurement import Measurement

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous_champion"
# Tags of a version, and of the registered model.
PASSED, ROLLED_BACK, REPLACED = "gate_passed_on", "rolled_back", "replaced"
PROMOTED_AT, PROMOTED_BY, PROMOTED_BECAUSE = "promoted_at", "promoted_by", "promoted_because"
HOLD = "promote.hold"
NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"
THE_GATE = "the gate"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What the gate says of a challenger. `champion` is the version that it was held against, None where none was."""

    version: str
    champion: str | None
    criteria: list[Criterion] = field(default_factory=list)

    @property
    def has_passed(self) -> bool:
        """Whether the challenger may become champion."""
        return all(criterion.has_passed for criterion in self.criteria)

    @property
    def reason(self) -> str:
        """The criteria in one line: those that failed, or all."""
        failed = [each for each in self.criteria if not each.has_passed]
        return "; ".join(map(str, failed or self.criteria)) or "no champion stands"


class Promoter:
    """The aliases of one registered model. MLflow's errors pass through; MLflow must be connected."""

    def __init__(self, client: mlflow.MlflowClient, name: str, config: PromoteConfig) -> None:
        self._client = client
        self._name = name
        self._config = config

    def decide(
        self, version: str, measured: Measurement, measure: Callable[[ModelVersion], Measurement | None]
    ) -> Decision:
        """Hold a version against the champion; where none stands, the best registered version becomes it first.

        `measure` measures a champion on the same rows where that was not done yet; it gives None where the champion
        takes other images or classes, or cannot be evaluated.
        """
        champion = self.champion() or self._repaired(version, measured)
        if champion is not None and str(champion.version) == version:
            return Decision(version, version)
        criteria = self._of_rollbacks(version, measured)
        if champion is None:
            return Decision(version, None, [*criteria, *judge(self._config, measured, None)])
        theirs = self._measured(champion, measured.rows, measure)
        if theirs is None:
            command = f"shardmean promote {self._name} {version}"
            text = f"champion {champion.version} cannot be compared; replace it by: {command}"
            criteria.append(Criterion("comparison", has_passed=False, text=text))
            return Decision(version, str(champion.version), criteria)
        return Decision(version, str(champion.version), [*criteria, *judge(self._config, measured, theirs)])

    def promote(self, version: str, *, by: str, why: str) -> None:
        """Make a version champion, whatever the gate says; ends a hold. Raises UserError where there is none."""
        found = self._version(version)
        if found is None:
            raise UserError(f"{self._name} has no version {version}: see `shardmean models {self._name}`")
        present = self.champion()
        if present is not None and str(present.version) == version:
            return
        tags = {PROMOTED_BY: by, PROMOTED_BECAUSE: why, PROMOTED_AT: _now()}
        if present is not None:
            tags[REPLACED] = str(present.version)
        for key, value in tags.items():
            self._client.set_model_version_tag(self._name, version, key, value)
        if ROLLED_BACK in found.tags:
            self._client.delete_model_version_tag(self._name, version, ROLLED_BACK)
        if present is not None:
            self._client.set_registered_model_alias(self._name, PREVIOUS, str(present.version))
        self._client.set_registered_model_alias(self._name, CHAMPION, version)
        if self.hold() is not None:
            self._client.delete_registered_model_tag(self._name, HOLD)
        log.info("%s: version %s is champion now, by %s: %s", self._name, version, by, why)

    def promote_by_gate(self, decision: Decision, measured: Measurement, *, by: str = THE_GATE) -> str:
        """Promote a version that passed; gives the champion, which is another where a better one passed meanwhile."""
        assert decision.has_passed, "only a version that passed the gate is promoted by it"
        self._client.set_model_version_tag(self._name, decision.version, PASSED, measured.rows)
        self.promote(decision.version, by=by, why=decision.reason)
        passed = [each for each in self._versions() if each.tags.get(PASSED) == measured.rows]
        best = self._best(passed, measured.rows)
        if best is not None and str(best.version) != decision.version:
            self.promote(str(best.version), by=THE_GATE, why=f"better than version {decision.version} on the same rows")
            return str(best.version)
        return decision.version

    def rollback(self, *, by: str, why: str) -> str:
        """Make the former champion champion again and hold it; gives its version. Raises UserError without one."""
        present, aliases = self.champion(), self._client.get_registered_model(self._name).aliases
        former = self._version(str(aliases[PREVIOUS])) if PREVIOUS in aliases else None
        # A promotion that was cut off leaves the present champion as its own predecessor.
        if present is None or former is None or str(former.version) == str(present.version):
            raise UserError(
                f"{self._name} has no champion before the present one: choose a version by `shardmean models "
                f"{self._name}` and `shardmean promote {self._name} VERSION`"
            )
        version = str(former.version)
        self._client.set_model_version_tag(self._name, str(present.version), ROLLED_BACK, f"{_now()} by {by}: {why}")
        # Before the alias: a training that finishes in between finds the hold.
        self._client.set_registered_model_tag(self._name, HOLD, version)
        self._client.set_registered_model_alias(self._name, CHAMPION, version)
        before = former.tags.get(REPLACED)
        if before is not None and self._version(before) is not None:
            self._client.set_registered_model_alias(self._name, PREVIOUS, before)
        else:
            self._client.delete_registered_model_alias(self._name, PREVIOUS)
        log.info("%s: back to version %s from %s, by %s: %s", self._name, version, present.version, by, why)
        return version

    def versions(self) -> list[ModelVersion]:
        """All versions, the newest first."""
        found = self._client.search_model_versions(f"name='{self._name}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def aliases(self) -> dict[str, str]:
        """Each alias with its version. Versions that are searched for do not tell theirs."""
        return {name: str(version) for name, version in self._client.get_registered_model(self._name).aliases.items()}

    def champion(self) -> ModelVersion | None:
        """The version that is champion; None where none is, or it was deleted."""
        version = self._client.get_registered_model(self._name).aliases.get(CHAMPION)
        return None if version is None else self._version(str(version))

    def hold(self) -> str | None:
        """The version at which a rollback holds the champion until a person or a better model lifts it."""
        held = self._client.get_registered_model(self._name).tags.get(HOLD)
        return None if held is None else str(held)

    def aliases_of(self, version: str) -> list[str]:
        """The aliases that a version has now."""
        return sorted(self._client.get_model_version(self._name, version).aliases)

    def _repaired(self, version: str, measured: Measurement) -> ModelVersion | None:
        """The best version on the rows of a challenger, made champion where none stands; None where it is that one."""
        aliases = self._client.get_registered_model(self._name).aliases
        if CHAMPION in aliases:
            log.warning("version %s of %s is champion and was deleted", aliases[CHAMPION], self._name)
        versions = self._versions()
        if self._config.approval == "required":
            # No version becomes champion that nobody has approved, though it be the best.
            versions = [each for each in versions if PROMOTED_AT in each.tags]
        best = self._best(versions, measured.rows)
        if best is None or str(best.version) == version:
            return None
        why = "no champion stood, and of all versions measured on the same rows it is the best"
        self.promote(str(best.version), by=THE_GATE, why=why)
        return best

    def _best(self, versions: list[ModelVersion], rows: str) -> ModelVersion | None:
        """The best of some versions by the deciding metric on these rows; of equal ones the oldest."""
        values = []
        for version in versions:
            measured = None if ROLLED_BACK in version.tags else recorded(self._client, version, rows)
            value = None if measured is None else value_of(measured, self._config.metric)
            if value is not None:
                values.append((value, -int(version.version), version))
        return max(values, key=lambda each: each[:2])[2] if values else None

    def _of_rollbacks(self, version: str, measured: Measurement) -> list[Criterion]:
        criteria = []
        for other in self._versions():
            if ROLLED_BACK not in other.tags:
                continue
            theirs = recorded(self._client, other, measured.rows)
            is_same = str(other.version) == version or (
                theirs is not None
                and all(measured.metrics.get(name) == value for name, value in theirs.metrics.items())
            )
            if is_same:
                text = f"as good as version {other.version}, which was rolled back: {other.tags[ROLLED_BACK]}"
                criteria.append(Criterion("rollback", has_passed=False, text=text))
        return criteria

    def _measured(
        self, champion: ModelVersion, rows: str, measure: Callable[[ModelVersion], Measurement | None]
    ) -> Measurement | None:
        known = recorded(self._client, champion, rows)
        lacks_predictions = needs_predictions(self._config) and (known is None or known.predictions is None)
        if known is not None and value_of(known, self._config.metric) is not None and not lacks_predictions:
            return known
        measured = measure(champion)
        if measured is not None:
            record(self._client, champion, champion.tags.get("dataset_digest", ""), measured)
        return measured

    def _versions(self) -> list[ModelVersion]:
        return [version for version in self.versions() if version.tags.get(ROWS) is not None]

    def _version(self, version: str) -> ModelVersion | None:
        try:
            return self._client.get_model_version(self._name, version)
        except MlflowException as error:
            if error.error_code != NOT_FOUND:
                raise
            return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
