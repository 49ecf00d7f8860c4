"""The model registry: a trained model as a version, and which version is challenger and champion."""

from __future__ import annotations

import logging
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import pandas as pd
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Map

from shardmean.jobs.common.redaction import redact
from shardmean.jobs.tracking.client import mlflow_error
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.optimization.fine_tuning import PretrainedModel
from shardmean.model.serving import image_model

if TYPE_CHECKING:
    from shardmean.model.training.checkpoint import Checkpoint

LOGGED_NAME = "model"
MODEL_SPEC_KEYS = ("image", "class_names", "network", "layers", "mean", "std")
NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"
SIGNATURE = ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema([
    ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability"),
    ColSpec(Map(DataType.double), "probabilities"),
]))  # fmt: skip
log = logging.getLogger(__name__)


def register(client: mlflow.MlflowClient, run_id: str, name: str, final: Checkpoint, example: bytes) -> str:
    """Log the best model of a run with all that serving needs, register it as `name`, and return its version.

    What an earlier try has logged or registered is used; what it left unfinished is deleted.
    """
    registered = client.search_model_versions(f"run_id='{run_id}' and name='{name}'")
    if registered:
        return str(registered[0].version)
    model_id = _logged_model(client, run_id) or _log_model(run_id, final, example)
    return str(mlflow.register_model(f"models:/{model_id}", name).version)


def _logged_model(client: mlflow.MlflowClient, run_id: str) -> str | None:
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{LOGGED_NAME}'")
    whole = [model.model_id for model in found if model.status == LoggedModelStatus.READY]
    for model in found:
        if model.status != LoggedModelStatus.READY:
            client.delete_logged_model(model.model_id)
    return whole[0] if whole else None


def _log_model(run_id: str, final: Checkpoint, example: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id):
        data = Path(folder) / "classifier"
        image_model.save_model(data, final.model_spec, final.best_model)
        code, search_path = image_model.copy_code(Path(folder) / "code"), list(sys.path)
        logged = mlflow.pyfunc.log_model(
            name=LOGGED_NAME,
            loader_module=image_model.loader_module(code),
            data_path=str(data),
            code_paths=[str(code)],
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [example]}),
            pip_requirements=_requirements(),
        )
        # MLflow imported the code to check the example, from a folder of its own that is gone now.
        for name in [name for name in sys.modules if name.split(".")[0] == code.name]:
            del sys.modules[name]
        sys.path[:] = search_path
    return str(logged.model_id)


def load_registered(uri: str) -> PretrainedModel:
    """The model at models:/NAME@ALIAS or models:/NAME/VERSION; its own URI is that of the version. Executes nothing.

    Raises UserError and RetryableError.
    """
    client, place = mlflow.MlflowClient(), uri.removeprefix("models:/")
    try:
        if "@" in place:
            version = client.get_model_version_by_alias(*place.split("@"))
        else:
            version = client.get_model_version(*place.split("/"))
        return load_version(f"models:/{version.name}/{version.version}")
    except MlflowException as error:
        if error.error_code in (NOT_FOUND, "INVALID_PARAMETER_VALUE"):
            raise UserError(f"{uri}: MLflow has no such model ({error.message}); correct the name or alias") from error
        raise mlflow_error(redact(mlflow.get_tracking_uri()), error) from error
    except OSError as error:
        raise RetryableError(f"{uri}: its files cannot be read: {error}; repeat the command") from error


def load_version(uri: str) -> PretrainedModel:
    """The model at models:/NAME/VERSION. Raises UserError where it cannot be used, MlflowException and OSError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)) / "data" / "classifier"
        if not (path / "classifier.json").exists():
            # For files that are gone MLflow gives an empty folder.
            raise UserError(f"{uri} is no model of Shardmean: it has no data/classifier, or no more; use another")
        try:
            model_spec, state = image_model.read_parts(path)
            return PretrainedModel(uri, {key: model_spec[key] for key in MODEL_SPEC_KEYS}, state)
        except Exception as error:  # torch raises many kinds for what is no state dict
            raise UserError(f"{uri} cannot be read ({cause_of(error)}); use another") from error


def cause_of(error: Exception) -> str:
    """The kind and the words of an error, in one line: torch and MLflow raise many kinds for one unreadable model."""
    return f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:200]}"


def _requirements() -> list[str]:
    names = ("mlflow", "torch", "numpy", "pandas", "pillow", "pydantic", "simplejpeg")
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]
