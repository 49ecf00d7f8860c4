"""Loads what a training starts from, by its URI: a registered model or a checkpoint. Loading executes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmean.jobs.tracking import registry
from shardmean.model.config.fine_tuning import REGISTERED
from shardmean.model.errors import DamagedError, UserError
from shardmean.model.optimization.fine_tuning import PretrainedModel
from shardmean.model.training import checkpoint

if TYPE_CHECKING:
    from shardmean.model.training.checkpoint import Checkpoint


def find_pretrained(uri: str) -> PretrainedModel:
    """The model at models:/NAME@ALIAS, models:/NAME/VERSION, or in a checkpoint's file or a run's folder of them.

    Its URI names one version or file, which stays the same when an alias moves or a folder grows. MLflow must be
    connected. Raises UserError and RetryableError.
    """
    if uri.startswith(REGISTERED):
        return registry.load_registered(uri)
    found, state = _checkpoint(uri)
    # The best model of a checkpoint, or its last where no epoch has ended.
    return PretrainedModel(found, state.model_spec, state.best_model or state.model)


def _checkpoint(uri: str) -> tuple[str, Checkpoint]:
    if not uri.endswith(".pt"):
        latest = checkpoint.load_latest(uri)
        if latest is None:
            raise UserError(
                f"{uri}: no checkpoint there that can be read; give the folder of one run under its checkpoint_uri, "
                "a file in it, or a registered model (models:/NAME@ALIAS)"
            )
        return f"{uri.rstrip('/')}/{latest.name}", latest
    try:
        return uri, checkpoint.load(uri)
    except FileNotFoundError:
        raise UserError(f"{uri}: not found; give a checkpoint's file, or the folder of its run") from None
    except DamagedError as error:
        raise UserError(f"{error}; give one that this project wrote, or a registered model (models:/NAME)") from error
