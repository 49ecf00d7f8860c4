"""Networks of other packages: factories by import path, if the environment allows them.

A config may come from a web form or a stored model, so it must not decide what is imported: the environment variable
SHARDMEAN_FACTORIES lists the allowed import paths, on the driver, on the workers, and where a stored model is loaded.
Shapes: B examples, K classes.
"""

from __future__ import annotations

import importlib
import os

import torch
from torch import Tensor, nn

from ..errors import UserError

VARIABLE = "SHARDMEAN_FACTORIES"


def build_by_factory(network: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The network that the factory `package.module:name` returns for (shape, num_classes).

    Raises UserError when the factory is not allowed, cannot be imported or fails, and when it returns anything but a
    module that gives scores (B, K) and has no complex state.
    """
    allowed = [entry.strip() for entry in os.environ.get(VARIABLE, "").split(",") if entry.strip()]
    if network not in allowed:
        found = f"it lists {', '.join(allowed)}" if allowed else "it is not set"
        raise UserError(
            f"network {network}: not allowed by the environment variable {VARIABLE} ({found}); if you trust that code, "
            f"set {VARIABLE}={network} for the driver and for all workers (spark.executorEnv.{VARIABLE}), and where a "
            "model made of it is loaded"
        )
    module_name, _, name = network.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"network {network}: {error}; install its package for the driver, for all workers, and where a model made "
            "of it is loaded"
        ) from error
    try:
        body = factory(shape, num_classes)
    except Exception as error:  # another package's code may raise anything
        raise UserError(f"network {network}: the factory failed: {type(error).__name__}: {error}") from error
    if not isinstance(body, nn.Module):
        raise UserError(f"network {network}: expected a torch.nn.Module from the factory, got {type(body).__name__}")
    _check_state(body, network)
    _check_scores(body, network, shape, num_classes)
    return body


def _check_state(body: nn.Module, network: str) -> None:
    # Averaging is in float32, which would drop the imaginary parts.
    for name, value in body.state_dict().items():
        if isinstance(value, Tensor) and value.is_complex():
            raise UserError(
                f"network {network}: {name} is {str(value.dtype).removeprefix('torch.')}, and complex numbers are not "
                "averaged: keep real and imaginary parts as two tensors (torch.view_as_real)"
            )


def _check_scores(body: nn.Module, network: str, shape: tuple[int, int, int], num_classes: int) -> None:
    body.eval()
    size = f"(2, {', '.join(map(str, shape))})"
    try:
        with torch.no_grad():
            scores = body(torch.zeros(2, *shape))
    except Exception as error:  # another package's code may raise anything
        raise UserError(
            f"network {network}: its module failed on images {size}: {type(error).__name__}: {error}"
        ) from error
    found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if found != (2, num_classes):
        raise UserError(
            f"network {network}: expected scores (2, {num_classes}) for images {size}, got {found}; "
            "the last layer must have as many outputs as there are classes"
        )
    body.train()
