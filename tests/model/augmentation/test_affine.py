"""Augmentation's changes of place: flips, shifts, turns, crops and warps, against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from shardmean.model.augmentation.affine import matrices
from shardmean.model.augmentation.random import NUM_STREAMS, Draws, Stream
from shardmean.model.config.augmentation import AugmentationConfig
from tests.model.augmenting import CHANGES, RGB_ONLY, augmented, draws_of, random_images

BORDERS = {"black": "constant", "edge": "edge", "reflect": "reflect"}


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [(5, 7), (28, 28), (64, 301)])
@pytest.mark.parametrize(
    "change",
    [{"rotate_degrees": 1e-6}, {"scale_max": 1 + 1e-9}, {"warp_fraction": 1e-7}, {"translate_fraction": 1e-9}],
    ids=lambda change: next(iter(change)),
)
def test_the_smallest_changes_of_place_give_the_same_bits(border, size, change):
    images = random_images(5, 3, *size)
    np.testing.assert_array_equal(augmented(AugmentationConfig(border=border, **change), images), images)


@pytest.mark.parametrize("shape", [(1, 5, 8), (3, 9, 4)])
def test_a_flip_is_numpys(shape):
    images = random_images(6, *shape)
    np.testing.assert_array_equal(augmented(AugmentationConfig(flip_horizontal=1), images), images[..., ::-1])
    np.testing.assert_array_equal(augmented(AugmentationConfig(flip_vertical=1), images), images[..., ::-1, :])
    half = augmented(AugmentationConfig(flip_vertical=0.5), images)
    flipped = draws_of(6).happens(Stream.FLIP_VERTICAL, 0.5)
    for row, image in enumerate(half):
        np.testing.assert_array_equal(image, images[row, :, ::-1] if row in flipped else images[row])


@pytest.mark.parametrize("border", BORDERS)
def test_a_shift_by_pixels_is_the_crop_of_a_padded_image(border):
    images = random_images(60, 3, 11, 14)
    shifted = augmented(AugmentationConfig(translate_px=3, border=border), images)
    x, y = (np.floor(draws_of(60).between(stream, -3, 4)).astype(int) for stream in (Stream.SHIFT_X, Stream.SHIFT_Y))
    assert set(x) == set(y) == set(range(-3, 4))
    padded = np.pad(images, [(0, 0), (0, 0), (3, 3), (3, 3)], mode=BORDERS[border])
    for row, image in enumerate(shifted):
        crop = padded[row, :, 3 - y[row] : 14 - y[row], 3 - x[row] : 17 - x[row]]
        np.testing.assert_array_equal(image, crop)


@pytest.mark.parametrize("quarters", [-1, 1, 2])
@pytest.mark.parametrize("size", [8, 9])
def test_quarter_turns_are_numpys(quarters, size, monkeypatch):
    """A positive angle turns an image clockwise."""
    images = random_images(2, 1, size, size)
    uniform_NS = np.full((2, NUM_STREAMS), 0.5)
    uniform_NS[:, Stream.ROTATE] = 0.5 + quarters / 4
    draws = Draws(uniform_NS)
    monkeypatch.setattr(Draws, "of", lambda keys, **other: draws)
    turned = augmented(AugmentationConfig(rotate_degrees=180), images)
    np.testing.assert_array_equal(turned, np.rot90(images, -quarters, axes=(2, 3)))


MOVES = [
    {"rotate_degrees": 60},
    {"crop_area_min": 0.1, "crop_aspect_max": 2},
    {"scale_min": 0.5, "scale_max": 2},
    {"shear_degrees": 30},
    {"translate_fraction": 0.5},
    {name: CHANGES[name] for name in ("crop_area_min", "scale_max", "shear_degrees", "rotate_degrees", "translate_px")},
]


@pytest.mark.parametrize("moves", MOVES, ids=lambda moves: ", ".join(moves))
def test_pixels_come_from_where_the_matrix_says(moves):
    config = AugmentationConfig(**moves)
    images = random_images(20, 1, 23, 31)
    changed = augmented(config, images)
    for row, matrix in enumerate(matrices(config, draws_of(20), height=23, width=31)):
        back = np.linalg.inv(matrix)[[1, 0, 2]][:, [1, 0, 2]]
        expected = ndimage.affine_transform(images[row, 0] / 255, back, order=1, mode="grid-constant") * 255
        assert np.abs(changed[row, 0] - expected).max() < 1


@given(seed=st.integers(0, 2**32), height=st.integers(2, 60), width=st.integers(2, 60))
def test_a_crop_stays_inside_the_image(seed, height, width):
    config = AugmentationConfig(crop_area_min=0.05, crop_aspect_max=3)
    back_N33 = np.linalg.inv(matrices(config, draws_of(50, seed=seed), height=height, width=width))
    corners = np.array([[-0.5, -0.5, 1], [width - 0.5, height - 0.5, 1]]).T
    left_top, right_bottom = np.moveaxis((back_N33 @ corners)[:, :2], 2, 0)
    assert (left_top >= -0.5 - 1e-9).all()
    assert (right_bottom <= np.array([width, height]) - 0.5 + 1e-9).all()
    share = np.prod(right_bottom - left_top, axis=1) / (width * height)
    assert (share <= 1 + 1e-9).all()
    # A crop that is too long is cut short, by the aspect ratio at most.
    assert (share >= 0.05 / 3).all()


@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_a_warp_moves_corners_as_far_as_it_may_and_turns_nothing_over(fraction):
    back_N33 = np.linalg.inv(matrices(AugmentationConfig(warp_fraction=fraction), draws_of(400), height=20, width=30))
    forth_N33 = np.linalg.inv(back_N33)
    corners = np.array([[-0.5, -0.5, 1], [29.5, -0.5, 1], [29.5, 19.5, 1], [-0.5, 19.5, 1]]).T
    moved = forth_N33 @ corners
    away = np.abs(moved[:, :2] / moved[:, 2:] - corners[:2]).max(axis=(0, 2))
    assert (away <= fraction * np.array([15, 10]) + 1e-9).all()
    assert (away > 0.95 * fraction * np.array([15, 10])).all()
    depth = (back_N33 @ corners)[:, 2] / back_N33[:, 2, 2:]
    assert (depth > 0).all(), "the horizon lies outside"


@pytest.mark.parametrize("channels", [1, 3])
@given(data=st.data())
def test_places_alone_bring_no_new_extremes(channels, data):
    names = sorted(set(CHANGES) - RGB_ONLY - {"blur", "brightness", "contrast", "equalize", "erase"})
    chosen = data.draw(st.sets(st.sampled_from(names), min_size=1))
    config = AugmentationConfig(**({name: CHANGES[name] for name in chosen} | {"border": "edge"}))
    images = np.clip(random_images(6, channels, 9, 9), 60, 200)
    changed = augmented(config, images)
    assert changed.min() >= 60
    assert changed.max() <= 200
