"""The optimizers of torch.optim by name: those whose state is tensors and step counters, which can be averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..config.optimizer import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from ..config.optimizer import OptimizerConfig, OptimizerName

OPTIMIZERS: dict[OptimizerName, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
}
_TORCH_NAMES = {"learning_rate_decay": "lr_decay", "initial_accumulator": "initial_accumulator_value"}


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config, for the parameters of a model that are not frozen."""
    known = OPTIONS[config.name]
    options = {_TORCH_NAMES.get(name, name): value for name, value in config.options.items() if name in known}
    if "beta1" in known:
        options["betas"] = options.pop("beta1", 0.9), options.pop("beta2", 0.999)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[config.name](trained, lr=config.learning_rate, weight_decay=config.weight_decay, **options)
