"""The state after a segment, out of the state before it and the workers' reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..dataset.epoch_layout import PLAN_VERSION
from .checkpoint import Checkpoint
from .phase_timer import PHASES

if TYPE_CHECKING:
    from ..dataset.sampler import EpochPlan, Stage
    from ..evaluation.evaluator import Evaluation
    from .messages import Report


MAX_TIMINGS = 500


def merged(
    state: Checkpoint,
    stages: tuple[Stage, ...],
    reports: list[Report],
    evaluation: Evaluation | None,
    plan: EpochPlan,
    *,
    seconds: float,
    retry_s: float,
) -> Checkpoint:
    """The state after a segment of `seconds`, `retry_s` of which failed tries took.

    With an `evaluation` the epoch has ended, and its figures are added.
    """
    first = reports[0].state
    assert first is not None, "rank 0 reports the averaged state"
    running = _running(state, reports, plan, stages, seconds=seconds, retry_s=retry_s)
    ended = evaluation is not None
    return Checkpoint(
        epoch=state.epoch + ended,
        model=first["model"],
        optimizers=[report.state["optimizer"] for report in reports if report.state is not None],
        outer_momentum=first["outer_momentum"],
        history=[*state.history, _epoch_metrics(running, evaluation)] if evaluation else state.history,
        best_epoch=state.best_epoch,
        best_model=state.best_model,
        stages=() if ended else stages,
        num_steps=state.num_steps + _num_steps(state, stages, plan),
        running={} if ended else running,
        timeline=[*state.timeline, _segment_timing(state, reports, seconds)][-MAX_TIMINGS:],
        model_spec=state.model_spec,
        plan_version=state.plan_version if state.stages and not ended else PLAN_VERSION,
    )


def _running(
    state: Checkpoint,
    reports: list[Report],
    plan: EpochPlan,
    stages: tuple[Stage, ...],
    *,
    seconds: float,
    retry_s: float,
) -> dict[str, float]:
    """Sums over the epoch's segments so far."""
    new = {
        "num_examples": float(sum(report.num_examples for report in reports)),
        "loss_sum": sum(report.loss_sum for report in reports),
        "seconds": seconds,
        "rounds": float(stages[-1].num_rounds - _rounds_before(state, stages)),
        "retry_s": retry_s,
        "spark_s": seconds - retry_s - max(sum(_own(report).values()) for report in reports),
    }
    for report in reports:
        for phase, value in report.seconds.items():
            new[f"worker_{report.rank}/{phase}_s"] = value
    assert plan.num_workers == len(reports), "one report per worker"
    return {name: state.running.get(name, 0.0) + new.get(name, 0.0) for name in {**state.running, **new}}


def _own(report: Report) -> dict[str, float]:
    return {phase: report.seconds.get(phase, 0.0) for phase in PHASES}


def _rounds_before(state: Checkpoint, stages: tuple[Stage, ...]) -> int:
    return state.stages[-1].num_rounds if len(state.stages) == len(stages) else 0


def _num_steps(state: Checkpoint, stages: tuple[Stage, ...], plan: EpochPlan) -> int:
    per_round = plan.minibatches_per_round
    return min(stages[-1].num_rounds * per_round, plan.num_steps) - _rounds_before(state, stages) * per_round


def _epoch_metrics(running: dict[str, float], evaluation: Evaluation) -> dict[str, float]:
    num_examples, seconds = running["num_examples"], running["seconds"]
    workers = {name: value for name, value in running.items() if name.startswith("worker_")}
    return {
        "train_loss": running["loss_sum"] / num_examples,
        "examples": num_examples,
        "epoch_seconds": seconds,
        "examples_per_second": num_examples / seconds,
        "rounds": running["rounds"],
        "spark_s": running["spark_s"],
        "retry_s": running["retry_s"],
        **_means(workers),
        **workers,
        **(_validation(evaluation) if evaluation.num_examples else {}),
    }


def _validation(evaluation: Evaluation) -> dict[str, float]:
    return {f"validation_{name}": value for name, value in evaluation.metrics().items()}


def _means(workers: dict[str, float]) -> dict[str, float]:
    """Mean seconds per phase over the workers."""
    values: dict[str, list[float]] = {}
    for name, value in workers.items():
        values.setdefault(name.split("/")[1], []).append(value)
    return {phase: sum(found) / len(found) for phase, found in values.items()}


def _segment_timing(state: Checkpoint, reports: list[Report], seconds: float) -> dict[str, Any]:
    """One segment in the run's timeline: its length, and each worker's seconds by phase, in the phases' order."""
    return {
        "epoch": state.epoch + 1,
        "seconds": seconds,
        "workers": [_own(report) for report in reports],
    }
