"""Augmentation's laws: a function of (seed, epoch, example) alone, each change equal to that of another library."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError
from scipy import ndimage

from model.augmentation import CPU_PIECE_BYTES, Augmenter
from model.augmentation_config import AugmentationConfig
from model.config import ImageConfig
from model.draws import NUM_STREAMS, Draws, Stream
from model.errors import UserError
from model.geometry import matrices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

KEYS = np.random.default_rng(0).integers(0, 2**64, 400, np.uint64)
BORDERS = {"black": "constant", "edge": "edge", "reflect": "reflect"}
CHANGES: dict[str, Any] = {
    "probability": 0.8, "flip_horizontal": 0.5, "flip_vertical": 0.4, "crop_area_min": 0.3, "crop_aspect_max": 1.4,
    "scale_min": 0.7, "scale_max": 1.3, "shear_degrees": 12, "rotate_degrees": 40, "translate_fraction": 0.2,
    "translate_px": 2, "warp_fraction": 0.3, "border": "reflect", "blur": 0.6, "brightness": 0.4, "contrast": 0.5,
    "saturation": 0.6, "hue": 0.2, "grayscale": 0.3, "equalize": 0.3, "erase": 0.5,
}  # fmt: skip
RGB_ONLY = {"saturation", "hue", "grayscale"}


@st.composite
def configs(draw, channels: int) -> AugmentationConfig:
    names = sorted(set(CHANGES) - (RGB_ONLY if channels == 1 else set()))
    chosen = draw(st.sets(st.sampled_from(names), min_size=1))
    return AugmentationConfig(**{name: CHANGES[name] for name in chosen})


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


@pytest.fixture(params=[1, 2])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def repainted(config: AugmentationConfig, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the device computes for some of the images, before it is rounded to uint8."""
    augmenter = Augmenter(config, seed=3, epoch=1, mean=[0.5] * images.shape[1])
    floats = torch.from_numpy(images[rows]).float() / 255
    return augmenter._repainted(floats, Draws.of(KEYS[rows], seed=3, epoch=1)).numpy()


@pytest.mark.parametrize("channels", [1, 3])
@settings(max_examples=60)
@given(data=st.data())
def test_an_image_becomes_the_same_in_any_batch(channels, data):
    config = data.draw(configs(channels))
    shape = (channels, data.draw(st.integers(5, 19)), data.draw(st.integers(5, 19)))
    rows = np.array(data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=12)))
    images = random_images(12, *shape)
    np.testing.assert_array_equal(augmented(config, images[rows], KEYS[rows]), augmented(config, images)[rows])
    np.testing.assert_array_equal(repainted(config, images, rows), repainted(config, images, np.arange(12))[rows])


ALONE = {name: {name: change} for name, change in CHANGES.items() if name not in ("probability", "border")}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("changes", [*ALONE.values(), CHANGES], ids=[*ALONE, "all"])
def test_a_large_image_becomes_the_same_alone_and_on_any_number_of_threads(channels, changes, threads):
    known = {key: value for key, value in changes.items() if channels == 3 or key not in RGB_ONLY}
    config = AugmentationConfig(**known)
    images = random_images(3, channels, 230, 221)
    whole = repainted(config, images, np.arange(3))
    for row in range(3):
        np.testing.assert_array_equal(repainted(config, images, np.array([row]))[0], whole[row])
    torch.set_num_threads(3 - threads)
    np.testing.assert_array_equal(repainted(config, images, np.arange(3)), whole)


def test_pieces_of_a_large_batch_become_what_they_are_alone():
    images = random_images(9, 3, 320, 320)
    assert images[0].nbytes * 4 * 7 > CPU_PIECE_BYTES
    config = AugmentationConfig(rotate_degrees=30, erase=0.5, probability=0.7)
    np.testing.assert_array_equal(augmented(config, images)[8], augmented(config, images[[8]], KEYS[[8]])[0])


@pytest.mark.parametrize("change", [{"epoch": 2}, {"seed": 4}, {"keys": KEYS[50:58]}], ids=["epoch", "seed", "example"])
def test_another_epoch_seed_or_example_is_changed_otherwise(change):
    config = AugmentationConfig(rotate_degrees=40, translate_fraction=0.2)
    images = random_images(8, 1, 12, 12)
    others = augmented(config, images, **change)
    assert all((one != other).any() for one, other in zip(augmented(config, images), others, strict=True))
    np.testing.assert_array_equal(augmented(config, images), augmented(config, images))


def test_nothing_is_on_by_default():
    assert not AugmentationConfig().is_on
    assert not AugmentationConfig(**(CHANGES | {"probability": 0})).is_on
    assert not AugmentationConfig(border="edge", blur_sigma_px=3, erase_area_max=0.5).is_on
    for name in set(CHANGES) - {"probability", "border"}:
        assert AugmentationConfig(**{name: CHANGES[name]}).is_on, name


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_the_share_of_changed_examples_is_the_probability_and_the_others_stay(probability):
    images = random_images(400, 1, 6, 6)
    changed = augmented(AugmentationConfig(brightness=0.9, probability=probability), images)
    is_changed = (changed != images).any(axis=(1, 2, 3))
    expected = draws_of(400).happens(Stream.CHANGE, probability)
    assert set(np.flatnonzero(is_changed)) <= set(expected)
    assert len(expected) - is_changed.sum() < 5, "a factor near 1 changes nothing"


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


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_the_smallest_changes_of_colour_give_the_same_bits(name):
    images = random_images(20, 3, 16, 16)
    np.testing.assert_array_equal(augmented(AugmentationConfig(**{name: 1e-9}), images), images)


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
    for image, grey, spread in zip(
        images,
        augmented(AugmentationConfig(grayscale=1), images),
        augmented(AugmentationConfig(equalize=1), images),
        strict=True,
    ):
        seen = Image.fromarray(image.transpose(1, 2, 0))
        assert np.abs(grey.astype(int) - np.asarray(seen.convert("L"))).max() <= 1
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


@pytest.mark.parametrize("name", sorted(RGB_ONLY))
def test_colours_of_grey_images_are_refused(name):
    config = AugmentationConfig(**{name: 0.25})
    config.check(ImageConfig(channels=3))
    with pytest.raises(
        UserError, match=rf"augmentation\.{name} = 0\.25: images of 1 channel have no colours.*set it to 0"
    ):
        config.check(ImageConfig(channels=1))


def test_scales_out_of_order_are_refused():
    with pytest.raises(ValidationError, match=r"scale_min is 1\.2 and must be at most scale_max, 1"):
        AugmentationConfig(scale_min=1.2)
