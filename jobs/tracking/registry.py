"""The model registry: a trained model as a version, and which version is challenger and champion."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map

from shardmean.jobs.common.redaction import redact
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.optimization.replica import normalization
from shardmean.model.serving import image_model

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from shardmean.jobs.config.job import TrainJob
    from shardmean.model.dataset.manifest import Manifest

CHALLENGER, CHAMPION = "challenger", "champion"
SIGNATURE = ModelSignature(
    Schema([ColSpec(DataType.binary, "image")]),
    Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
)
# Another model's accuracy on the rows in question, or None when it can't be compared.
RivalAccuracy = Callable[[image_model.ImageModel], float | None]
log = logging.getLogger(__name__)


def registered_version(client: mlflow.MlflowClient, run_id: str) -> str | None:
    """The version that a run has registered already, if it has."""
    found = client.search_model_versions(f"run_id='{run_id}'")
    return str(found[0].version) if found else None


def register(run_id: str, job: TrainJob, manifest: Manifest, state: dict[str, Any], example: bytes) -> str:
    """Log a model state to a run with all that serving needs, register it, and return its version."""
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id):
        data = Path(folder) / "classifier"
        mean, std = normalization(job, manifest)
        image_model.save_model(data, manifest, job.network, state, layers=job.layers, mean=mean, std=std)
        code, search_path = image_model.copy_code(Path(folder) / "code"), list(sys.path)
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module=image_model.loader_module(code),
            data_path=str(data),
            code_paths=[str(code)],
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [example]}),
            registered_model_name=job.tracking.registered_model,
            pip_requirements=_requirements(),
        )
        _forget(code.name, search_path)
    return str(logged.registered_model_version)


def set_aliases(
    client: mlflow.MlflowClient,
    name: str,
    version: str,
    manifest: Manifest,
    split: str,
    accuracy: float,
    champion_metrics: RivalAccuracy,
) -> list[str]:
    """Make a version the challenger, and the champion too if it beats the present one on the same rows.

    Returns the aliases that the version has now.
    """
    rows = f"{split}:{manifest.split_digest(split)}"
    tags = {"dataset_digest": manifest.digest, "evaluated_on": rows, "accuracy": repr(accuracy)}
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, CHALLENGER, version)
    champion = _champion(client, name)
    if champion is None:
        log.info("%s has no champion yet: version %s becomes it", name, version)
    elif str(champion.version) == version:  # an int, as SQLite's store gives it
        return [CHALLENGER, CHAMPION]
    else:
        theirs = _accuracy_of(client, champion, rows, champion_metrics)
        if theirs is None or accuracy <= theirs:
            log.info("champion stays version %s: %s", champion.version, _promotion_reason(theirs, accuracy))
            return [CHALLENGER]
        log.info("version %s beats champion %s: %.2f %% > %.2f %%", version, champion.version,
                 100 * accuracy, 100 * theirs)  # fmt: skip
    client.set_registered_model_alias(name, CHAMPION, version)
    return [CHALLENGER, CHAMPION]


def download(uri: str, folder: str) -> tuple[str, Path]:
    """Fetch a registered model (models:/NAME@ALIAS or models:/NAME/VERSION) into `folder`, by the version it has now.

    Returns that version's URI and where `image_model.read_parts` finds the model. Raises UserError and RetryableError.
    """
    client, place = mlflow.MlflowClient(), uri.removeprefix("models:/")
    try:
        if "@" in place:
            version = client.get_model_version_by_alias(*place.split("@"))
        else:
            version = client.get_model_version(*place.split("/"))
        found = f"models:/{version.name}/{version.version}"
        path = _fetch(found, folder)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(f"{uri}: MLflow has no such model ({error.message}); correct the name or alias") from error
        raise RetryableError(f"{uri}: MLflow cannot give it: {error}; repeat the command") from error
    except OSError as error:
        raise RetryableError(f"{uri}: its files cannot be read: {error}; repeat the command") from error
    return found, path


def cause_of(error: Exception) -> str:
    """The kind and the words of an error, in one line: torch and MLflow raise many kinds for one unreadable model."""
    return f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:200]}"


def _champion(client: mlflow.MlflowClient, name: str) -> ModelVersion | None:
    if CHAMPION not in client.get_registered_model(name).aliases:
        return None
    return client.get_model_version_by_alias(name, CHAMPION)


def _accuracy_of(
    client: mlflow.MlflowClient, version: ModelVersion, rows: str, champion_metrics: RivalAccuracy
) -> float | None:
    if version.tags.get("evaluated_on") == rows:
        return float(version.tags["accuracy"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            rival = image_model.load_model(_fetch(f"models:/{version.name}/{version.version}", folder))
        return champion_metrics(rival)
    except RetryableError:
        raise
    except Exception as error:
        # Raised, it would stop every later training at its end. Whether the server is away, a question to it tells.
        client.get_model_version(version.name, str(version.version))
        log.warning("version %s of %s cannot be used: %s", version.version, version.name, cause_of(error))
        return None


def _fetch(uri: str, folder: str) -> Path:
    path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)) / "data" / "classifier"
    if not (path / "classifier.json").exists():
        # For files that are gone MLflow gives an empty folder.
        raise UserError(f"{uri} is no model of Shardmean: it has no data/classifier, or no more; use another")
    return path


def _requirements() -> list[str]:
    import numpy
    import PIL
    import pydantic
    import simplejpeg

    versions = {
        "mlflow": mlflow.__version__,
        "torch": torch.__version__.split("+")[0],
        "numpy": numpy.__version__,
        "pandas": pd.__version__,
        "pillow": PIL.__version__,
        "pydantic": pydantic.VERSION,
        "simplejpeg": simplejpeg.__version__,
    }
    return [f"{name}=={version}" for name, version in versions.items()]


def _promotion_reason(theirs: float | None, ours: float) -> str:
    if theirs is None:
        return (
            "it can't be used, or takes other images or classes, so the two can't be compared; "
            "move the alias by hand if you want to"
        )
    return f"its {theirs:.2%} on the same split is not beaten by {ours:.2%}"


def _forget(package: str, search_path: list[str]) -> None:
    # MLflow imported the code to check the example, from a folder of its own that is gone now.
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]
    sys.path[:] = search_path
