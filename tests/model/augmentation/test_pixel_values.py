"""Augmentation's changes of values: colors against Pillow and colorsys, blur against scipy, and erasing."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from shardmean.model.augmentation.random import Stream
from shardmean.model.config.augmentation import AugmentationConfig
from tests.model.augmenting import augmented, draws_of, random_images


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_the_smallest_changes_of_color_give_the_same_bits(name):
    images = random_images(20, 3, 16, 16)
    np.testing.assert_array_equal(augmented(AugmentationConfig(**{name: 1e-9}), images), images)


def pil_enhanced(kind, images, factors):
    modes = [Image.fromarray(image.transpose(1, 2, 0).squeeze()) for image in images]
    changed = [np.asarray(kind(image).enhance(factor)) for image, factor in zip(modes, factors, strict=True)]
    return np.stack(changed).reshape(len(images), *images.shape[2:], -1).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("channels", "name", "stream", "kind"),
    [
        (1, "brightness", Stream.BRIGHTNESS, ImageEnhance.Brightness),
        (3, "brightness", Stream.BRIGHTNESS, ImageEnhance.Brightness),
        (1, "contrast", Stream.CONTRAST, ImageEnhance.Contrast),
        (3, "contrast", Stream.CONTRAST, ImageEnhance.Contrast),
        (3, "saturation", Stream.SATURATION, ImageEnhance.Color),
    ],
)
def test_brightness_contrast_and_saturation_are_pillows(channels, name, stream, kind):
    images = random_images(40, channels, 9, 13)
    changed = augmented(AugmentationConfig(**{name: 0.7}), images)
    factors = draws_of(40).between(stream, 0.3, 1.7)
    assert np.abs(changed.astype(int) - pil_enhanced(kind, images, factors)).max() <= 2


def test_a_hue_is_turned_as_pythons_colorsys_does():
    images = random_images(10, 3, 4, 5)
    changed = augmented(AugmentationConfig(hue=0.5), images)
    turns = draws_of(10).between(Stream.HUE, -0.5, 0.5)
    for row, turn in enumerate(turns):
        for place in np.ndindex(4, 5):
            h, s, v = colorsys.rgb_to_hsv(*(images[(row, slice(None), *place)] / 255))
            expected = np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v)) * 255
            assert np.abs(changed[(row, slice(None), *place)] - expected).max() <= 1


def test_grayscale_and_equalize_are_pillows():
    images = random_images(10, 3, 12, 15, smooth=True)
    for image, gray, spread in zip(
        images,
        augmented(AugmentationConfig(grayscale=1), images),
        augmented(AugmentationConfig(equalize=1), images),
        strict=True,
    ):
        seen = Image.fromarray(image.transpose(1, 2, 0))
        assert np.abs(gray.astype(int) - np.asarray(seen.convert("L"))).max() <= 1
        np.testing.assert_array_equal(spread, np.asarray(ImageOps.equalize(seen)).transpose(2, 0, 1))


def test_a_blur_is_scipys():
    images = random_images(10, 3, 15, 18)
    changed = augmented(AugmentationConfig(blur=1, blur_sigma_px=2), images)
    for row, sigma in enumerate(draws_of(10).between(Stream.BLUR_SIGMA, 0.1, 2)):
        expected = ndimage.gaussian_filter(images[row] / 255, (0, sigma, sigma), mode="nearest", radius=(0, 6, 6)) * 255
        assert np.abs(changed[row] - expected).max() < 1


def test_what_is_erased_is_a_rectangle_of_the_mean_and_no_more():
    images = random_images(200, 1, 20, 30)
    changed = augmented(AugmentationConfig(erase=0.6, erase_area_max=0.4), images)
    erased = draws_of(200).happens(Stream.ERASE, 0.6)
    for row in range(200):
        is_other = changed[row, 0] != images[row, 0]
        assert (row in erased) == is_other.any()
        if row in erased:
            ys, xs = np.nonzero(is_other)
            rectangle = changed[row, 0, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            assert (rectangle == 128).all()
            assert 0.012 < rectangle.size / 600 <= 0.45
