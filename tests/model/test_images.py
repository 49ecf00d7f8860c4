"""The decoder against Pillow driven by hand: every format, mode and resize policy to the pixel, and every refusal."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.config import ImageConfig
from model.errors import ImageRejectedError
from model.images import decode, encode_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEIGHT, WIDTH = 6, 10
LOSSLESS = ["PNG", "BMP", "TIFF", "PPM"]


def random_pixels(height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)


def random_image(mode: str = "RGB", height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = random_pixels(height, width, channels)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode=mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def config(channels: int = 3, height: int = HEIGHT, width: int = WIDTH, **other: Any) -> ImageConfig:
    return ImageConfig(height_px=height, width_px=width, channels=channels, **({"resize": "none"} | other))


def rejection(data: bytes, **other: Any) -> ImageRejectedError:
    with pytest.raises(ImageRejectedError) as refusal:
        decode(data, config(**other))
    return refusal.value


def as_chw(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def check_resized(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> None:
    """torch's resizing rounds otherwise than Pillow's here and there, by one level."""
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose data is next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("resize", ["stretch", "fit", "centre_crop", "none"])
def test_lossless_formats_of_the_right_size_give_the_very_pixels(kind, resize):
    pixels = random_pixels()
    found = decode(saved(Image.fromarray(pixels), kind), config(resize=resize))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "TIFF"), ("CMYK", "JPEG"), *itertools.product(["L", "RGB"], ["JPEG", "WEBP", "GIF", *LOSSLESS])],
)
def test_formats_are_as_pillow_opens_them(kind, mode):
    data = saved(random_image(mode), kind)
    assert (Image.open(io.BytesIO(data)).mode == "CMYK") == (mode == "CMYK")
    for channels, wanted in ((1, "L"), (3, "RGB")):
        image = Image.open(io.BytesIO(data))
        if (kind, mode, wanted) == ("JPEG", "RGB", "L"):
            image.draft("L", image.size)  # what the file itself holds: its brightness, not made of its colours again
        np.testing.assert_array_equal(decode(data, config(channels)), as_chw(image.convert(wanted)))


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "TIFF"), ("LA", "PNG")])
def test_transparent_parts_become_white_by_their_share(mode, kind):
    pixels = np.asarray(random_image(mode)).copy()
    pixels[0, :, -1], pixels[1, :, -1] = 0, 255
    found = decode(saved(Image.fromarray(pixels, mode=mode), kind), config())
    colour, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    mixed = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (HEIGHT, WIDTH, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(found, mixed, atol=1)
    assert (found[:, 0] == 255).all(), "what is fully transparent is white"
    np.testing.assert_array_equal(found[:, 1], np.broadcast_to(pixels[1, :, :-1], (WIDTH, 3)).T)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(kind):
    image = Image.fromarray((np.arange(HEIGHT * WIDTH) % 3).astype(np.uint8).reshape(HEIGHT, WIDTH), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    found = decode(saved(image, kind, transparency=1), config())
    colours = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    np.testing.assert_array_equal(found.transpose(1, 2, 0), colours[np.asarray(image)])


def test_bilevel_becomes_black_and_white():
    bits = random_pixels()[..., 0] > 127
    np.testing.assert_array_equal(decode(saved(Image.fromarray(bits), "PNG"), config(1))[0], bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_keeps_its_upper_8_bits(kind, channels):
    values = np.random.default_rng(5).integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)
    found = decode(saved(Image.fromarray(values), kind), config(channels))
    np.testing.assert_array_equal(found, np.broadcast_to(values >> 8, (channels, HEIGHT, WIDTH)))


def test_16_bit_pgm_keeps_its_upper_8_bits():
    values = np.random.default_rng(5).integers(0, 2**16, (HEIGHT, WIDTH)).astype(">u2")
    data = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.tobytes()
    np.testing.assert_array_equal(decode(data, config(1))[0], values >> 8)


ORIENTED = {
    1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
    5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: lambda p: np.rot90(p, 1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_obeyed_once(orientation, kind):
    pixels, exif = random_pixels(), Image.Exif()
    exif[0x0112] = orientation
    upright = ORIENTED[orientation](pixels)
    found = decode(saved(Image.fromarray(pixels), kind, exif=exif), config(height=len(upright), width=upright.shape[1]))
    np.testing.assert_array_equal(found, upright.transpose(2, 0, 1))


def test_exif_orientation_of_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = saved(random_image(), "JPEG"), saved(random_image(), "JPEG", exif=exif)
    upright = np.rot90(decode(plain, config()), -1, axes=(1, 2))
    np.testing.assert_array_equal(decode(turned, config(height=WIDTH, width=HEIGHT)), upright)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
    found = decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), config())
    np.testing.assert_array_equal(found, as_chw(frames[0]))


@pytest.mark.parametrize("size", [(12, 20), (3, 5), (6, 20), (9, 4)])
def test_stretch_is_bilinear_with_antialiasing(size):
    image = random_image(height=size[0], width=size[1])
    wanted = image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    check_resized(decode(saved(image, "PNG"), config(resize="stretch")), as_chw(wanted))


def test_fit_keeps_the_shape_and_pads_with_black():
    # 12 x 12 into 6 x 10: scaled to 6 x 6, two columns of black on each side.
    image = random_image(height=12, width=12)
    scaled = as_chw(image.resize((6, 6), Image.Resampling.BILINEAR))
    wanted = np.pad(scaled, ((0, 0), (0, 0), (2, 2)))
    check_resized(decode(saved(image, "PNG"), config(resize="fit")), wanted)


def test_centre_crop_cuts_the_longer_side():
    # 12 x 40 into 6 x 10: its middle 12 x 20, scaled by one half.
    image = random_image(height=12, width=40)
    middle = image.crop((10, 0, 30, 12)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    check_resized(decode(saved(image, "PNG"), config(resize="centre_crop")), as_chw(middle))


@pytest.mark.parametrize("resize", ["stretch", "fit", "centre_crop"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_long_thin_images_are_images_too(resize, size):
    image = Image.new("RGB", size, "white")
    assert decode(saved(image, "PNG"), config(resize=resize)).shape == (3, HEIGHT, WIDTH)


def test_an_empty_file_is_rejected():
    refusal = rejection(b"")
    assert (refusal.reason, refusal.detail) == ("empty", "the file has 0 bytes")


@pytest.mark.parametrize("data", [b"hello, I am text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_unreadable(data):
    refusal = rejection(data)
    assert refusal.reason == "unreadable"
    assert "cannot identify image file" in refusal.detail


def test_the_detail_says_the_same_each_time():
    details = {rejection(b"text" * 10).detail for _ in range(3)}
    assert len(details) == 1
    assert "0x" not in details.pop(), "an address in memory tells the reader nothing"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_unreadable(kind):
    data = saved(random_image(height=40, width=40), kind)
    refusal = rejection(data[: len(data) * 2 // 3], resize="stretch")
    assert refusal.reason == "unreadable"
    assert "truncated" in refusal.detail or "broken" in refusal.detail or "Truncated" in refusal.detail


def test_a_decompression_bomb_is_too_large():
    data = png_header(60_000, 60_000)
    assert len(data) < 100
    assert rejection(data).reason == "too_large"


def test_too_large_says_size_and_limit():
    refusal = rejection(png_header(2000, 1000), max_pixels=1_999_999)
    assert refusal.reason == "too_large"
    assert refusal.detail == "2000 x 1000 pixels, the limit image.max_pixels is 1999999"


def test_the_limit_is_the_configs_and_not_pillows():
    # 400 million pixels: over Pillow's own limit, under ours; the file is then cut short, and that is its fault.
    assert rejection(png_header(20_000, 20_000), max_pixels=2**31).reason == "unreadable"


def test_another_size_is_rejected_when_nothing_is_resized():
    refusal = rejection(saved(random_image(height=7), "PNG"))
    assert (refusal.reason, refusal.detail) == ("wrong_size", "10 x 7 pixels, resize is none and 10 x 6 are wanted")


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_png_is_undone_by_decode(channels):
    pixels_CHW = random_pixels(channels=channels).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(encode_png(pixels_CHW), config(channels)), pixels_CHW)


def outcome(data: bytes, channels: int) -> NDArray[np.uint8] | ImageRejectedError:
    try:
        return decode(data, config(channels, resize="stretch", max_pixels=100_000))
    except ImageRejectedError as refusal:
        return refusal


def check_outcome(data: bytes, channels: int) -> None:
    found = outcome(data, channels)
    if isinstance(found, ImageRejectedError):
        assert found.reason in ("empty", "unreadable", "too_large")
        assert found.detail
    else:
        assert (found.shape, found.dtype) == ((channels, HEIGHT, WIDTH), np.uint8)


VALID = {kind: saved(random_image(), kind) for kind in ("JPEG", "WEBP", "GIF", *LOSSLESS)}
HEADS = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"RIFF0000WEBP",
    b"P5 4 4 255\n",
    b"P6 ",
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(HEADS), st.binary(max_size=200), st.sampled_from([1, 3]))
def test_random_bytes_decode_or_are_rejected(head, data, channels):
    check_outcome(head + data, channels)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_damaged_files_decode_or_are_rejected(kind, data):
    damaged = bytearray(VALID[kind])
    for bit in data.draw(st.lists(st.integers(0, 8 * len(damaged) - 1), max_size=8)):
        damaged[bit // 8] ^= 1 << bit % 8
    keep = data.draw(st.integers(0, len(damaged)))
    check_outcome(bytes(damaged[:keep]), data.draw(st.sampled_from([1, 3])))
