"""The operator of both DAGs, without Spark: what a run gives its job, and what becomes of the job's result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

OLD, NEW = "0" * 32, "1" * 32


def event(dataset_uri: Any, digest: str = NEW) -> dict[str, str]:
    return {"dataset_uri": str(dataset_uri), "digest": digest}


def test_a_run_started_by_events_trains_on_the_newest_version_of_its_own_dataset(run: Any, home: Path) -> None:
    pets, digits = home / "pets", home / "dataset"
    both, pets_alone, by_hand, by_key = run(
        {"dag": "train_cnn", "events": [event(digits, OLD), event(digits), event(pets, OLD)]},
        {"dag": "train_cnn", "events": [event(pets)]},
        {"dag": "train_cnn", "conf": {"dataset_uri": str(pets), "dataset_digest": OLD}},
        {"dag": "train_cnn", "conf": {"run_key": "mine"}},
    )
    assert f'dataset_digest="{NEW}"' in both["arguments"]
    assert f"{digits}/versions/{NEW}.json: not found" in both["message"], "nothing else was wrong"

    assert (pets_alone["error"], pets_alone["arguments"]) == ("AirflowSkipException", [])
    for part in (f"published: {pets};", f"trains on {digits}.", "by hand", "tracking.registered_model", "train.yaml"):
        assert part in pets_alone["message"]

    assert not any("dataset_digest=" in argument for argument in by_hand["arguments"])
    assert f"{pets}/versions/{OLD}.json: not found" in by_hand["message"]
    assert not any("run_key=" in argument for argument in by_key["arguments"]), "the run's conf may name another"


def test_a_version_is_announced_unless_airflow_has_heard_of_it(run: Any) -> None:
    def case(*known: dict[str, str], changed: bool = False, try_number: int = 1) -> dict[str, Any]:
        result = {"dataset_uri": "/digits", "digest": NEW, "changed": changed}
        return {"dag": "vectorize_images", "known": known, "result": result, "try_number": try_number}

    pets = [event("/pets", OLD)] * 99
    never, heard, published_since, retried, back_again, behind_others, far_behind = run(
        case(),
        case(event("/digits"), changed=True),
        case(event("/digits", OLD)),
        case(event("/digits"), try_number=2),
        case(event("/digits"), event("/digits", OLD)),
        case(event("/digits"), *pets),
        case(event("/digits"), *pets, event("/pets", OLD)),
    )
    for announced in (never, published_since, back_again, far_behind):
        assert (announced["error"], announced["announced"]["digest"]) == (None, NEW)
    for skipped in (heard, retried, behind_others):
        assert (skipped["error"], skipped["announced"]) == ("AirflowSkipException", {})
        assert skipped["message"] == f"nothing new: /digits stays at version {NEW}"


def test_a_model_is_announced_after_each_training(run: Any) -> None:
    result = {"dataset_uri": "/digits", "dataset_digest": NEW, "run_url": None}
    (again,) = run({"dag": "train_cnn", "result": result, "try_number": 2})
    assert (again["error"], again["announced"]) == (None, result)


def test_names_hold_only_what_every_store_takes_and_differ_for_each_run(run: Any) -> None:
    by_hand = "manual__2026-11-26T02:03:04+00:00"
    run_ids = [by_hand, by_hand.replace("+", "-"), "of J\u00fcrgen / 7", "x" * 250]
    outcomes = run(*({"dag": "train_cnn", "run_id": run_id, "try_number": 3} for run_id in run_ids))
    names = [_given(outcome, "run_key") for outcome in outcomes]
    assert names[0].startswith("train_cnn-manual__2026-11-26T02-03-04-00-00-")
    assert names[2].startswith("train_cnn-of-J-rgen---7-")
    assert len(set(names)) == 4
    for name, outcome in zip(names, outcomes, strict=True):
        assert re.fullmatch("[A-Za-z0-9._-]{1,200}", name)
        assert Path(_given(outcome, "--result")).name == f"{name}-3.json"
        assert "run_key" not in outcome["message"], "the job takes it"


def test_the_result_may_lie_in_any_store_that_the_job_can_write_to(run: Any, home: Path, new_bucket: Any) -> None:
    bucket = new_bucket()
    folder, _, options = bucket.partition("?")
    published = {"dataset_uri": "/digits", "digest": NEW, "changed": True}
    success, mistake = run(
        {"dag": "vectorize_images", "result": published},
        {"dag": "train_cnn"},
        SHARDMEAN_RESULTS_URI=f"{folder}/results of jobs?{options}",
    )
    assert (success["error"], success["result"], success["announced"]) == (None, published, published)
    assert _given(success, "--result").startswith(f"{folder}/results of jobs/vectorize/vectorize_images-manual__")
    assert _given(success, "--result").endswith(f".json?{options}")
    assert mistake["error"] == "AirflowFailException", "the job's own words came through the store"
    assert f"{home}/dataset/manifest.json: not found" in mistake["message"]


def test_a_result_that_cannot_be_read_is_told(run: Any, tmp_path: Path) -> None:
    (nowhere,) = run({"dag": "vectorize_images", "result": None}, SHARDMEAN_RESULTS_URI=str(tmp_path))
    assert nowhere["error"] == "RuntimeError", "a retry may find the place mounted"
    assert "the job ended well, but there is no result at" in nowhere["message"]
    assert "set SHARDMEAN_RESULTS_URI to a place that Spark's drivers and Airflow's workers both" in nowhere["message"]
    (unknown,) = run({"dag": "vectorize_images"}, SHARDMEAN_RESULTS_URI="ftp://host/results")
    assert unknown["error"] == "AirflowFailException"
    assert "SHARDMEAN_RESULTS_URI: ftp://host/results/" in unknown["message"]
    assert "unknown store 'ftp'" in unknown["message"]
    (secret,) = run({"dag": "vectorize_images"}, SHARDMEAN_RESULTS_URI="s3://key:secret@bucket/results")
    assert (secret["error"], secret["arguments"]) == ("AirflowFailException", []), "arguments are logged"
    assert secret["message"].startswith("SHARDMEAN_RESULTS_URI: a URI must hold no password")


def _given(outcome: dict[str, Any], key: str) -> str:
    (argument,) = (argument for argument in outcome["arguments"] if argument.startswith(f"{key}="))
    return str(argument.partition("=")[2])
