"""A second pipeline beside the first, in the real scheduler: versions that come while a training runs.

Airflow gives the events that come meanwhile to no run before the next event (apache/airflow#56050), and then the oldest
first. The newest version is trained all the same, once, and no other.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from .conftest import Stack, wait_for, write_digits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
SLOW = """
name: slow
vectorize: {{source: {{uri: '{home}/slow-images'}}, dataset_uri: '{home}/slow-dataset'}}
train: {{checkpoint_uri: '{home}/slow-checkpoints', num_epochs: 150, early_stopping: {{patience: null}}}}
promote: {{approval: required}}
"""
QUIET = ("success", "failed")


@pytest.fixture(scope="module")
def slow(stack: Stack) -> Stack:
    (stack.home / "configs" / "pipelines" / "slow.yaml").write_text(SLOW.format(home=stack.home))
    write_digits(stack.home / "slow-images", range(120))
    wait_for(lambda: "slow_train" in {dag["dag_id"] for dag in stack.call("/api/v2/dags")["dags"]}, 90)
    return stack


def publish(stack: Stack, numbers: range) -> str:
    write_digits(stack.home / "slow-images", numbers)
    run = stack.finished("slow_vectorize", stack.trigger("slow_vectorize", {}))
    assert run["state"] == "success"
    return digest(stack.home / "slow-dataset")


def digest(dataset: Path) -> str:
    return str(json.loads((dataset / "manifest.json").read_text())["digest"])


def trained(stack: Stack) -> dict[str, Any]:
    """What the task `train` of each run has left, by the run's id, oldest first."""
    runs = sorted(stack.runs("slow_train"), key=lambda run: run["run_after"])
    return {run["dag_run_id"]: (run["state"], stack.task("slow_train", run["dag_run_id"], "train")) for run in runs}


def test_the_newest_of_the_versions_that_came_meanwhile_is_trained_and_no_other(slow: Stack) -> None:
    first = publish(slow, range(120, 130))
    wait_for(lambda: [task for _, task in trained(slow).values() if task["state"] == "running"], 60)
    second, newest = publish(slow, range(130, 140)), publish(slow, range(140, 150))
    assert len({first, second, newest}) == 3
    (state, _), *others = trained(slow).values()
    assert (state, [each for each, _ in others if each != "queued"]) == ("running", []), "it trains still"

    def all_done() -> bool:
        found = trained(slow)
        return len(found) >= 2 and all(state in QUIET for state, _ in found.values())

    wait_for(all_done, 400)
    wait_for(lambda: False if not all_done() else len(trained(slow)), 30)
    results = {}
    for run_id, (state, task) in trained(slow).items():
        assert state == "success"
        if task["state"] == "success":
            more = "/xcomEntries/return_value?deserialize=true"
            results[run_id] = slow.task("slow_train", run_id, "train", more)["value"]["dataset_digest"]
    assert list(results.values()) == [first, newest]


def test_models_wait_for_a_person_and_only_the_newest_is_promoted(slow: Stack) -> None:
    def waiting() -> list[dict[str, Any]]:
        path = "/api/v2/dags/slow_promote/dagRuns/~/hitlDetails?response_received=false"
        found = [one for one in slow.call(path)["hitl_details"] if one["task_instance"]["task_id"] == "approve"]
        return sorted(found, key=lambda one: one["created_at"])

    def approved(one: dict[str, Any]) -> tuple[str, str]:
        """The run, and what became of its task `promote`."""
        run_id = str(one["task_instance"]["dag_run_id"])
        run = quote(run_id, safe="")
        path = f"/api/v2/dags/slow_promote/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
        slow.call(path, {"chosen_options": ["Approve"], "params_input": {}}, "PATCH")
        assert slow.finished("slow_promote", run_id)["state"] == "success"
        return run_id, str(slow.task("slow_promote", run_id, "promote")["state"])

    older, newest = wait_for(lambda: found if len(found := waiting()) == 2 else None, 180)
    assert newest["subject"].startswith("Promote slow version ")
    assert "| accuracy |" in newest["body"]
    run_id, state = approved(older)
    assert state == "skipped"
    assert "was superseded: a newer challenger stands" in json.dumps(
        slow.task("slow_promote", run_id, "promote", "/logs/1")
    )
    run_id, state = approved(newest)
    assert state == "success"
    more = "/xcomEntries/return_value?deserialize=true"
    assert slow.task("slow_promote", run_id, "promote", more)["value"]["promoted_by"] == "admin"
