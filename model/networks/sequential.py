"""A network from a list of layers; the input size of each is inferred from the output of the one before.

Sizes are found on torch's `meta` device, which computes shapes but no values, so a network that is too large for any
machine is refused before it is built. Shapes: K classes; a layer's own shape is without the batch.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config.network import Conv, Dropout, Linear, Pool
from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config.base import Settings

MAX_PARAMETERS = 10**9
MAX_VALUES = 2**28
_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "flatten": nn.Flatten,
    "global_avg_pool": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}
_FOR_IMAGES = ("conv", "max_pool", "avg_pool", "batch_norm", "global_avg_pool")


def build_layers(layers: Sequence[Settings], shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """The layers, followed by a linear layer to the scores (B, K); parameters are initialized as torch does by default.

    Raises a UserError that names the first layer that does not fit the output of the one before.
    """
    makers: list[Callable[[], nn.Module]] = []
    num_parameters = 0
    last = Linear.model_construct(layer="linear", features=num_classes)
    for number, layer in enumerate([*layers, last], start=1):
        where = f"layer {number} ({_name(layer)})" if layer is not last else f"the last layer (linear to {num_classes})"
        _check_input(layer, shape, where)
        make = _maker(layer, shape)
        try:
            shape, added = _tried(make, shape)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{where} cannot take {_size(shape)}: {error}; change it or one before it") from error
        num_parameters += added
        if num_parameters > MAX_PARAMETERS or math.prod(shape) > MAX_VALUES:
            raise UserError(
                f"{where} gives {_size(shape)} values and brings the network to {num_parameters:,} parameters; at most "
                f"{MAX_VALUES:,} values and {MAX_PARAMETERS:,} parameters are taken: make it smaller"
            )
        makers.append(make)
    return nn.Sequential(*(make() for make in makers))


def _check_input(layer: Settings, shape: tuple[int, ...], where: str) -> None:
    name = _name(layer)
    if name == "linear" and len(shape) > 1:
        raise UserError(f"{where} needs flat values and gets {_size(shape)}: put flatten or global_avg_pool before it")
    if name in _FOR_IMAGES and len(shape) == 1:
        raise UserError(f"{where} needs channels x height x width and gets {shape[0]} flat values: put it earlier")
    if name == "batch_norm" and shape[1:] == (1, 1):
        # A minibatch of one example would have no variance.
        raise UserError(f"{where} needs more than one pixel a channel and gets {_size(shape)}: put it earlier")


def _tried(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    with torch.device("meta"), torch.no_grad():
        module = make()
        outputs = module(torch.empty(2, *shape))
    return tuple(outputs.shape[1:]), sum(parameter.numel() for parameter in module.parameters())


def _maker(layer: Settings, shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    if isinstance(layer, Conv):
        options: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
        return partial(nn.Conv2d, shape[0], layer.channels, layer.kernel_size, bias=layer.bias, **options)
    if isinstance(layer, Linear):
        return partial(nn.Linear, shape[0], layer.features, bias=layer.bias)
    if isinstance(layer, Pool):
        pool = nn.MaxPool2d if layer.layer == "max_pool" else nn.AvgPool2d
        return partial(pool, layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, Dropout):
        return partial(nn.Dropout, layer.probability)
    name = _name(layer)
    if name == "batch_norm":
        return partial(nn.BatchNorm2d, shape[0])
    return _PLAIN[name]


def _name(layer: Settings) -> str:
    return str(layer.layer)  # type: ignore[attr-defined]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
