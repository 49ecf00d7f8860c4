"""NAME_promote without Spark: the gate's reasons, who promoted, a challenger that was superseded, tasks run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.jobs.promote.shelf import NAME, ROWS, measured

from .conftest import write_configs

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def judge(run: Any, shelf: Any, tmp_path: Path) -> Any:
    """Runs gate or promote for a version, by the store of `shelf`; gives the outcome."""
    import mlflow

    configs = tmp_path / "configs"
    file = write_configs(configs)
    tracking = f"tracking: {{uri: '{mlflow.get_tracking_uri()}', registered_model: {NAME}}}"
    file.write_text(file.read_text().replace("num_epochs: 2", f"num_epochs: 2, {tracking}"))

    def judge(task: str, challenger: str, approved: str | None = None, **conf: Any) -> dict[str, Any]:
        made = {"model_name": NAME, "model_version": challenger, "rows": ROWS, "run_id": "7", "tracking_uri": "x"}
        xcoms: dict[str, Any] = {"evaluate": {"return_value": made}}
        if approved:
            xcoms["approve"] = {"return_value": {"responded_by_user": {"id": "1", "name": approved}}}
        case = {"dag": "promote", "task": task, "xcoms": xcoms, "conf": conf}
        (outcome,) = run(case, SHARDMEAN_CONFIG_DIR=str(configs))
        return dict(outcome)

    return judge


def test_a_challenger_that_is_better_passes_and_is_promoted_and_again_it_is_champion_already(
    shelf: Any,
    judge: Any,
) -> None:
    first, _ = shelf.offer(measured(0.8, loss=0.5))
    second = shelf.add(measured(0.9, loss=0.4))
    passed = judge("gate", second)
    assert (passed["error"], passed["result"]["subject"]) == (None, f"Promote {NAME} version {second}?")
    assert "| accuracy | 0.9000 | 0.8000 |" in passed["result"]["body"]
    assert f"| on test | challenger {second} | champion {first} |" in passed["result"]["body"]
    assert shelf.alias() == first, "the gate moves nothing"
    for _ in range(2):
        promoted = judge("promote", second, approved="ann")
        assert (promoted["error"], promoted["announced"]["model_version"]) == (None, second)
    assert (shelf.alias(), shelf.tags(second)["promoted_by"]) == (second, "ann")
    again = judge("gate", second)
    assert (again["error"], again["message"]) == (
        "AirflowSkipException", f"{NAME} version {second} is champion already"
    )  # fmt: skip


def test_a_challenger_that_is_worse_is_skipped_with_the_reason(shelf: Any, judge: Any) -> None:
    shelf.offer(measured(0.8))
    shelf.offer(measured(0.9))
    shelf.promoter().rollback(by="ann", why="sevens")
    outcome = judge("gate", shelf.add(measured(0.7)))
    assert outcome["error"] == "AirflowSkipException"
    assert "stays challenger: failed: promote.min_improvement: accuracy 0.7, the champion's 0.8" in outcome["message"]
    assert f"({NAME} is held at version 1 by a rollback)" in outcome["message"]


def test_a_newer_challenger_supersedes_one_that_waited_unless_a_person_chose_it(
    shelf: Any,
    judge: Any,
) -> None:
    first, _ = shelf.offer(measured(0.8))
    waiting = shelf.add(measured(0.85))
    shelf.add(measured(0.9))
    outcome = judge("promote", waiting, approved="ann")
    assert (outcome["error"], shelf.alias()) == ("AirflowSkipException", first)
    assert outcome["message"] == f"version {waiting} was superseded: a newer challenger stands"
    assert judge("promote", waiting, approved="ann", version=waiting)["announced"]["model_version"] == waiting
    assert shelf.alias() == waiting


def test_what_does_not_pass_any_more_fails_for_good(shelf: Any, judge: Any) -> None:
    shelf.offer(measured(0.8))
    late = shelf.add(measured(0.85))
    better = shelf.add(measured(0.9))
    shelf.promoter().promote(better, by="bob", why="")
    outcome = judge("promote", late, version=late)
    assert outcome["error"] == "AirflowFailException"
    assert f"{NAME} version {late} does not pass the gate any more" in outcome["message"]


def test_a_run_without_evaluate_says_what_to_clear(run: Any) -> None:
    for task in ("gate", "promote"):
        (outcome,) = run({"dag": "promote", "task": task})
        assert outcome["message"].startswith("the task evaluate left no result in this run: clear it")


def test_evaluate_takes_the_version_of_the_form(run: Any) -> None:
    result = {"model_version": "3"}
    chosen, newest = run(
        {"dag": "promote", "conf": {"version": "3"}, "result": result}, {"dag": "promote", "result": result}
    )
    assert "--version=3" in chosen["arguments"]
    assert not [argument for argument in newest["arguments"] if argument.startswith("--version")]
    assert chosen["arguments"][0] == "evaluate"
