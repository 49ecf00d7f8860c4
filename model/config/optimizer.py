"""Settings of the optimizers that workers step with, and of their learning rate. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .base import Fraction, Positive, Settings

OptimizerName = Literal["sgd", "adam", "adamw", "nadam", "radam", "adamax", "adagrad", "adadelta", "rmsprop"]
Decay = Annotated[float, Field(ge=0, lt=1)]
_BETAS = ("beta1", "beta2", "eps")
# Settings that torch.optim's class takes beside the rate and weight decay; what is not here has no use.
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
    """How the learning rate changes, counted in examples of all workers, so that their number does not matter."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    """Decay of the learning rate down to `final_fraction` of it: constant (none), linear or cosine."""
    warmup_examples: Annotated[int, Field(ge=0, le=10**12)] = 0
    """Examples over which the rate first rises from 0."""
    final_fraction: Fraction = 0.0
    """Share of the learning rate at the end of the last epoch; for linear and cosine."""

    @property
    def is_constant(self) -> bool:
        """Whether the rate never changes."""
        return self.name == "constant" and self.warmup_examples == 0


class OptimizerConfig(Settings):
    """The optimizer each worker steps with between two averagings. Null: as torch.optim has it."""

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
    """Decay of the mean of gradients a step; for adam, adamw, nadam, radam and adamax."""
    beta2: Decay | None = None
    """Decay of the mean of squared gradients (adamax: of their largest) a step; as beta1."""
    eps: Positive | None = None
    """Small constant added to the denominator for numerical stability; not for sgd."""
    amsgrad: bool = False
    """Divide by the largest second moment so far; for adam and adamw."""
    alpha: Decay | None = None
    """Decay of the mean of squared gradients a step; for rmsprop."""
    centered: bool = False
    """Divide by the gradients' variance in place of their mean square; for rmsprop."""
    rho: Decay | None = None
    """Decay of the means of squared gradients and steps; for adadelta."""
    learning_rate_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """The rate is divided by 1 + this x steps; for adagrad."""
    initial_accumulator: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Sum of squared gradients at the start; for adagrad."""
    momentum_decay: Decay | None = None
    """Decay of beta1's schedule; for nadam."""
    decoupled_weight_decay: bool = False
    """Weight decay apart from the gradient, as in adamw; for nadam and radam."""
    clip_norm: Positive | None = None
    """Largest norm of a step's gradient over all parameters; a longer one is shortened to it. Null: no limit."""
    schedule: ScheduleConfig = ScheduleConfig()

    @property
    def options(self) -> dict[str, Any]:
        """The settings that are set, of those that not every optimizer has."""
        names = sorted({name for options in OPTIONS.values() for name in options})
        return {name: value for name in names if (value := getattr(self, name)) is not None and value is not False}

    @model_validator(mode="after")
    def _each_option_has_a_use(self) -> Self:
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


def num_moments(config: OptimizerConfig) -> int:
    """Numbers that the optimizer keeps for each parameter, beside its counters."""
    if config.name == "sgd":
        return int(config.momentum > 0)
    if config.name == "rmsprop":
        return 1 + int(config.momentum > 0) + config.centered
    return 1 if config.name == "adagrad" else 2 + config.amsgrad


def _text(value: bool | float) -> str:
    return "true" if value is True else f"{value:g}"
