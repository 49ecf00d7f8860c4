"""Where pixels go: each policy against Pillow, the true center, and reduced JPEG near the full way."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from shardmean.model.images.decoder import ORIENTATION, decode, encode_png
from shardmean.model.images.jpeg import reduction
from shardmean.model.images.resize import placement
from tests.model.picture_files import (
    HEIGHT,
    ORIENTED,
    WIDTH,
    as_chw,
    check_resized,
    config,
    random_image,
    random_pixels,
    saved,
)

BILINEAR = Image.Resampling.BILINEAR
SIDES = st.integers(1, 40)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(12, 20), (3, 5), (6, 20), (9, 4), (1, 1), (300, 200)])
def test_stretch_is_bilinear_with_antialiasing(size, channels):
    image = random_image("RGB" if channels == 3 else "L", height=size[0], width=size[1])
    wanted = image.resize((WIDTH, HEIGHT), BILINEAR)
    check_resized(decode(saved(image, "PNG"), config(channels, resize="stretch")), as_chw(wanted))


def test_fit_keeps_the_shape_and_pads_with_black():
    # 12 x 12 into 6 x 10: scaled to 6 x 6, two columns of black on each side.
    image = random_image(height=12, width=12)
    scaled = as_chw(image.resize((6, 6), BILINEAR))
    wanted = np.pad(scaled, ((0, 0), (0, 0), (2, 2)))
    check_resized(decode(saved(image, "PNG"), config(resize="fit")), wanted)


@pytest.mark.parametrize(
    ("padding", "rgb"),
    [("white", (255, 255, 255)), ("gray", (128,) * 3), ([1, 2, 200], (1, 2, 200)), ("#0a0B0c", (10, 11, 12))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_has_the_color_asked(padding, rgb, channels):
    found = decode(saved(random_image(height=20, width=7), "PNG"), config(channels, resize="fit", padding=padding))
    wanted = as_chw(Image.new("RGB", (WIDTH, HEIGHT), rgb).convert("L" if channels == 1 else "RGB"))
    np.testing.assert_array_equal(found[:, :, [0, 1, 2, 3, -4, -3, -2, -1]], wanted[:, :, :8])
    assert (found[:, :, 4:6] != wanted[:, :, 4:6]).any()


def test_center_crop_cuts_the_longer_side():
    # 12 x 40 into 6 x 10: its middle 12 x 20, scaled by one half.
    image = random_image(height=12, width=40)
    middle = image.crop((10, 0, 30, 12)).resize((WIDTH, HEIGHT), BILINEAR)
    check_resized(decode(saved(image, "PNG"), config(resize="center_crop")), as_chw(middle))


def test_center_crop_of_odd_sizes_begins_inside_a_pixel():
    # Four pixels of seven: half of the second, the third to the fifth, half of the sixth. Their mean by hand.
    row = np.array([200, 10, 20, 30, 40, 50, 200], np.uint8)
    image = Image.fromarray(np.repeat(row[None], 4, axis=0))
    where = placement(7, 4, config(1, 4, 4, resize="center_crop"))
    assert where.box == (1.5, 0, 5.5, 4)
    found = decode(saved(image, "PNG"), config(1, 4, 4, resize="center_crop"))
    assert found.tolist() == [[[15, 25, 35, 45]] * 4]


def test_center_crop_has_the_shape_and_the_center_asked():
    for width, height in [(500, 375), (375, 500), (501, 333), (7, 1000)]:
        for wanted_height, wanted_width in [(224, 224), (6, 10), (3, 1)]:
            left, top, right, bottom = placement(
                width, height, config(1, wanted_height, wanted_width, resize="center_crop")
            ).box
            assert (left + right, top + bottom) == pytest.approx((width, height)), "the center is the image's"
            assert (right - left) * wanted_height == pytest.approx((bottom - top) * wanted_width)
            assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height), "as large as can be"


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["stretch", "fit", "center_crop"]))
def test_a_mirrored_image_gives_the_mirrored_example(height, width, wanted_height, wanted_width, resize):
    """No policy favors a side. Where fit has an odd margin it must: that is left out."""
    options = config(3, wanted_height, wanted_width, resize=resize)
    where = placement(width, height, options)
    if (wanted_width - where.width_px) % 2 or (wanted_height - where.height_px) % 2:
        return
    pixels_CHW = random_pixels(height, width).transpose(2, 0, 1)
    found = decode(encode_png(pixels_CHW), options)
    turned = decode(encode_png(np.ascontiguousarray(pixels_CHW[:, ::-1, ::-1])), options)
    check_resized(turned[:, ::-1, ::-1], found)


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["stretch", "fit", "center_crop"]))
def test_a_plain_image_stays_plain(height, width, wanted_height, wanted_width, resize):
    image = Image.new("RGB", (width, height), (10, 120, 250))
    found = decode(saved(image, "PNG"), config(3, wanted_height, wanted_width, resize=resize, padding=[10, 120, 250]))
    assert (found == np.array([10, 120, 250])[:, None, None]).all()


@pytest.mark.parametrize("resize", ["stretch", "fit", "center_crop"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_long_thin_images_are_images_too(resize, size):
    image = Image.new("RGB", size, "white")
    assert decode(saved(image, "PNG"), config(resize=resize)).shape == (3, HEIGHT, WIDTH)


def full_way(data: bytes, width: int, height: int, mode: str, box: tuple[float, ...] | None = None) -> Image.Image:
    """Plain Pillow: all pixels decoded, then resized."""
    image = Image.open(io.BytesIO(data))
    if mode == "L":
        image.draft("L", image.size)
    return image.convert(mode).resize((width, height), BILINEAR, box=box)


def photographs() -> list[bytes]:
    images = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427
    return [
        saved(image, "JPEG", quality=quality, subsampling=subsampling)
        for image in images
        for quality in (75, 95)
        for subsampling in (0, 2)
    ]


@pytest.mark.parametrize(
    ("size", "times"), [((224, 224), 1), ((160, 106), 2), ((80, 53), 4), ((40, 26), 8), ((28, 28), 4)]
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_reduced_jpeg_stays_near_the_full_way(size, times, mode):
    """What docs/decoding.md states: at most 1 of 255 in the mean of a photograph, 44 dB; none where not reduced."""
    width, height = size
    assert reduction(640, 427, width, height) == times
    for data in photographs():
        found = decode(data, config(len(mode) if mode == "RGB" else 1, height, width, resize="stretch"))
        errors = np.abs(found.astype(float) - as_chw(full_way(data, width, height, mode)))
        if times == 1:
            assert errors.max() <= 1
        assert errors.mean() <= 1.0
        assert 10 * np.log10(255**2 / np.square(errors).mean()) >= 44


def test_a_reduced_jpeg_is_cropped_at_its_center():
    for data in photographs():
        found = decode(data, config(3, 50, 50, resize="center_crop"))
        wanted = full_way(data, 50, 50, "RGB", box=(106.5, 0, 533.5, 427))
        assert np.abs(found.astype(float) - as_chw(wanted)).mean() <= 1.0


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
def test_a_reduced_jpeg_is_turned_about_its_own_center(turn, resize):
    """Its last pixels are partly beyond the picture; that part must be left out on whichever side a turn puts it."""
    image, exif = Image.fromarray(load_sample_images().images[0]).crop((60, 50, 381, 325)), Image.Exif()  # 321 x 275
    exif[ORIENTATION] = turn
    plain = decode(saved(image, "JPEG"), config(3, 17, 20, resize=resize)).transpose(1, 2, 0)
    height, width, _ = ORIENTED[turn](plain).shape
    assert reduction(321, 275, 20, 17) == 8
    found = decode(saved(image, "JPEG", exif=exif), config(3, height, width, resize=resize))
    check_resized(found, ORIENTED[turn](plain).transpose(2, 0, 1))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 500), st.integers(1, 500))
def test_a_jpeg_is_reduced_to_twice_what_is_wanted_at_the_least(width, height, wanted_width, wanted_height):
    times = reduction(width, height, wanted_width, wanted_height)
    assert times in (1, 2, 4, 8)
    if times > 1:
        assert width / times >= 2 * wanted_width
        assert height / times >= 2 * wanted_height
