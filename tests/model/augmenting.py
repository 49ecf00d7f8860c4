"""What the tests of augmentation share: every change there is, random images, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage

from shardmean.model.augmentation.augmenter import Augmenter
from shardmean.model.augmentation.random import Draws

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardmean.model.config.augmentation import AugmentationConfig

KEYS = np.random.default_rng(0).integers(0, 2**64, 400, np.uint64)
CHANGES: dict[str, Any] = {
    "probability": 0.8, "flip_horizontal": 0.5, "flip_vertical": 0.4, "crop_area_min": 0.3, "crop_aspect_max": 1.4,
    "scale_min": 0.7, "scale_max": 1.3, "shear_degrees": 12, "rotate_degrees": 40, "translate_fraction": 0.2,
    "translate_px": 2, "warp_fraction": 0.3, "border": "reflect", "blur": 0.6, "brightness": 0.4, "contrast": 0.5,
    "saturation": 0.6, "hue": 0.2, "grayscale": 0.3, "equalize": 0.3, "erase": 0.5,
}  # fmt: skip
RGB_ONLY = {"saturation", "hue", "grayscale"}


def random_images(num: int, *shape: int, seed: int = 0, smooth: bool = False) -> NDArray[np.uint8]:
    images = np.random.default_rng(seed).integers(0, 256, (num, *shape)).astype(np.float64)
    if smooth:
        images = np.clip(127 + 4 * (ndimage.gaussian_filter(images, (0, 0, 2, 2)) - 127), 0, 255)
    return images.astype(np.uint8)


def augmented(
    config: AugmentationConfig, images: NDArray[np.uint8], keys=None, *, seed=3, epoch=1
) -> NDArray[np.uint8]:
    augmenter = Augmenter(config, seed=seed, epoch=epoch, mean=[0.5] * images.shape[1])
    return augmenter(torch.from_numpy(images), KEYS[: len(images)] if keys is None else keys).numpy()


def draws_of(num: int, *, seed: int = 3, epoch: int = 1) -> Draws:
    return Draws.of(KEYS[:num], seed=seed, epoch=epoch)
