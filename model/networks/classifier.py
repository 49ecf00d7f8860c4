"""Networks: class scores from images of a fixed shape. Shapes: B examples, C channels, H and W pixels, K classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from ..config.network import LAYERS
from ..errors import UserError
from .custom import build_by_factory
from .resnet import resnet18, resnet50
from .sequential import build_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config.base import Settings

MIN_STD = 1 / 255


class Classifier(nn.Module):
    """A network after normalization: uint8 (B, C, H, W) to scores (B, K).

    `mean` and `std` are per channel, of values divided by 255. They are not in the state dict, so they are not
    averaged. Modules in `frozen` stay in evaluation mode, so that BatchNorm's statistics do not change.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        self.frozen: list[nn.Module] = []
        self.register_buffer("mean_C11", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std).clamp_min(MIN_STD).reshape(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """As torch's, except for the frozen modules."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Scores (B, K), before softmax."""
        normal_BCHW = (images_BCHW.float() / 255 - self.mean_C11) / self.std_C11
        scores_BK: Tensor = self.body(normal_BCHW)
        return scores_BK


def build_classifier(
    name: str,
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    layers: Sequence[Settings] = (),
) -> Classifier:
    """The network `name` for images of `shape` (C, H, W), initialized from torch's global generator.

    `name` and `layers` are as in `config.network`. Raises UserError when the images are too small for it.
    """
    if ":" in name:  # an import path
        return Classifier(build_by_factory(name, shape, num_classes), mean, std)
    if name == LAYERS:
        return Classifier(build_layers(layers, shape, num_classes), mean, std)
    try:
        body = NETWORKS[name](shape, num_classes)
    except RuntimeError as error:
        size = f"{shape[0]} x {shape[1]} x {shape[2]}"
        raise UserError(
            f"network {name} cannot take images of {size} (channels x height x width): {error}; "
            "vectorize to larger images (image.height_px, image.width_px) or choose another network"
        ) from error
    return Classifier(body, mean, std)


def lenet(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The network of Deeplearning4j's averaging example; 67,780 parameters for 28 x 28 gray, 10 classes."""
    features = nn.Sequential(
        nn.Conv2d(shape[0], 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    num_features = _num_outputs(features, shape)
    body = nn.Sequential(*features, nn.Linear(num_features, 200), nn.ReLU(), nn.Linear(200, num_classes))
    for module in body:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return body


def small_cnn(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Three 3 x 3 convolutions with batch normalization, for small images of 8 x 8 pixels or more."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, num_classes)]
    body = nn.Sequential(*_stages(shape[0], (32, 64, 128), num_convs=1), *head)
    _num_outputs(body, shape)
    return body


def vgg_small(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Pairs of 3 x 3 convolutions as in VGG, with batch normalization and global pooling, for 8 x 8 pixels or more."""
    stages = _stages(shape[0], (64, 128, 256), num_convs=2)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5)]
    body = nn.Sequential(*stages, *head, nn.Linear(256, num_classes))
    _num_outputs(body, shape)
    for module in body:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body


def _stages(channels: int, widths: Sequence[int], *, num_convs: int) -> list[nn.Module]:
    """For each width some 3 x 3 convolutions with batch normalization, and pooling that halves the image."""
    layers: list[nn.Module] = []
    for width in widths:
        for _ in range(num_convs):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers


NETWORKS = {
    "lenet": lenet,
    "small_cnn": small_cnn,
    "vgg_small": vgg_small,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


def _num_outputs(module: nn.Module, shape: tuple[int, int, int]) -> int:
    # In evaluation mode, since BatchNorm would otherwise change its statistics.
    module.eval()
    with torch.no_grad():
        outputs: Tensor = module(torch.zeros(1, *shape))
    module.train()
    return outputs.shape[1]
