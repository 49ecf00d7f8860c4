"""Evaluates the champion as a new model is: on all workers, with progress, by its own network and normalization."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shardmean.model.config.image import ImageConfig
from shardmean.model.config.training import TrainingConfig
from shardmean.model.optimization.replica import build_model

if TYPE_CHECKING:
    from shardmean.model.dataset.manifest import Split
    from shardmean.model.optimization.fine_tuning import PretrainedModel
    from shardmean.model.training.trainer import Trainer


def champion_metrics(trainer: Trainer, split: Split, champion: PretrainedModel) -> dict[str, float] | None:
    """The metrics of a registered model on a split; None where it takes other images or classes.

    Raises UserError and others where the model can't be used, RetryableError where workers or the DataSet failed.
    """
    spec, manifest = champion.model_spec, trainer.dataset.manifest
    if (ImageConfig.model_validate(spec["image"]), spec["class_names"]) != (manifest.image, manifest.class_names):
        return None
    own = {
        "network": spec["network"],
        "layers": spec["layers"],
        "normalization": {"mean": spec["mean"], "std": spec["std"]},
        "fine_tuning": {},
    }
    config = TrainingConfig.model_validate(trainer.config.model_dump() | own)
    # On the driver first: a state that does not fit the network would fail on every worker.
    build_model(config, manifest).load_state_dict(champion.state)
    return replace(trainer, config=config).evaluate(champion.state, split, f"champion {champion.uri}").metrics()
