"""Both DAGs in the embedded stack: by REST, by the asset's event, by the form in a browser; and what a user sees."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
from typing import Any

import pytest

from .conftest import SHARDMEAN, Stack, clean_environment, free_ports, wait_for, write_digits

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture(scope="session")
def vectorized(stack: Stack) -> dict[str, Any]:
    return stack.finished("digits_vectorize", stack.trigger("digits_vectorize", {}))


@pytest.fixture(scope="session")
def trained(stack: Stack, vectorized: dict[str, Any]) -> dict[str, Any]:
    return next_triggered(stack, set())


def triggered(stack: Stack) -> set[str]:
    """The runs of digits_train that events have started."""
    return {run["dag_run_id"] for run in stack.runs("digits_train") if run["run_type"] == "asset_triggered"}


def next_triggered(stack: Stack, before: set[str]) -> dict[str, Any]:
    """The run of digits_train that the next event has started, once it has finished."""
    return stack.finished("digits_train", wait_for(lambda: triggered(stack) - before, 60).pop())


def test_vectorize_by_rest_publishes_the_dataset_as_asset_event(stack: Stack, vectorized: dict[str, Any]) -> None:
    assert vectorized["state"] == "success"
    event = stack.call("/api/v2/assets/events?source_dag_id=digits_vectorize")["asset_events"][0]
    manifest = json.loads((stack.home / "dataset" / "manifest.json").read_text())
    assert event["extra"]["digest"] == manifest["digest"]
    assert sum(event["extra"]["num_examples"].values()) == 400


def test_train_runs_on_the_assets_event(stack: Stack, trained: dict[str, Any]) -> None:
    assert trained["state"] == "success"
    task = stack.task("digits_train", trained["dag_run_id"], "train")
    assert (task["state"], task["try_number"]) == ("success", 1)


def test_the_task_shows_run_version_and_link(stack: Stack, trained: dict[str, Any]) -> None:
    run_id = trained["dag_run_id"]
    result = stack.task("digits_train", run_id, "train", "/xcomEntries/return_value?deserialize=true")["value"]
    manifest = json.loads((stack.home / "dataset" / "manifest.json").read_text())
    assert result["dataset_digest"] == manifest["digest"]
    assert (result["model_version"], result["aliases"]) == ("1", ["challenger"]), "the gate is another DAG's"
    links = stack.task("digits_train", run_id, "train", "/links")["extra_links"]
    assert links["MLflow run"].startswith(f"{stack.mlflow}/#/experiments/")
    assert links["MLflow run"].endswith(result["run_id"])


def test_the_first_model_is_promoted_by_a_run_of_its_own(stack: Stack, trained: dict[str, Any]) -> None:
    run = wait_for(lambda: stack.runs("digits_promote"), 60)[0]
    assert stack.finished("digits_promote", run["dag_run_id"])["state"] == "success"
    path = "/xcomEntries/return_value?deserialize=true"
    promoted = stack.task("digits_promote", run["dag_run_id"], "promote", path)["value"]
    assert (promoted["model_name"], promoted["model_version"], promoted["promoted_by"]) == ("digits", "1", "the gate")


def test_nothing_new_is_skipped_and_trains_nothing(stack: Stack, trained: dict[str, Any]) -> None:
    run_id = stack.trigger("digits_vectorize", {})
    assert stack.finished("digits_vectorize", run_id)["state"] == "success"
    assert stack.task("digits_vectorize", run_id, "vectorize")["state"] == "skipped"
    assert len(triggered(stack)) == 1


def test_a_version_that_was_trained_with_these_settings_is_skipped(stack: Stack, trained: dict[str, Any]) -> None:
    run_id = stack.trigger("digits_train", {"skip_trained": True})
    assert stack.finished("digits_train", run_id)["state"] == "success"
    tasks = {name: stack.task("digits_train", run_id, name)["state"] for name in ("train", "train_newest")}
    assert tasks == {"train": "skipped", "train_newest": "skipped"}
    said = json.dumps(stack.task("digits_train", run_id, "train", "/logs/1"))
    assert "was trained with these settings already: run" in said


def test_a_version_that_was_published_by_the_command_line_is_announced(stack: Stack, trained: dict[str, Any]) -> None:
    before = triggered(stack)
    write_digits(stack.home / "images", range(400, 410))
    configs = stack.home / "configs"
    subprocess.run(
        [SHARDMEAN, "vectorize", "--pipeline", str(configs / "pipelines" / "digits.yaml")],
        env=clean_environment(stack.home, SHARDMEAN_CONFIG_DIR=str(configs)), timeout=120, check=True,
    )  # fmt: skip
    digest = json.loads((stack.home / "dataset" / "manifest.json").read_text())["digest"]
    run_id = stack.trigger("digits_vectorize", {})
    assert stack.finished("digits_vectorize", run_id)["state"] == "success"
    assert stack.task("digits_vectorize", run_id, "vectorize")["state"] == "success"
    run_id = next_triggered(stack, before)["dag_run_id"]
    result = stack.task("digits_train", run_id, "train", "/xcomEntries/return_value?deserialize=true")["value"]
    assert result["dataset_digest"] == digest


def test_a_value_outside_the_schema_is_refused_at_once(stack: Stack) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        stack.trigger("digits_train", {"num_epochs": 0})
    assert refusal.value.code == 400
    assert "0 is less than the minimum of 1" in refusal.value.read().decode()


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"optimizer.momentum": 0.5}, "momentum is 0.5, but adam has none: set it to 0 or use sgd"),
        (
            {"spark": {"spark.python.daemon.module": "os"}},
            "spark: not in the form of digits_train, so a run may not set it",
        ),
    ],
)
def test_the_users_mistake_fails_without_retry(
    stack: Stack, vectorized: dict[str, Any], conf: dict[str, Any], message: str
) -> None:
    run_id = stack.trigger("digits_train", conf)
    assert stack.finished("digits_train", run_id)["state"] == "failed"
    assert stack.task("digits_train", run_id, "train")["try_number"] == 1
    assert message in json.dumps(stack.task("digits_train", run_id, "train", "/logs/1"))


def test_the_worlds_error_is_left_to_a_retry(stack: Stack, vectorized: dict[str, Any]) -> None:
    damaged = "f" * 32
    (stack.home / "dataset" / "versions" / f"{damaged}.json").write_text("[")
    run_id = stack.trigger("digits_train", {"dataset_digest": damaged})
    states = wait_for(
        lambda: (
            (t := stack.task("digits_train", run_id, "train"))["state"] in ("up_for_retry", "failed") and [t["state"]]
        ),
        120,
    )
    assert states == ["up_for_retry"]
    path = f"/api/v2/dags/digits_train/dagRuns/{run_id.replace('+', '%2B').replace(':', '%3A')}"
    stack.call(path, {"state": "failed"}, "PATCH")


def test_a_taken_port_is_a_clear_error(stack: Stack) -> None:
    other, third = free_ports(2)
    with socket.create_server(("127.0.0.1", other)):
        done = subprocess.run(
            [SHARDMEAN, "up", f"--airflow-port={third}", f"--mlflow-port={other}"],
            env=clean_environment(stack.home / "other"), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"port {other} is taken: stop what uses it, or choose another with --mlflow-port" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_trigger_form_in_a_browser(stack: Stack, vectorized: dict[str, Any]) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here: apt install chromium")
    from playwright.sync_api import sync_playwright

    write_digits(stack.home / "images", range(400, 420))
    before = {run["dag_run_id"] for run in stack.runs("digits_vectorize")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_OPTIONS)
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.goto(stack.airflow)
        page.fill("input[name=username]", "admin")
        page.fill("input[name=password]", stack.password)
        page.click("button[type=submit]")
        page.wait_for_url("**/")
        page.goto(f"{stack.airflow}/dags/digits_vectorize")
        page.get_by_role("button", name="Trigger").first.click()
        share = page.locator("input[name='element_max_rejected_fraction']")
        share.wait_for()
        shown = page.locator("input[name^=element_]:visible").evaluate_all("all => all.map(one => one.name)")
        # Sections start collapsed: the fields that matter most stand outside them and show at once.
        assert "element_source.uri" in shown
        assert "element_split.train" not in shown
        share.fill("0.25")
        dialog = page.locator("[role=dialog][data-state=open]")
        dialog.get_by_role("button", name="Trigger").last.click()
        new = wait_for(lambda: {r["dag_run_id"] for r in stack.runs("digits_vectorize")} - before, 30)
        browser.close()
    run = stack.finished("digits_vectorize", new.pop())
    assert (run["state"], run["conf"]["max_rejected_fraction"]) == ("success", 0.25)
    manifest = json.loads((stack.home / "dataset" / "manifest.json").read_text())
    assert manifest["source"]["num_files"] == 420


BROWSER_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
