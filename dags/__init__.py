"""DAGs for Airflow, made of pipelines' files.

A team's own Airflow gets them by a file in its DAGs folder:

    # Airflow DAGs of Shardmean's pipelines
    from shardmean.dags import load_pipelines

    globals().update(load_pipelines("pipelines/"))
"""

from __future__ import annotations

from typing import Any

__all__ = ["load_pipelines"]


def __getattr__(name: str) -> Any:
    # Lazy: Airflow's workers import this package for each module in it.
    if name == "load_pipelines":
        from shardmean.dags.factory import load_pipelines

        return load_pipelines
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
