"""This machine's folder: what the demo, the embedded stack and trainings without other settings keep on this machine.

Imports nothing heavy: Airflow parses it with the DAGs.
"""

from __future__ import annotations

import os
from pathlib import Path


def data_dir() -> Path:
    """The folder itself: SHARDMEAN_HOME, else `.shardmean` in the working directory, as in `configs/`."""
    return Path(os.environ.get("SHARDMEAN_HOME") or ".shardmean").expanduser().absolute()


def store_uri() -> str:
    """The MLflow store there: the tracking URI of trainings that are given none, and what the server of `up` shows."""
    return f"sqlite:///{data_dir()}/mlflow.db"


def artifacts() -> Path:
    """Where experiments of that store keep plots and models."""
    return data_dir() / "artifacts"
