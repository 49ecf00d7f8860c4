"""Optimizers' laws: a config gives torch's own with the same settings, and what one does not have is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from shardmean.model.config.optimizer import OPTIONS, OptimizerConfig, num_optimizer_slots
from shardmean.model.optimization.optimizers import OPTIMIZERS, build_optimizer
from tests.model.fitting import bits, fit, training

SETTINGS: dict[str, Any] = {
    "momentum": 0.5, "nesterov": True, "dampening": 0.1, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "amsgrad": True,
    "alpha": 0.9, "centered": True, "rho": 0.8, "learning_rate_decay": 0.01, "initial_accumulator": 0.1,
    "momentum_decay": 0.01, "decoupled_weight_decay": True,
}  # fmt: skip
TORCHS = {"learning_rate": "lr", "learning_rate_decay": "lr_decay", "initial_accumulator": "initial_accumulator_value"}


def all_options(name: str) -> dict[str, Any]:
    return {option: SETTINGS[option] for option in OPTIONS[name] if option != "dampening"}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_config_without_options_is_torchs_default(name):
    made = build_optimizer(OptimizerConfig(name=name, learning_rate=0.5), nn.Linear(2, 2))
    signature = inspect.signature(OPTIMIZERS[name]).parameters
    assert type(made) is OPTIMIZERS[name]
    for key, value in made.defaults.items():
        if key in signature and key not in ("lr", "weight_decay"):
            assert value == signature[key].default, key
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.5, 0)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_reaches_torch(name):
    made = build_optimizer(OptimizerConfig(name=name, weight_decay=0.2, **all_options(name)), nn.Linear(2, 2)).defaults
    betas = made.get("betas", (None, None))
    found = made | {"beta1": betas[0], "beta2": betas[1]}
    for option, value in (all_options(name) | {"weight_decay": 0.2}).items():
        assert found[TORCHS.get(option, option)] == value
    assert build_optimizer(OptimizerConfig(dampening=0.1, name="sgd"), nn.Linear(2, 2)).defaults["dampening"] == 0.1


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_an_optimizer_does_not_have_is_refused(name):
    for option, value in SETTINGS.items():
        if option not in OPTIONS[name]:
            with pytest.raises(ValidationError) as caught:
                OptimizerConfig(name=name, **{option: value})
            found = "true" if value is True else f"{value:g}"
            assert f"{option} is {found}, but {name} has none: set it to " in str(caught.value)
            assert f"use {next(n for n, options in OPTIONS.items() if option in options)}" in str(caught.value)


@pytest.mark.parametrize("wrong", [{"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.5}])
def test_nesterov_needs_momentum(wrong):
    with pytest.raises(ValidationError, match="nesterov needs momentum over 0 and no dampening"):
        OptimizerConfig(name="sgd", **wrong)


@pytest.mark.parametrize("options", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_slots_that_are_counted_are_those_that_torch_keeps(name, options):
    config = OptimizerConfig(name=name, **(all_options(name) if options else {}))
    model = nn.Linear(5, 3)
    optimizer = build_optimizer(config, model)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    kept = [value for value in optimizer.state[model.weight].values() if torch.is_tensor(value) and value.numel() == 15]
    assert num_optimizer_slots(config) == len(kept)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_workers_average_all_of_its_state_and_resume_to_the_bit(lenet_data, launchers, name):
    """Workers that hold one state differ in nothing after an averaging, so what rank 0 reports goes on as both."""
    settings = {"optimizer": {"name": name, **all_options(name)}, "averaging": {"frequency": 2}}
    states = []
    trained = training(lenet_data, launchers, num_workers=2, num_epochs=2, **settings)
    whole = trained.fit(None, states.append)
    resumed = fit(trained, states[0])
    assert bits(whole.model) == bits(resumed.model)
    assert bits(whole.optimizers) == bits(resumed.optimizers)
    for state in whole.optimizers[0]["state"].values():
        assert all(isinstance(value, torch.Tensor) for value in state.values())
