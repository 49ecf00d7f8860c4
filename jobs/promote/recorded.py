"""Decides and promotes from what the job `evaluate` has recorded: starts no worker and needs no torch.

Airflow's tasks `gate` and `promote` run it in Airflow's worker.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException

from shardmean.jobs.promote.promotion import CHALLENGER, NOT_FOUND, Promoter
from shardmean.jobs.tracking.client import connect, mlflow_error
from shardmean.jobs.tracking.measurement import recorded
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.jobs.config.job import TrainJob
    from shardmean.jobs.promote.promotion import Decision
    from shardmean.jobs.tracking.measurement import Measurement

SHOWN = ("accuracy", "f1_macro", "loss", "ece")


@dataclass(frozen=True)
class Verdict:
    """What the gate says, and both models' figures as a table in Markdown."""

    decision: Decision
    figures: str
    hold: str | None


def judge_recorded(job: TrainJob, version: str, rows: str) -> Verdict:
    """The gate's verdict on a version by what was recorded of it and of the champion on these rows.

    Raises UserError where nothing was recorded, RetryableError.
    """
    with _promoter(job) as (promoter, client, name):
        ours = _of(client, name, version, rows)
        decision = promoter.decide(version, ours, lambda _: None)
        champion = decision.champion
        is_other = champion is not None and champion != version
        theirs = recorded(client, client.get_model_version(name, champion), rows) if champion and is_other else None
        return Verdict(decision, _table(version, ours, champion, theirs), promoter.hold())


def promote_recorded(job: TrainJob, version: str, rows: str, *, by: str, is_chosen: bool) -> str | None:
    """Promote a version that passes the gate now; gives the champion, or None where a newer challenger stands.

    A version that a person has chosen for the run is promoted though a newer one stands. Raises UserError where it does
    not pass any more, RetryableError.
    """
    with _promoter(job) as (promoter, client, name):
        newest = str(client.get_model_version_by_alias(name, CHALLENGER).version)
        if newest != version and not is_chosen:
            return None
        ours = _of(client, name, version, rows)
        decision = promoter.decide(version, ours, lambda _: None)
        if decision.champion == version:
            return version
        if not decision.has_passed:
            raise UserError(f"{name} version {version} does not pass the gate any more: {decision.reason}")
        return promoter.promote_by_gate(decision, ours, by=by)


@contextmanager
def _promoter(job: TrainJob) -> Iterator[tuple[Promoter, mlflow.MlflowClient, str]]:
    uri, name = connect(job.tracking), job.tracking.registered_model
    client = mlflow.MlflowClient()
    try:
        yield Promoter(client, name, job.promote), client, name
    except MlflowException as error:
        if error.error_code == NOT_FOUND:
            raise UserError(f"MLflow at {uri}: {error.message}") from error
        raise mlflow_error(uri, error) from error


def _of(client: mlflow.MlflowClient, name: str, version: str, rows: str) -> Measurement:
    measured = recorded(client, client.get_model_version(name, version), rows)
    if measured is None:
        raise UserError(f"{name} version {version} was not measured on {rows}: clear the task evaluate")
    return measured


def _table(version: str, ours: Measurement, champion: str | None, theirs: Measurement | None) -> str:
    head = [f"challenger {version}", f"champion {champion}" if champion else "no champion"]
    lines = [f"| on {ours.rows.partition(':')[0]} | {head[0]} | {head[1]} |", "|---|---|---|"]
    for name in SHOWN:
        if name in ours.metrics:
            other = "" if theirs is None or name not in theirs.metrics else f"{theirs.metrics[name]:.4f}"
            lines.append(f"| {name} | {ours.metrics[name]:.4f} | {other} |")
    return "\n".join(lines)
