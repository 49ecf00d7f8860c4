"""Which MLflow store a training uses, and what is said when it does not answer."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING

import mlflow

from shardmean.jobs.common.local_paths import data_dir, store_uri
from shardmean.jobs.common.redaction import redact
from shardmean.model.errors import RetryableError

if TYPE_CHECKING:
    from shardmean.jobs.config.job import TrackingConfig


def connect(tracking: TrackingConfig) -> str:
    """Point MLflow at the configured store and see that it answers. Raises RetryableError.

    Returns the URI as it may be shown.
    """
    # MLflow's own defaults wait for minutes before they report a server that is away.
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
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
        raise unreachable(redact(uri), error) from error
    return redact(uri)


def unreachable(uri: str, error: Exception) -> RetryableError:
    """What to raise when the store at `uri` failed with `error`."""
    remedy = "start the server or correct tracking.uri (or MLFLOW_TRACKING_URI)"
    if uri == store_uri():
        remedy = "let SHARDMEAN_HOME be a folder you may write to, or set tracking.uri (or MLFLOW_TRACKING_URI)"
    return RetryableError(
        f"MLflow at {uri} cannot be used: {short(error)}; {remedy}, then repeat the command: nothing is lost"
    )


def short(error: Exception) -> str:
    """What an error says, in a line at most and without secrets: MLflow's own name the whole URI."""
    text = redact(str(error).splitlines()[0]) if str(error) else type(error).__name__
    # requests wraps the system's words ("[Errno 111] Connection refused") in four layers of its own.
    errno = re.search(r"\[Errno -?\d+\] ([\w ]+)", text)
    return errno[1] if errno else text[:200]
