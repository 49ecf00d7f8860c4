"""Residual networks (He et al. 2015) with the parameter names of torchvision. Shapes as in `classifier`."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (64, 128, 256, 512)


class _Block(nn.Module):
    """Convolutions with a shortcut around them. `sizes`: (kernel size, channels) of each."""

    def __init__(self, channels: int, sizes: list[tuple[int, int]], stride: int) -> None:
        super().__init__()
        self.num_convs = len(sizes)
        self.downsample: nn.Module | None = None
        channels_in = channels
        # The first 3 x 3 convolution has the stride, as in torchvision ("ResNet v1.5").
        strided = 1 + [kernel_size for kernel_size, _ in sizes].index(3)
        for number, (kernel_size, width) in enumerate(sizes, start=1):
            own_stride = stride if number == strided else 1
            self.add_module(f"conv{number}", _conv(channels, width, kernel_size, own_stride))
            self.add_module(f"bn{number}", nn.BatchNorm2d(width))
            channels = width
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(_conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, channels of the last convolution, H / stride, W / stride)."""
        features = images_BCHW
        for number in range(1, self.num_convs + 1):
            features = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(features))
            if number < self.num_convs:
                features = nn.functional.relu(features, inplace=True)
        shortcut = images_BCHW if self.downsample is None else self.downsample(images_BCHW)
        return nn.functional.relu(features + shortcut, inplace=True)


def resnet18(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """ResNet-18 for small images: a 3 x 3 stem that keeps the size; 11,173,962 parameters for RGB, 10 classes."""
    _check_size(shape, 9)
    stem = [("conv1", _conv(shape[0], 64, 3)), ("bn1", nn.BatchNorm2d(64)), ("relu", nn.ReLU(inplace=True))]
    return _network(stem, num_blocks=(2, 2, 2, 2), is_deep=False, num_classes=num_classes)


def resnet50(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """ResNet-50 with ImageNet's stem; 25,557,032 parameters for RGB, 1000 classes."""
    _check_size(shape, 33)
    stem: list[tuple[str, nn.Module]] = [
        ("conv1", _conv(shape[0], 64, 7, stride=2)), ("bn1", nn.BatchNorm2d(64)), ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, stride=2, padding=1)),
    ]  # fmt: skip
    return _network(stem, num_blocks=(3, 4, 6, 3), is_deep=True, num_classes=num_classes)


def _network(
    stem: list[tuple[str, nn.Module]], *, num_blocks: tuple[int, ...], is_deep: bool, num_classes: int
) -> nn.Module:
    stages: list[tuple[str, nn.Module]] = []
    channels = 64
    for number, (width, count) in enumerate(zip(WIDTHS, num_blocks, strict=True), start=1):
        blocks = []
        sizes = [(1, width), (3, width), (1, 4 * width)] if is_deep else [(3, width), (3, width)]
        for index in range(count):
            blocks.append(_Block(channels, sizes, stride=2 if index == 0 and number > 1 else 1))
            channels = sizes[-1][1]
        stages.append((f"layer{number}", nn.Sequential(*blocks)))
    head = [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", nn.Linear(channels, num_classes))]
    network = nn.Sequential(OrderedDict([*stem, *stages, *head]))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _conv(channels: int, width: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel_size, stride, padding=kernel_size // 2, bias=False)


def _check_size(shape: tuple[int, int, int], fewest: int) -> None:
    # The last stage then has more than one pixel, which BatchNorm needs for a minibatch of one example.
    if min(shape[1:]) < fewest:
        raise RuntimeError(f"height and width must be {fewest} pixels or more")
