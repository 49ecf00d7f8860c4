"""Augmentation: random changes of training images, on their device, determined by (seed, epoch, example).

The result for an image does not depend on its batch. The changes are Kornia's, with a parameter for each image; where a
kernel of Kornia rounds differently in different batches, a comment says so and the code here replaces it.

Shapes: B examples, C channels, H and W pixels, K taps of a filter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
    equalize,
)
from kornia.filters import get_gaussian_kernel1d
from kornia.geometry.transform import hflip, vflip, warp_affine, warp_perspective
from torch import Tensor
from torch.nn import functional

from .affine import matrices
from .random import Draws, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..config.augmentation import AugmentationConfig

    Change = Callable[[Tensor, Draws], Tensor]

PADDING = {"black": "zeros", "edge": "border", "reflect": "reflection"}
# On a CPU, larger pieces do not fit into its caches and take three times as long.
CPU_PIECE_BYTES = 8 * 2**20
MIN_SIGMA_PX = 0.1
MIN_ERASED, MAX_ERASED_ASPECT = 0.02, 3.3


class Augmenter:
    """The augmentation of one epoch."""

    def __init__(self, config: AugmentationConfig, *, seed: int, epoch: int, mean: Sequence[float]) -> None:
        """`mean` is the DataSet's, per channel, of values in [0, 1]: the color of what is erased."""
        self._config = config
        self._seed, self._epoch = seed, epoch
        self._mean = mean

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, keys_B: NDArray[np.uint64]) -> Tensor:
        """Changed images: a new tensor uint8 (B, C, H, W), as the given images; `keys_B` are their examples' keys."""
        draws = Draws.of(keys_B, seed=self._seed, epoch=self._epoch)
        pieces = [
            _where(images_BCHW[rows], draws.take(rows), Stream.CHANGE, self._config.probability, self._changed)
            for rows in _pieces(images_BCHW)
        ]
        return torch.cat(pieces)

    def _changed(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        config = self._config
        images_BCHW = _where(images_BCHW, draws, Stream.FLIP_HORIZONTAL, config.flip_horizontal, lambda i, _: hflip(i))
        images_BCHW = _where(images_BCHW, draws, Stream.FLIP_VERTICAL, config.flip_vertical, lambda i, _: vflip(i))
        if not (config.moves_pixels or config.changes_values):
            return images_BCHW
        images_BCHW = self._transformed(images_BCHW.float() / 255, draws)
        return (images_BCHW * 255).round_().clamp_(0, 255).to(torch.uint8)

    def _transformed(self, images_BCHW: Tensor, draws: Draws) -> Tensor:
        if self._config.moves_pixels:
            images_BCHW = _warped(images_BCHW, self._config, draws)
        if self._config.changes_values:
            images_BCHW = _values_changed(images_BCHW, self._config, draws)
            images_BCHW = _erased(images_BCHW, self._config, draws, self._mean)
        return images_BCHW


def _pieces(images_BCHW: Tensor) -> list[slice]:
    num = len(images_BCHW)
    if images_BCHW.device.type == "cpu":
        num = max(1, CPU_PIECE_BYTES // (4 * images_BCHW[0].numel()))
    return [slice(first, first + num) for first in range(0, len(images_BCHW), num)]


def _where(images_BCHW: Tensor, draws: Draws, stream: Stream, probability: float, change: Change) -> Tensor:
    rows = draws.happens(stream, probability)
    if len(rows) == 0:
        return images_BCHW
    if len(rows) == len(images_BCHW):
        return change(images_BCHW, draws)
    index = torch.from_numpy(rows).to(images_BCHW.device)
    return images_BCHW.index_copy(0, index, change(images_BCHW[index], draws.take(rows)))


def _warped(images_BCHW: Tensor, config: AugmentationConfig, draws: Draws) -> Tensor:
    height, width = images_BCHW.shape[2:]
    matrices_B33 = _like(images_BCHW, matrices(config, draws, height=height, width=width))
    if config.warp_fraction:
        return warp_perspective(images_BCHW, matrices_B33, (height, width), padding_mode=PADDING[config.border])
    return warp_affine(images_BCHW, matrices_B33[:, :2], (height, width), padding_mode=PADDING[config.border])


def _values_changed(images_BCHW: Tensor, config: AugmentationConfig, draws: Draws) -> Tensor:
    def factor(stream: Stream, reach: float) -> Tensor:
        return _like(images_BCHW, draws.between(stream, 1 - reach, 1 + reach))

    sigma_px = config.blur_sigma_px
    images_BCHW = _where(images_BCHW, draws, Stream.BLUR, config.blur, lambda i, d: _blurred(i, d, sigma_px))
    if config.brightness:
        images_BCHW = adjust_brightness_accumulative(images_BCHW, factor(Stream.BRIGHTNESS, config.brightness))
    if config.contrast:
        images_BCHW = _contrasted(images_BCHW, factor(Stream.CONTRAST, config.contrast))
    if config.saturation:
        changes = factor(Stream.SATURATION, config.saturation)
        images_BCHW = adjust_saturation_with_gray_subtraction(images_BCHW, changes)
    if config.hue:
        turns = _like(images_BCHW, 2 * math.pi * draws.between(Stream.HUE, -config.hue, config.hue))
        images_BCHW = adjust_hue(images_BCHW, turns)
    images_BCHW = _where(images_BCHW, draws, Stream.GRAYSCALE, config.grayscale, lambda i, _: _gray(i))
    return _where(images_BCHW, draws, Stream.EQUALIZE, config.equalize, lambda i, _: equalize(i))


def _gray(images_BCHW: Tensor) -> Tensor:
    return rgb_to_grayscale(images_BCHW).repeat(1, 3, 1, 1)


def _contrasted(images_BCHW: Tensor, factors_B: Tensor) -> Tensor:
    # Kornia takes the mean of floats, which torch sums in another order for a batch of one on several threads.
    gray_B1HW = rgb_to_grayscale(images_BCHW) if images_BCHW.shape[1] == 3 else images_BCHW
    levels_B1HW = (gray_B1HW * 255).round().to(torch.int64)
    mean_B111 = (levels_B1HW.sum((1, 2, 3), keepdim=True) / levels_B1HW[0].numel() / 255).to(images_BCHW.dtype)
    factors_B111 = factors_B.reshape(-1, 1, 1, 1)
    return (images_BCHW * factors_B111 + mean_B111 * (1 - factors_B111)).clamp_(0, 1)


def _blurred(images_BCHW: Tensor, draws: Draws, sigma_px: float) -> Tensor:
    # Kornia convolves, with another kernel and other rounding for one image of one channel.
    sigmas_B = _like(images_BCHW, draws.between(Stream.BLUR_SIGMA, MIN_SIGMA_PX, sigma_px))
    radius = math.ceil(3 * sigma_px)
    weights_BK = get_gaussian_kernel1d(2 * radius + 1, sigmas_B[:, None])
    for axis, padding in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded_BCHW = functional.pad(images_BCHW, padding, mode="replicate")
        size = images_BCHW.shape[axis]
        images_BCHW = torch.zeros_like(images_BCHW)
        for tap in range(2 * radius + 1):
            images_BCHW += padded_BCHW.narrow(axis, tap, size) * weights_BK[:, tap, None, None, None]
    return images_BCHW


def _erased(images_BCHW: Tensor, config: AugmentationConfig, draws: Draws, mean: Sequence[float]) -> Tensor:
    """Random erasing (Zhong et al., AAAI 2020); a rectangle that is too long for the image is shortened."""

    def cover(images_BCHW: Tensor, draws: Draws) -> Tensor:
        height, width = images_BCHW.shape[2:]
        area = draws.between(Stream.ERASE_AREA, MIN_ERASED, config.erase_area_max)
        reach = math.log(MAX_ERASED_ASPECT)
        aspect = np.exp(draws.between(Stream.ERASE_ASPECT, -reach, reach))
        is_column = _inside(draws, Stream.ERASE_X, np.sqrt(area * aspect), width)
        is_row = _inside(draws, Stream.ERASE_Y, np.sqrt(area / aspect), height)
        is_covered = torch.from_numpy(is_row[:, None, :, None] & is_column[:, None, None, :]).to(images_BCHW.device)
        return torch.where(is_covered, _like(images_BCHW, np.asarray(mean)).reshape(-1, 1, 1), images_BCHW)

    return _where(images_BCHW, draws, Stream.ERASE, config.erase, cover)


def _inside(draws: Draws, stream: Stream, share_B: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    length_B = np.clip(np.rint(share_B * size), 1, size)
    first_B = np.floor(draws.between(stream, 0, 1) * (size - length_B + 1))
    positions = np.arange(size)
    is_inside: NDArray[np.bool_] = (positions >= first_B[:, None]) & (positions < (first_B + length_B)[:, None])
    return is_inside


def _like(images_BCHW: Tensor, values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values).to(images_BCHW.device, images_BCHW.dtype)
