"""Settings of the task that runs a job in Airflow. Imports no Airflow: jobs read them with their config."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shardmean.jobs.config.uris import Uri
from shardmean.model.config.base import Settings

MAX_RETRY_DELAY_S = 600
Name = Annotated[str, Field(min_length=1, max_length=250)]


class AirflowConfig(Settings):
    """How Airflow runs the DAG's task, and what a run of it may name."""

    connection_id: Name = "spark_default"
    """Airflow's connection to Spark."""
    pool: Name | None = None
    """Airflow pool in whose slots the task runs; null: Airflow's default."""
    queue: Name | None = None
    """Queue of the Airflow workers that the task goes to; null: Airflow's default."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Retries of a failed task; a failure by the user's mistake is not retried."""
    retry_delay_s: Annotated[float, Field(ge=0, le=MAX_RETRY_DELAY_S)] = 30
    """Minimum pause before the first retry, in seconds; it doubles with each further one, up to ten minutes."""
    timeout_s: Annotated[float, Field(gt=0, le=10**8)] | None = None
    """A try that takes longer, in seconds, is stopped and counts as failed; null: none is."""
    allowed_roots: Annotated[list[Uri], Field(max_length=100)] = []
    """Folders and URI prefixes that limit where the job reads and writes; empty: no limit."""
