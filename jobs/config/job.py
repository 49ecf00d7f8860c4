"""What a job takes: settings of `model.config` composed with URIs.

Imports no torch, Spark or MLflow: Airflow parses it with the DAGs.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from shardmean.jobs.common.redaction import holds_password
from shardmean.jobs.config.airflow import AirflowConfig
from shardmean.jobs.config.checks import ChecksConfig
from shardmean.jobs.config.promote import PromoteConfig
from shardmean.jobs.config.source import SourceConfig
from shardmean.jobs.config.spark_settings import SparkSettings
from shardmean.jobs.config.uris import AllowedRoots, Uri
from shardmean.model.config.base import Fraction, Settings
from shardmean.model.config.fine_tuning import REGISTERED
from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]
DIGEST = "^[0-9a-f]{32}$"


def _checked_run_key(run_key: str) -> str:
    # It names a folder, and HDFS takes neither ':' nor '+' in a name.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", run_key):
        raise ValueError("use letters, digits, '.', '_' and '-', 200 at most, and begin with a letter or digit")
    return run_key


class SparkJob(Settings, ABC):
    """How Spark and Airflow run a job, and where it may read and write."""

    spark: SparkSettings = {}
    """Spark settings of this job, such as spark.cores.max."""
    airflow: AirflowConfig = AirflowConfig()

    @abstractmethod
    def uris(self) -> dict[str, str]:
        """Every URI that the job reads or writes, by its key."""

    @model_validator(mode="after")
    def _uses_allowed_places(self) -> Self:
        roots = AllowedRoots(self.airflow.allowed_roots)
        for key, uri in self.uris().items():
            try:
                roots.check(uri)
            except UserError as error:
                raise ValueError(f"{key}: {error}") from None
        return self


class VectorizeJob(SparkJob):
    """Images to a published DataSet."""

    source: SourceConfig
    image: ImageConfig = ImageConfig()
    split: SplitConfig = SplitConfig()
    dataset_uri: Uri
    """Where the DataSet is published: a folder or a URI that the executors reach."""
    shard_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 64 * 2**20
    """Bytes of images in one shard, about; a task holds three in memory."""
    max_rejected_fraction: Fraction = 0.05
    """Largest share of rejected images; above it nothing is published."""
    replace: bool = False
    """Publish over a DataSet that was made with other settings, and read all images again."""
    keep_versions: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Newest versions, whose files are never deleted."""
    clean_after_hours: Annotated[float, Field(ge=0, le=10**6, allow_inf_nan=False)] = 24
    """Files that no kept version refers to, and versions no longer in use, are deleted once this many hours old."""
    checks: ChecksConfig = ChecksConfig()

    def uris(self) -> dict[str, str]:
        """See SparkJob; the images that a table names are checked when they are listed."""
        return {"source.uri": self.source.uri, "dataset_uri": self.dataset_uri}


def _without_password(uri: str) -> str:
    if holds_password(uri):
        raise ValueError(
            "a URI must hold no password (left out here): settings are logged and shown; "
            "set MLFLOW_TRACKING_URI in the environment instead"
        )
    return uri


class TrackingConfig(Settings):
    """The MLflow server or store, and the names there."""

    uri: Annotated[str, AfterValidator(_without_password)] | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI, else the database mlflow.db in SHARDMEAN_HOME."""
    experiment: Name = "shardmean"
    """MLflow experiment."""
    registered_model: Name = "shardmean"
    """Name in the model registry."""
    artifact_uri: Uri | None = None
    """Where a new experiment keeps plots and models; null: beside that mlflow.db, elsewhere MLflow decides."""


class TrainJob(TrainingConfig, SparkJob):
    """A DataSet to a trained, evaluated and registered model."""

    CHANGEABLE: ClassVar = (
        "dataset_uri", "dataset_digest", "checkpoint_uri", "keep_checkpoints", "keep_every_epochs", "run_key",
        "timeout_s", "spark", "max_segment_retries", "min_workers", "wait_for_workers_s", "prefetch_batches",
        "allow_shared_gpu", "shard_cache_bytes", "airflow", "promote",
    )  # fmt: skip
    """Settings that may differ between two tries of one run: they do not change the outcome."""

    dataset_uri: Uri
    """The DataSet to train on."""
    dataset_digest: Annotated[str, Field(pattern=DIGEST)] | None = None
    """Version of the DataSet; null: the current one when the run begins."""
    checkpoint_uri: Uri
    """Folder for checkpoints, one folder per run; an interrupted run resumes from there."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Newest checkpoints that are kept, beside that of the best epoch."""
    keep_every_epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Also keep the checkpoint of every n-th epoch; null: of none."""
    run_key: Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_checked_run_key)] | None = None
    """Names one run: repeating it resumes or repeats its result. Null: by settings, while unfinished."""
    tracking: TrackingConfig = TrackingConfig()
    promote: PromoteConfig = PromoteConfig()

    def uris(self) -> dict[str, str]:
        """See SparkJob; a registered model is not a path."""
        uris = {"dataset_uri": self.dataset_uri, "checkpoint_uri": self.checkpoint_uri}
        start = self.fine_tuning.start_from
        return uris if start is None or start.startswith(REGISTERED) else uris | {"fine_tuning.start_from": start}
