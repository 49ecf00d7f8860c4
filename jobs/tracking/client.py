"""Connects to the MLflow store of a training, and says what its errors mean."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

import mlflow

from shardmean.jobs.common.local_paths import data_dir, store_uri
from shardmean.jobs.common.redaction import redact
from shardmean.model.errors import RetryableError, UserError

if TYPE_CHECKING:
    from shardmean.jobs.config.job import TrackingConfig


def connect(tracking: TrackingConfig) -> str:
    """Point MLflow at the configured store, check that it answers, and return its URI without secrets.

    Raises UserError where it refuses, RetryableError where it does not answer.
    """
    # MLflow's own defaults wait for minutes before they report a server that is away.
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(key, value)
    for noisy in ("alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or store_uri()
    try:
        if uri == store_uri():
            data_dir().mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        mlflow.MlflowClient().search_experiments(max_results=1)
    except Exception as error:  # SQLAlchemy's, requests' and MLflow's own errors all mean the same here
        raise mlflow_error(redact(uri), error) from error
    return redact(uri)


def mlflow_error(uri: str, error: Exception) -> UserError | RetryableError:
    """What to raise where the store at `uri` failed with `error`: a refusal is the user's, all else may pass."""
    text = f"MLflow at {uri} cannot be used: {short(error)}"
    if _is_refusal(error):
        return UserError(
            f"{text}; the server refuses this client: start it with --allowed-hosts naming the host of this URI, use a "
            "URI that it allows, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; then repeat the "
            "command: nothing is lost"
        )
    remedy = "start the server or correct tracking.uri (or MLFLOW_TRACKING_URI)"
    if uri == store_uri():
        remedy = "let SHARDMEAN_HOME be a folder you may write to, or set tracking.uri (or MLFLOW_TRACKING_URI)"
    return RetryableError(f"{text}; {remedy}, then repeat the command: nothing is lost")


def _is_refusal(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)  # of requests, which carries artifacts
    return status in (401, 403) or getattr(error, "error_code", None) in ("UNAUTHENTICATED", "PERMISSION_DENIED")


def short(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters and without secrets."""
    text = redact(str(error).splitlines()[0]) if str(error) else type(error).__name__
    # requests wraps the system's words ("[Errno 111] Connection refused") in four layers of its own.
    errno = re.search(r"\[Errno -?\d+\] ([\w ]+)", text)
    return errno[1] if errno else text[:200]
