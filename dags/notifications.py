"""Tells people by mail, Slack or a webhook: of failures, models that wait for approval, new champions, deadlines."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, BaseNotifier

from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from shardmean.jobs.config.pipeline import Notification, Pipeline

SLACK = "https://hooks.slack.com/services"
TIMEOUT_S = 20
# What each says; Airflow's templates are filled in when it is sent.
TEXTS = {
    "failure": "{{ dag.dag_id }}: task {{ ti.task_id }} failed after {{ ti.try_number }} tries (run {{ run_id }}): "
    "{{ exception }}. Log: {{ ti.log_url }}",
    "approval": "{{ dag.dag_id }}: {{ ti.xcom_pull(task_ids='gate')['subject'] }} Please approve: {{ ti.log_url }}",
    "promotion": "{{ dag.dag_id }}: a new champion: {{ ti.xcom_pull(task_ids='promote') }}",
    "deadline": "{{ dag_run.dag_id }}: run {{ dag_run.dag_run_id }} has missed its deadline of {{ deadline_s }} s",
}


class WebhookNotifier(BaseNotifier):
    """Posts `{"text": ...}` to the URL of an Airflow connection: Slack's, Teams' and most chats' incoming webhooks."""

    template_fields = ("text",)

    def __init__(self, connection_id: str, text: str, *, is_slack: bool = False) -> None:
        super().__init__()
        self.connection_id = connection_id
        self.text = text
        self.is_slack = is_slack

    def notify(self, context: Context) -> None:  # noqa: ARG002 - the text is rendered by now
        """Send it. Raises OSError."""
        connection = BaseHook.get_connection(self.connection_id)
        body = json.dumps({"text": self.text}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(_url(connection, is_slack=self.is_slack), body, headers)  # noqa: S310 - checked
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310 - checked
            pass

    async def async_notify(self, context: Context) -> None:
        """As `notify`, for a deadline, which the triggerer tells of."""
        import asyncio

        await asyncio.to_thread(self.notify, context)


def notifiers(pipeline: Pipeline, event: str) -> list[BaseNotifier]:
    """Those that a pipeline wants for an event. Raises UserError where a package is missing."""
    return [kind(**arguments) for kind, arguments in _wanted(pipeline, event)]


def deadline_notifiers(pipeline: Pipeline) -> list[tuple[type[BaseNotifier], dict[str, Any]]]:
    """Those for a missed deadline, as classes and arguments: the triggerer makes them."""
    return _wanted(pipeline, "deadline")


def _wanted(pipeline: Pipeline, event: str) -> list[tuple[type[BaseNotifier], dict[str, Any]]]:
    return [_notifier(pipeline, one, event) for one in pipeline.airflow.notifications if event in one.events]


def _notifier(pipeline: Pipeline, one: Notification, event: str) -> tuple[type[BaseNotifier], dict[str, Any]]:
    text = TEXTS[event].replace("{{ deadline_s }}", f"{pipeline.airflow.deadline_s or 0:g}")
    if one.kind != "smtp":
        return WebhookNotifier, {"connection_id": one.connection_id, "text": text, "is_slack": one.kind == "slack"}
    try:
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier
    except ModuleNotFoundError:
        raise UserError(
            "airflow.notifications: a mail needs apache-airflow-providers-smtp, where DAGs are parsed and run"
        ) from None
    subject = f"{pipeline.name}: {event}"
    return SmtpNotifier, {
        "to": one.to, "subject": subject, "html_content": f"<p>{text}</p>", "smtp_conn_id": one.connection_id,
    }  # fmt: skip


def _url(connection: Any, *, is_slack: bool) -> str:
    """The connection's URL; a Slack connection holds the token as its password."""
    host = str(connection.host or (SLACK if is_slack else ""))
    url = host if "://" in host else f"{connection.schema or 'https'}://{host}"
    if connection.port and "://" not in host:
        url += f":{connection.port}"
    if is_slack and connection.password:
        url = f"{url.rstrip('/')}/{connection.password.lstrip('/')}"
    if not url.startswith(("http://", "https://")) or url.endswith("://"):
        raise ValueError(f"connection {connection.conn_id}: its host is no http(s) URL")
    return url
