"""Assets of Airflow: a DataSet and a model by their real URIs, so that other teams' DAGs can wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import Asset

from shardmean.model.storage.filesystem import local_path

if TYPE_CHECKING:
    from shardmean.jobs.config.pipeline import Pipeline


def dataset_asset(pipeline: Pipeline) -> Asset:
    """The pipeline's DataSet; its event's extra names the version."""
    uri = pipeline.vectorize.dataset_uri
    path = local_path(uri)
    return Asset(name=f"{pipeline.name} dataset", uri=uri if path is None else f"file://{path}")


def model_asset(pipeline: Pipeline) -> Asset:
    """The pipeline's registered model; its event is a new challenger."""
    name = pipeline.train.tracking.registered_model
    return Asset(name=f"{pipeline.name} model", uri=f"models:/{name}")


def champion_asset(pipeline: Pipeline) -> Asset:
    """The model that serves; its event is a new champion."""
    name = pipeline.train.tracking.registered_model
    return Asset(name=f"{pipeline.name} champion", uri=f"models:/{name}@champion")
