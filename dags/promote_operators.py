"""The tasks of NAME_promote: evaluate, gate, approve, promote. MLflow is reached inside the running tasks alone."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from shardmean.dags.assets import champion_asset
from shardmean.dags.notifications import notifiers
from shardmean.dags.spark_operator import SparkJobOperator, result_of, task_options
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import Context

    from shardmean.jobs.config.pipeline import Pipeline

THE_GATE = "the gate"


class EvaluateOperator(SparkJobOperator):
    """Measures the challenger, or the version that the run's form names, and the champion on the same rows."""

    def __init__(self, *, pipeline: Pipeline, file: Path, **options: Any) -> None:
        super().__init__(command="evaluate", file=file, job=pipeline.train, **options)

    def run_arguments(self, context: Context, params: dict[str, Any]) -> list[str]:  # noqa: ARG002 - as all jobs
        """The version of the run, where it names one."""
        version = context["params"].get("version")
        return [f"--version={version}"] if version else []

    def report(self, result: dict[str, Any], context: Context) -> None:
        """Nothing is announced before the gate."""


class _JudgeOperator(BaseOperator):
    """Works on what `evaluate` recorded, in Airflow's worker, which needs MLflow for it."""

    def __init__(self, *, pipeline: Pipeline, **options: Any) -> None:
        self.job = pipeline.train
        super().__init__(**task_options(pipeline.train.airflow), **options)


class GateOperator(_JudgeOperator):
    """Skips the rest where the challenger does not pass, and says why."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Judge; the result is what an approver is shown."""
        evaluated = result_of(context, "evaluate")
        version, name = evaluated["model_version"], evaluated["model_name"]
        try:
            from shardmean.jobs.promote.recorded import judge_recorded

            verdict = judge_recorded(self.job, version, evaluated["rows"])
        except ModuleNotFoundError as error:
            raise AirflowFailException(
                f"Airflow's worker lacks {error.name}: pip install mlflow-skinny scipy"
            ) from error
        except UserError as error:
            raise AirflowFailException(str(error)) from error
        decision = verdict.decision
        for criterion in decision.criteria:
            self.log.info("%s", criterion)
        if decision.champion == version:
            raise AirflowSkipException(f"{name} version {version} is champion already")
        if not decision.has_passed:
            held = f" ({name} is held at version {verdict.hold} by a rollback)" if verdict.hold else ""
            raise AirflowSkipException(f"{name} version {version} stays challenger: {decision.reason}{held}")
        criteria = "\n".join(f"- {criterion}" for criterion in decision.criteria)
        where = evaluated["tracking_uri"]
        links = f"Plots and the worst mistakes: MLflow run `{evaluated['run_id']}` at {where}." if where else ""
        return {
            "subject": f"Promote {name} version {version}?",
            "body": f"{verdict.figures}\n\n{criteria}\n\n{links}",
            "version": version,
        }


class ApproveOperator(ApprovalOperator):
    """Waits until a person approves the challenger; without an answer in time it is rejected and stays challenger."""

    def __init__(self, *, pipeline: Pipeline, **options: Any) -> None:
        promote = pipeline.train.promote
        super().__init__(
            subject="{{ ti.xcom_pull(task_ids='gate')['subject'] }}",
            body="{{ ti.xcom_pull(task_ids='gate')['body'] }}",
            defaults=ApprovalOperator.REJECT,
            response_timeout=timedelta(hours=promote.approval_timeout_h),
            assigned_users=[{"id": user, "name": user} for user in promote.approvers] or None,
            notifiers=notifiers(pipeline, "approval"),
            **options,
        )


class PromoteOperator(_JudgeOperator):
    """Makes the challenger champion and announces it; skipped when a newer challenger has come."""

    def __init__(self, *, pipeline: Pipeline, **options: Any) -> None:
        self.champion = champion_asset(pipeline)
        tell = notifiers(pipeline, "promotion")
        super().__init__(pipeline=pipeline, outlets=[self.champion], on_success_callback=tell, **options)

    def execute(self, context: Context) -> dict[str, Any]:
        """Promote; the version says by whom and why."""
        from shardmean.jobs.promote.recorded import promote_recorded

        evaluated = result_of(context, "evaluate")
        version = evaluated["model_version"]
        approved = context["ti"].xcom_pull(task_ids="approve") or {}
        by = (approved.get("responded_by_user") or {}).get("name") or THE_GATE
        is_chosen = bool(context["params"].get("version"))
        try:
            champion = promote_recorded(self.job, version, evaluated["rows"], by=by, is_chosen=is_chosen)
        except UserError as error:
            raise AirflowFailException(str(error)) from error
        if champion is None:
            raise AirflowSkipException(f"version {version} was superseded: a newer challenger stands")
        result = {"model_name": evaluated["model_name"], "model_version": champion, "promoted_by": by}
        context["outlet_events"][self.champion].extra = result
        return result
