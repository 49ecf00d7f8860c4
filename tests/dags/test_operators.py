"""The tasks of a pipeline's DAGs, without Spark: what a run gives its job, and what becomes of the job's result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shardmean.jobs.checks.candidate import load_candidate
from shardmean.model.dataset.manifest import load_manifest
from tests.jobs.pile import Pile

OLD, NEW = "0" * 32, "1" * 32


def event(digest: str = NEW) -> dict[str, str]:
    return {"digest": digest}


def test_a_run_by_hand_trains_what_it_is_told_and_one_by_an_event_the_newest_version_once(run: Any, home: Path) -> None:
    by_event, again, by_hand, by_key = run(
        {"dag": "train", "events": [event(OLD), event()]},
        {"dag": "train", "conf": {"skip_trained": True}},
        {"dag": "train", "conf": {"dataset_digest": OLD}},
        {"dag": "train", "conf": {"run_key": "mine"}},
    )
    for outcome in (by_event, again):
        assert "--skip-trained" in outcome["arguments"]
        assert f"{home}/dataset/manifest.json: not found" in outcome["message"], "the current version"
    for outcome in (by_hand, by_key):
        assert "--skip-trained" not in outcome["arguments"]
    assert f"{home}/dataset/versions/{OLD}.json: not found" in by_hand["message"]
    assert not any("run_key=" in argument for argument in by_key["arguments"]), "the run's conf may name another"


def test_a_version_is_announced_unless_airflow_has_heard_of_it(run: Any) -> None:
    def case(*known: dict[str, str], is_published: bool = True, try_number: int = 1) -> dict[str, Any]:
        result = {"dataset_uri": "/digits", "digest": NEW, "is_published": is_published}
        return {"dag": "vectorize", "known": known, "result": result, "try_number": try_number}

    never, published_since, back_again, candidate, heard, retried = run(
        case(),
        case(event(OLD)),
        case(event(), event(OLD)),
        case(event(), is_published=False),
        case(event()),
        case(event(), try_number=2),
    )
    for goes_on in (never, published_since, back_again, candidate):
        assert (goes_on["error"], goes_on["result"]["digest"]) == (None, NEW)
    for skipped in (heard, retried):
        assert skipped["error"] == "AirflowSkipException"
        assert skipped["message"] == f"nothing new: /digits stays at version {NEW}"


@pytest.fixture
def candidate(tmp_path: Path) -> tuple[Pile, dict[str, Any]]:
    """A pile with a published version, and what `vectorize` says of a candidate that makes one class much larger."""
    from shardmean.jobs.spark.task_runner import LocalRunner
    from shardmean.jobs.vectorize.job import vectorize

    pile = Pile(tmp_path)
    pile.run()
    pile.write({f"a/many {number}": number for number in range(20)})
    made = vectorize(pile.job(), runner=LocalRunner(), is_published=False)
    return pile, {"dataset_uri": pile.uri, "digest": made.digest, "is_published": False}


def test_check_and_publish_work_on_what_vectorize_made_and_do_so_again(run: Any, candidate: Any) -> None:
    pile, made = candidate
    before, xcoms = load_manifest(pile.uri).digest, {"vectorize": {"return_value": made}}
    checked, refused, none = run(
        {"dag": "vectorize", "task": "check", "xcoms": xcoms},
        {"dag": "vectorize", "task": "check", "xcoms": xcoms, "conf": {"checks.max_class_share_change": 0.05}},
        {"dag": "vectorize", "task": "check"},
    )
    assert checked["error"] is None
    assert any(finding.startswith("passed: checks.max_class_share_change: ") for finding in checked["result"])
    assert refused["error"] == "AirflowFailException"
    assert "failed: checks.max_class_share_change: change of the share of class 'a': 0.3125" in refused["message"]
    assert f"shardmean publish {pile.uri} {made['digest']}" in refused["message"]
    assert none["message"].startswith("the task vectorize left no result in this run")
    assert load_manifest(pile.uri).digest == before
    for _ in range(2):
        (published,) = run({"dag": "vectorize", "task": "publish", "xcoms": xcoms})
        assert (published["error"], published["announced"]["digest"]) == (None, made["digest"])
        assert load_manifest(pile.uri).digest == made["digest"]
    assert load_candidate(pile.uri) is None
    (checked_again,) = run({"dag": "vectorize", "task": "check", "xcoms": xcoms})
    assert (checked_again["error"], checked_again["result"]) == (None, [])


def test_a_candidate_that_is_none_any_more_fails_for_good(run: Any, candidate: Any) -> None:
    pile, made = candidate
    pile.write({"b/new": 500})
    pile.run()
    (outcome,) = run({"dag": "vectorize", "task": "publish", "xcoms": {"vectorize": {"return_value": made}}})
    assert outcome["error"] == "AirflowFailException"
    assert "does not await publication (it has no candidate)" in outcome["message"]


def test_a_model_is_announced_after_each_training_and_a_trained_version_is_skipped(run: Any) -> None:
    result = {"dataset_uri": "/digits", "dataset_digest": NEW, "run_url": None}
    skipped = {"skipped": f"version {NEW} was trained already", "dataset_digest": NEW, "run_id": "5"}
    again, trained_before = run(
        {"dag": "train", "result": result, "try_number": 2}, {"dag": "train", "result": skipped, "events": [event()]}
    )
    assert (again["error"], again["announced"]) == (None, result)
    assert (trained_before["error"], trained_before["announced"]) == ("AirflowSkipException", {})
    assert trained_before["message"] == skipped["skipped"]
    assert again["pushed"] == trained_before["pushed"] == {"digest": NEW}


def test_after_a_training_a_newer_version_is_trained_and_no_other(run: Any, home: Path, tmp_path: Path) -> None:
    pile = Pile(tmp_path)
    (home / "configs-of-pile" / "pipelines").mkdir(parents=True, exist_ok=True)
    (home / "configs-of-pile" / "pipelines" / "digits.yaml").write_text(
        f"name: digits\nvectorize: {{source: {{uri: /x}}, dataset_uri: '{pile.uri}'}}\n"
        f"train: {{checkpoint_uri: '{home}/checkpoints'}}\n"
    )
    first = pile.run().digest
    pile.write({"a/new": 1})
    second = pile.run().digest

    def case(trained: str, **conf: Any) -> dict[str, Any]:
        return {"dag": "train", "task": "train_newest", "conf": conf, "xcoms": {"train": {"digest": trained}}}

    newer, newest, told = run(
        case(first), case(second), case(first, dataset_digest=first),
        SHARDMEAN_CONFIG_DIR=str(home / "configs-of-pile"),
    )  # fmt: skip
    assert newer["started"] == [["digits_train", {"skip_trained": True}]]
    for outcome in (newest, told):
        assert (outcome["error"], outcome["started"]) == ("AirflowSkipException", [])


def test_names_hold_only_what_every_store_takes_and_differ_for_each_run(run: Any) -> None:
    by_hand = "manual__2026-11-26T02:03:04+00:00"
    run_ids = [by_hand, by_hand.replace("+", "-"), "of J\u00fcrgen / 7", "x" * 250]
    outcomes = run(*({"dag": "train", "run_id": run_id, "try_number": 3} for run_id in run_ids))
    names = [_given(outcome, "run_key") for outcome in outcomes]
    assert names[0].startswith("digits_train-manual__2026-11-26T02-03-04-00-00-")
    assert names[2].startswith("digits_train-of-J-rgen---7-")
    assert len(set(names)) == 4
    for name, outcome in zip(names, outcomes, strict=True):
        assert re.fullmatch("[A-Za-z0-9._-]{1,200}", name)
        assert Path(_given(outcome, "--result")).name == f"{name}-3.json"
        assert "run_key" not in outcome["message"], "the job takes it"


def test_the_result_may_lie_in_any_store_that_the_job_can_write_to(run: Any, home: Path, new_bucket: Any) -> None:
    bucket = new_bucket()
    folder, _, options = bucket.partition("?")
    published = {"dataset_uri": "/digits", "digest": NEW, "is_published": False}
    success, mistake = run(
        {"dag": "vectorize", "result": published},
        {"dag": "train"},
        SHARDMEAN_RESULTS_URI=f"{folder}/results of jobs?{options}",
    )
    assert (success["error"], success["result"]) == (None, published)
    assert _given(success, "--result").startswith(f"{folder}/results of jobs/vectorize/digits_vectorize-manual__")
    assert _given(success, "--result").endswith(f".json?{options}")
    assert mistake["error"] == "AirflowFailException", "the job's own words came through the store"
    assert f"{home}/dataset/manifest.json: not found" in mistake["message"]


def test_a_result_that_cannot_be_read_is_told(run: Any, tmp_path: Path) -> None:
    (nowhere,) = run({"dag": "vectorize", "result": None}, SHARDMEAN_RESULTS_URI=str(tmp_path))
    assert nowhere["error"] == "RuntimeError", "a retry may find the place mounted"
    assert "the job ended well, but there is no result at" in nowhere["message"]
    assert "set SHARDMEAN_RESULTS_URI to a place that Spark's drivers and Airflow's workers both" in nowhere["message"]
    (unknown,) = run({"dag": "vectorize"}, SHARDMEAN_RESULTS_URI="ftp://host/results")
    assert unknown["error"] == "AirflowFailException"
    assert "SHARDMEAN_RESULTS_URI: ftp://host/results/" in unknown["message"]
    assert "unknown store 'ftp'" in unknown["message"]
    (secret,) = run({"dag": "vectorize"}, SHARDMEAN_RESULTS_URI="s3://key:secret@bucket/results")
    assert (secret["error"], secret["arguments"]) == ("AirflowFailException", []), "arguments are logged"
    assert secret["message"].startswith("SHARDMEAN_RESULTS_URI: a URI must hold no password")


def _given(outcome: dict[str, Any], key: str) -> str:
    (argument,) = (argument for argument in outcome["arguments"] if argument.startswith(f"{key}="))
    return str(argument.partition("=")[2])
