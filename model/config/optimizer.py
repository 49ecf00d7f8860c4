"""Settings of the workers' optimizers and of the learning-rate schedule. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .base import Fraction, Positive, Settings

OptimizerName = Literal["sgd", "adam", "adamw", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop"]
Decay = Annotated[float, Field(ge=0, lt=1)]
_BETAS = ("beta1", "beta2", "eps")
# The options of each torch.optim class, beside learning rate and weight decay; others are refused.
OPTIONS: dict[OptimizerName, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov", "dampening"),
    "adam": (*_BETAS, "amsgrad"),
    "adamw": (*_BETAS, "amsgrad"),
    "nadam": (*_BETAS, "momentum_decay", "decoupled_weight_decay"),
    "radam": (*_BETAS, "decoupled_weight_decay"),
    "adamax": _BETAS,
    "adagrad": ("eps", "learning_rate_decay", "initial_accumulator"),
    "adadelta": ("rho", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}


class ScheduleConfig(Settings):
    """How the learning rate changes over the examples of all workers, so it does not depend on their number."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to `final_fraction` of itself: constant (not at all), linear or cosine."""
    warmup_examples: Annotated[int, Field(ge=0, le=10**12)] = 0
    """Examples over which the learning rate first rises from 0."""
    final_fraction: Fraction = 0.0
    """Share of the learning rate that is left at the end of the last epoch; for linear and cosine."""

    @property
    def is_constant(self) -> bool:
        """Whether the learning rate never changes."""
        return self.name == "constant" and self.warmup_examples == 0


class OptimizerConfig(Settings):
    """The optimizer of each worker. Null: the default of torch.optim."""

    name: OptimizerName = "adam"
    """Optimizer of torch.optim."""
    learning_rate: Positive = 0.001
    """Learning rate."""
    weight_decay: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.0
    """L2 penalty (decoupled for adamw)."""
    momentum: Decay = 0.0
    """Momentum; for sgd and rmsprop only."""
    nesterov: bool = False
    """Use Nesterov momentum; for sgd."""
    dampening: Decay | None = None
    """Dampening: a new gradient enters the momentum times (1 - dampening); for sgd."""
    beta1: Decay | None = None
    """Decay per step of the mean gradient; for adam, adamw, nadam, radam and adamax."""
    beta2: Decay | None = None
    """Decay per step of the mean squared gradient (adamax: the largest gradient); as beta1."""
    eps: Positive | None = None
    """Small constant added to the denominator for numerical stability; not for sgd."""
    amsgrad: bool = False
    """Divide by the largest mean squared gradient so far; for adam and adamw."""
    alpha: Decay | None = None
    """Decay per step of the mean squared gradient; for rmsprop."""
    centered: bool = False
    """Divide by the variance of the gradients, not by their mean square; for rmsprop."""
    rho: Decay | None = None
    """Decay per step of the mean squared gradients and updates; for adadelta."""
    learning_rate_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """The learning rate is divided by 1 + this x steps; for adagrad."""
    initial_accumulator: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Sum of squared gradients at the start; for adagrad."""
    momentum_decay: Decay | None = None
    """Decay of the momentum schedule; for nadam."""
    decoupled_weight_decay: bool = False
    """Decouple weight decay from the gradient, as adamw does; for nadam and radam."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient of all parameters; a larger one is scaled down to it. Null: no limit."""
    schedule: ScheduleConfig = ScheduleConfig()

    @property
    def options(self) -> dict[str, Any]:
        """The options that are set, of those that not every optimizer has."""
        names = sorted({name for options in OPTIONS.values() for name in options})
        return {name: value for name in names if (value := getattr(self, name)) is not None and value is not False}

    @model_validator(mode="after")
    def _optimizer_has_each_option(self) -> Self:
        for option, value in self.options.items():
            if option not in OPTIONS[self.name] and (option != "momentum" or value):
                having = " or ".join(name for name, options in OPTIONS.items() if option in options)
                off = 0 if option == "momentum" else "false" if value is True else "null"
                raise ValueError(
                    f"{option} is {_text(value)}, but {self.name} has none: set it to {off} or use {having}"
                )
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError("nesterov needs momentum over 0 and no dampening: set optimizer.momentum, such as 0.9")
        return self


def num_optimizer_slots(config: OptimizerConfig) -> int:
    """Values that the optimizer keeps for each parameter, beside its counters."""
    if config.name == "sgd":
        return int(config.momentum > 0)
    if config.name == "rmsprop":
        return 1 + int(config.momentum > 0) + config.centered
    return 1 if config.name == "adagrad" else 2 + config.amsgrad


def _text(value: bool | float) -> str:
    return "true" if value is True else f"{value:g}"
