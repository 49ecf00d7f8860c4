"""Settings of networks: a built-in one by name, a list of layers, or a factory by import path. Imports no torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from .base import Settings

ZOO = ("lenet", "small_cnn", "vgg_small", "resnet18", "resnet50")
LAYERS = "layers"
_FACTORY = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*"
_PATTERN = f"^({'|'.join((*ZOO, LAYERS))}|{_FACTORY})$"
_MAX_NAME = 200


def _checked(name: str) -> str:
    if len(name) > _MAX_NAME or not re.fullmatch(_PATTERN, name):
        raise ValueError(
            f"expected {', '.join(ZOO)}, {LAYERS} (then give the key layers), "
            "or the import path of a factory such as my_package.nets:make"
        )
    return name


NetworkName = Annotated[
    str,
    AfterValidator(_checked),
    WithJsonSchema(
        {"type": "string", "pattern": _PATTERN, "maxLength": _MAX_NAME, "examples": [*ZOO, LAYERS]},
    ),
]
Width = Annotated[int, Field(ge=1, le=65_536)]
Side = Annotated[int, Field(ge=1, le=512)]


class Conv(Settings):
    """A convolution with square kernels."""

    layer: Literal["conv"]
    channels: Width
    """Output channels."""
    kernel_size: Side = 3
    """Height and width of a kernel, in pixels."""
    stride: Side = 1
    """Pixels between two positions of the kernel."""
    padding: Annotated[int, Field(ge=0, le=512)] = 0
    """Rows and columns of zeros around the image."""
    groups: Width = 1
    """Groups of channels that do not mix; as many as input channels: depthwise."""
    bias: bool = True
    """Add a bias per channel; not needed before batch_norm."""


class Linear(Settings):
    """A fully connected layer. Its input must be flat: put flatten or global_avg_pool before it."""

    layer: Literal["linear"]
    features: Width
    """Output features."""
    bias: bool = True
    """Add a bias per feature."""


class Pool(Settings):
    """Pooling: the maximum or the mean of each square."""

    layer: Literal["max_pool", "avg_pool"]
    kernel_size: Side = 2
    """Height and width of a square, in pixels."""
    stride: Side | None = None
    """Pixels between two squares; null: kernel_size."""
    padding: Annotated[int, Field(ge=0, le=256)] = 0
    """Rows and columns around the image; at most half of kernel_size."""


class Dropout(Settings):
    """Dropout: sets random values to zero in training."""

    layer: Literal["dropout"]
    probability: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Probability that a value is set to zero."""


class Plain(Settings):
    """A layer without settings."""

    layer: Literal["batch_norm", "relu", "gelu", "silu", "tanh", "flatten", "global_avg_pool"]


Layer = Annotated[Conv | Linear | Pool | Dropout | Plain, Field(discriminator="layer")]
# A form cannot show a choice of objects: there it is a JSON list, checked when it is read.
Layers = Annotated[
    list[Layer], Field(max_length=500), WithJsonSchema({"type": "array", "items": {"type": "object"}, "maxItems": 500})
]


def check_layers(network: str, layers: list[Any]) -> None:
    """Raise ValueError where layers are given without `layers` as the network's name, or the name without layers."""
    if layers and network != LAYERS:
        raise ValueError(f"layers are given, but network is {network}: set network to {LAYERS}, or leave layers out")
    if network == LAYERS and not layers:
        raise ValueError(f"network is {LAYERS}, but there are none: give the key layers, or choose {', '.join(ZOO)}")
