"""What a pipeline tells people, received by a real server: the text, filled in, at the connection's URL."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEND = """
import asyncio, sys
from airflow.sdk import DAG
from types import SimpleNamespace
from shardmean.dags.notifications import deadline_notifiers, notifiers
from shardmean.jobs.config.loading import load_pipeline
from pathlib import Path

pipeline = load_pipeline(Path(sys.argv[1]))
context = {
    "dag": DAG("pets_train", schedule=None),
    "ti": SimpleNamespace(task_id="train", try_number=4, log_url="http://airflow/log", xcom_pull=lambda task_ids: {
        "gate": {"subject": "Promote pets version 3?"}, "promote": {"model_version": "3"}}[task_ids]),
    "run_id": "manual__1", "exception": "the disk is full",
    "dag_run": SimpleNamespace(dag_id="pets_train", dag_run_id="manual__1"),
}
for event in ("failure", "approval", "promotion"):
    for notifier in notifiers(pipeline, event):
        notifier(dict(context))
for kind, arguments in deadline_notifiers(pipeline):
    notifier = kind(**arguments)
    notifier.context = dict(context)

    async def send():
        await notifier

    asyncio.run(send())
print("sent")
"""


class Chat(BaseHTTPRequestHandler):
    received: list[tuple[str, dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Chat.received.append((self.path, json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[str]:
    Chat.received.clear()
    server = HTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def send(tmp_path: Path, notifications: str, **connections: dict[str, str]) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "pets.yaml"
    file.write_text(
        "name: pets\nvectorize: {source: {uri: /x}, dataset_uri: /y}\ntrain: {checkpoint_uri: /z}\n"
        f"airflow: {{deadline_s: 600, notifications: {notifications}}}\n"
    )
    variables = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(value) for name, value in connections.items()}
    environment = clean_environment(tmp_path, AIRFLOW_HOME=str(tmp_path), **variables)
    return subprocess.run(
        [sys.executable, "-c", SEND, str(file)], env=environment, capture_output=True, text=True, timeout=120
    )


def test_each_event_says_what_happened_and_where(chat: str, tmp_path: Path) -> None:
    everything = "[{connection_id: chat, kind: webhook, events: [failure, approval, promotion, deadline]}]"
    done = send(tmp_path, everything, chat={"conn_type": "http", "host": f"{chat}/hook"})
    assert done.stdout.splitlines()[-1:] == ["sent"], done.stderr
    assert Chat.received == [
        ("/hook", {"text": "pets_train: task train failed after 4 tries (run manual__1): the disk is full. "
                           "Log: http://airflow/log"}),
        ("/hook", {"text": "pets_train: Promote pets version 3? Please approve: http://airflow/log"}),
        ("/hook", {"text": "pets_train: a new champion: {'model_version': '3'}"}),
        ("/hook", {"text": "pets_train: run manual__1 has missed its deadline of 600 s"}),
    ]  # fmt: skip


def test_slacks_token_is_the_connections_password(chat: str, tmp_path: Path) -> None:
    slack = {"conn_type": "slackwebhook", "host": chat, "password": "T0/B0/xyz"}
    done = send(tmp_path, "[{connection_id: team, kind: slack}]", team=slack)
    assert done.stdout.splitlines()[-1:] == ["sent"], done.stderr
    assert [path for path, _ in Chat.received] == ["/T0/B0/xyz"], "of a failure alone, by default"


@pytest.mark.parametrize("host", ["file:///etc/passwd", ""])
def test_a_connection_that_is_no_web_address_is_named(tmp_path: Path, host: str) -> None:
    done = send(tmp_path, "[{connection_id: odd, kind: webhook}]", odd={"conn_type": "http", "host": host})
    assert "connection odd: its host is no http(s) URL" in done.stderr
