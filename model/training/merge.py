"""The state after a segment, out of the state before it and the workers' reports."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from ..dataset.epoch_layout import PLAN_VERSION
from ..dataset.sampler import Stage
from .phase_timer import PHASES

if TYPE_CHECKING:
    from ..dataset.sampler import EpochPlan
    from ..evaluation.evaluator import Evaluation
    from .checkpoint import Checkpoint
    from .messages import Report, Rounds


MAX_TIMINGS = 500


def merged(
    state: Checkpoint,
    plan: EpochPlan,
    rounds: Rounds,
    reports: list[Report],
    evaluation: Evaluation | None,
    *,
    seconds: float,
    retry_s: float,
) -> Checkpoint:
    """The state after some rounds of a plan, a segment of `seconds`, `retry_s` of which failed tries took.

    With an `evaluation` the epoch has ended, and its figures are added.
    """
    first = reports[0].state
    assert first is not None, "rank 0 reports the averaged state"
    assert plan.num_workers == len(reports), "one report per worker"
    per_round = plan.minibatches_per_round
    num_steps = min(rounds.stop * per_round, plan.num_steps) - rounds.first * per_round
    # In the phases' order.
    own_seconds = [{phase: report.seconds.get(phase, 0.0) for phase in PHASES} for report in reports]
    sums = {
        "num_examples": float(sum(report.num_examples for report in reports)),
        "loss_sum": sum(report.loss_sum for report in reports),
        "seconds": seconds,
        "rounds": float(rounds.stop - rounds.first),
        "retry_s": retry_s,
        "spark_s": seconds - retry_s - max(sum(own.values()) for own in own_seconds),
    }
    for report in reports:
        sums |= {f"worker_{report.rank}/{phase}_s": value for phase, value in report.seconds.items()}
    # Over the epoch's segments so far.
    running = {name: state.running.get(name, 0.0) + sums.get(name, 0.0) for name in {**state.running, **sums}}
    timing = {"epoch": state.epoch + 1, "seconds": seconds, "workers": own_seconds}
    new = replace(
        state,
        model=first["model"],
        optimizers=[report.state["optimizer"] for report in reports if report.state is not None],
        outer_momentum=first["outer_momentum"],
        stages=(*rounds.earlier, Stage(plan.num_workers, rounds.stop)),
        num_steps=state.num_steps + num_steps,
        running=running,
        timeline=[*state.timeline, timing][-MAX_TIMINGS:],
        plan_version=rounds.plan_version,
    )
    if evaluation is None:
        return new
    history = [*state.history, _epoch_metrics(running, evaluation)]
    return replace(new, epoch=state.epoch + 1, history=history, stages=(), running={}, plan_version=PLAN_VERSION)


def _epoch_metrics(running: dict[str, float], evaluation: Evaluation) -> dict[str, float]:
    num_examples, seconds = running["num_examples"], running["seconds"]
    workers = {name: value for name, value in running.items() if name.startswith("worker_")}
    by_phase: dict[str, list[float]] = defaultdict(list)
    for name, value in workers.items():
        by_phase[name.split("/")[1]].append(value)
    validation = evaluation.metrics() if evaluation.num_examples else {}
    return {
        "train_loss": running["loss_sum"] / num_examples,
        "examples": num_examples,
        "epoch_seconds": seconds,
        "examples_per_second": num_examples / seconds,
        "rounds": running["rounds"],
        "spark_s": running["spark_s"],
        "retry_s": running["retry_s"],
        **{phase: sum(found) / len(found) for phase, found in by_phase.items()},
        **workers,
        **{f"validation_{name}": value for name, value in validation.items()},
    }
