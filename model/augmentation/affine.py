"""The geometric changes of an augmented image, combined into one 3 x 3 matrix for each example.

A matrix maps (x, y, 1) of the original image to the new one, in pixels; the origin is the center of the top left pixel.
Computed in float64 on the CPU, whatever the device. Shapes: N examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from kornia.geometry.transform import get_perspective_transform

from .random import Draws, Stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..config.augmentation import AugmentationConfig

_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])


def matrices(config: AugmentationConfig, draws: Draws, *, height: int, width: int) -> NDArray[np.float64]:
    """Crop, scale, shear, rotation, translation and warp of each example as one matrix, float64 (N, 3, 3)."""
    center = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    about_center = (
        _warp(config.warp_fraction, draws, height, width)
        @ _translation(config, draws, height, width)
        @ _rotation(config.rotate_degrees, draws)
        @ _shear_and_scale(config, draws)
        @ _crop(config, draws, height, width)
    )
    moved: NDArray[np.float64] = center @ about_center @ np.linalg.inv(center)
    return moved


def _crop(config: AugmentationConfig, draws: Draws, height: int, width: int) -> NDArray[np.float64]:
    # As the Inception crop, but a crop that is too long for the image is shortened, not drawn again.
    area = draws.between(Stream.CROP_AREA, config.crop_area_min, 1)
    log_aspect = draws.between(Stream.CROP_ASPECT, -np.log(config.crop_aspect_max), np.log(config.crop_aspect_max))
    across, down = np.minimum(1, np.sqrt(area * np.exp([log_aspect, -log_aspect])))
    x = draws.between(Stream.CROP_X, -1, 1) * (1 - across) * width / 2
    y = draws.between(Stream.CROP_Y, -1, 1) * (1 - down) * height / 2
    return _matrix([[1 / across, 0, -x / across], [0, 1 / down, -y / down]])


def _shear_and_scale(config: AugmentationConfig, draws: Draws) -> NDArray[np.float64]:
    scale = draws.between(Stream.SCALE, config.scale_min, config.scale_max)
    slant = np.tan(np.radians(draws.between(Stream.SHEAR, -config.shear_degrees, config.shear_degrees)))
    return _matrix([[scale, slant * scale, 0], [0, scale, 0]])


def _rotation(degrees: float, draws: Draws) -> NDArray[np.float64]:
    angle = np.radians(draws.between(Stream.ROTATE, -degrees, degrees))
    return _matrix([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])


def _translation(config: AugmentationConfig, draws: Draws, height: int, width: int) -> NDArray[np.float64]:
    reach, pixels = config.translate_fraction, config.translate_px
    # 2 * pixels + 1 whole numbers, equally likely.
    x, y = (np.floor(draws.between(s, -pixels, pixels + 1)) for s in (Stream.SHIFT_X, Stream.SHIFT_Y))
    x = x + draws.between(Stream.TRANSLATE_X, -reach, reach) * width
    y = y + draws.between(Stream.TRANSLATE_Y, -reach, reach) * height
    return _matrix([[1, 0, x], [0, 1, y]])


def _warp(fraction: float, draws: Draws, height: int, width: int) -> NDArray[np.float64]:
    if not fraction:
        return np.eye(3)
    moves = draws.uniform_NS[:, Stream.CORNERS : Stream.CORNERS + 8].reshape(-1, 4, 2) * 2 - 1
    half = np.array([width / 2, height / 2])
    given = np.broadcast_to(_CORNERS * half, moves.shape).copy()
    moved = (_CORNERS + fraction * moves) * half
    warp: NDArray[np.float64] = get_perspective_transform(torch.from_numpy(given), torch.from_numpy(moved)).numpy()
    return warp


def _matrix(rows: list[list[NDArray[np.float64] | float]]) -> NDArray[np.float64]:
    first, second = ([np.asarray(value, np.float64) for value in row] for row in rows)
    values = np.broadcast_arrays(*first, *second)
    last = np.zeros_like(values[0])
    stacked = np.stack([*values, last, last, last + 1], axis=-1)
    return stacked.reshape(*stacked.shape[:-1], 3, 3)
