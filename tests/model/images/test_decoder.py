"""The decoder against Pillow driven by hand: every format and mode to the pixel, and what it says of a file."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from shardmean.model.images.decoder import FORMATS, SUFFIXES, decode, decode_image, encode_png
from tests.model.picture_files import (
    HEIGHT,
    LOSSLESS,
    ORIENTED,
    WIDTH,
    as_chw,
    config,
    hand_made_png,
    hand_made_tiff,
    png_chunk,
    random_image,
    random_pixels,
    rejection,
    saved,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIFF_CODECS = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]


def ycck_jpeg() -> bytes:
    """Pillow writes no YCCK: say so in the Adobe marker of a CMYK file, whose numbers then mean other colors."""
    data = saved(random_image("CMYK"), "JPEG")
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\2" + data[transform + 1 :]


FILES = {
    **{f"{kind} {mode}": saved(random_image(mode), kind) for mode in ("1", "L", "RGB") for kind in LOSSLESS},
    **{f"PNG {mode}": saved(random_image(mode), "PNG") for mode in ("P", "LA", "RGBA")},
    **{f"PNG P{bits}": saved(random_image("L").quantize(2**bits), "PNG", bits=bits) for bits in (1, 2, 4)},
    "PNG P with alpha": saved(random_image("P"), "PNG", transparency=bytes(range(256))),
    "PNG L with transparency": saved(random_image("L"), "PNG", transparency=int(random_pixels(channels=1)[0, 0, 0])),
    "PNG RGB with transparency": saved(random_image(), "PNG", transparency=tuple(random_pixels()[0, 0].tolist())),
    **{f"JPEG {mode}": saved(random_image(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    **{f"JPEG, subsampling {number}": saved(random_image(), "JPEG", subsampling=number) for number in (0, 1, 2)},
    "JPEG, progressive": saved(random_image(), "JPEG", progressive=True),
    "JPEG, gray progressive": saved(random_image("L"), "JPEG", progressive=True),
    "JPEG, restarts": saved(random_image(), "JPEG", restart_marker_blocks=1),
    "JPEG, RGB inside": saved(random_image(), "JPEG", keep_rgb=True),
    "JPEG, YCCK": ycck_jpeg(),
    "JPEG, bytes before a marker": saved(random_image(height=64, width=64), "JPEG", restart_marker_blocks=1).replace(
        b"\xff\xd0", b"abc\xff\xd0", 1
    ),
    "JPEG, bytes after the end": saved(random_image(), "JPEG") + b"abc",
    **{f"WEBP {mode}": saved(random_image(mode), "WEBP") for mode in ("RGB", "RGBA")},
    **{f"WEBP {mode}, lossless": saved(random_image(mode), "WEBP", lossless=True) for mode in ("RGB", "RGBA")},
    "BMP P": saved(random_image("P"), "BMP"),
    **{
        f"TIFF {mode}, {codec}": saved(random_image(mode), "TIFF", compression=codec)
        for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK")
        for codec in TIFF_CODECS
    },
    "TIFF RGB, jpeg": saved(random_image(), "TIFF", compression="jpeg"),
    "TIFF 1, group4": saved(random_image("1"), "TIFF", compression="group4"),
    "TIFF YCbCr": saved(random_image("YCbCr"), "TIFF"),
    "GIF P": saved(random_image("P"), "GIF"),
    "GIF P with transparency": saved(random_image("P"), "GIF", transparency=7),
    "PPM, plain": b"P3 2 3 255 " + b" ".join(b"%d" % value for value in range(0, 180, 10)),
    "PBM, plain": b"P1 3 2 1 0 1 0 1 1",
    "PPM, 16 bit": b"P6 2 3 65535 " + np.random.default_rng(6).integers(0, 2**16, 18).astype(">u2").tobytes(),
    "PGM, 7 levels": b"P5 3 2 6 " + bytes(range(6)),
}


def by_pillow(data: bytes, channels: int, background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """What Pillow's documentation says to do for one image."""
    image = Image.open(io.BytesIO(data))
    if image.format == "JPEG" and image.mode == "RGB" and channels == 1:
        image.draft("L", image.size)  # the brightness that the file holds, not made of its colors again
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))
    return as_chw(image.convert("L" if channels == 1 else "RGB"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("background", "rgb"), [("white", (255, 255, 255)), ([9, 80, 200], (9, 80, 200))])
def test_each_format_and_mode_is_as_pillow_makes_it(name, channels, background, rgb):
    wanted = by_pillow(FILES[name], channels, rgb)
    options = config(channels, *wanted.shape[1:], background=background)
    np.testing.assert_array_equal(decode(FILES[name], options), wanted)


def test_harmless_bytes_before_a_marker_are_for_pillow_to_read():
    """Cameras write such files. What is above compares their pixels."""
    with pytest.raises(ValueError, match="3 extraneous bytes before marker"):
        simplejpeg.decode_jpeg(FILES["JPEG, bytes before a marker"])


def test_the_files_above_are_of_many_modes():
    modes = {Image.open(io.BytesIO(data)).mode for data in FILES.values()}
    assert modes == {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("resize", ["stretch", "fit", "center_crop", "none"])
def test_lossless_formats_of_the_right_size_give_the_very_pixels(kind, resize):
    pixels = random_pixels()
    found = decode(saved(Image.fromarray(pixels), kind), config(resize=resize))
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "TIFF"), ("LA", "PNG")])
def test_transparent_parts_become_white_by_their_share(mode, kind):
    pixels = np.asarray(random_image(mode)).copy()
    pixels[0, :, -1], pixels[1, :, -1] = 0, 255
    found = decode(saved(Image.fromarray(pixels, mode=mode), kind), config())
    color, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    mixed = np.broadcast_to(color * alpha + 255 * (1 - alpha), (HEIGHT, WIDTH, 3)).transpose(2, 0, 1)
    np.testing.assert_allclose(found, mixed, atol=1)
    assert (found[:, 0] == 255).all(), "what is fully transparent is white"
    np.testing.assert_array_equal(found[:, 1], np.broadcast_to(pixels[1, :, :-1], (WIDTH, 3)).T)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(kind):
    image = Image.fromarray((np.arange(HEIGHT * WIDTH) % 3).astype(np.uint8).reshape(HEIGHT, WIDTH), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    found = decode(saved(image, kind, transparency=1), config())
    colors = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    np.testing.assert_array_equal(found.transpose(1, 2, 0), colors[np.asarray(image)])


def test_bilevel_becomes_black_and_white():
    bits = random_pixels()[..., 0] > 127
    np.testing.assert_array_equal(decode(saved(Image.fromarray(bits), "PNG"), config(1))[0], bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_gray_keeps_its_upper_8_bits(kind, channels):
    values = np.random.default_rng(5).integers(0, 2**16, (HEIGHT, WIDTH)).astype(np.uint16)
    found = decode(saved(Image.fromarray(values), kind), config(channels))
    np.testing.assert_array_equal(found, np.broadcast_to(values >> 8, (channels, HEIGHT, WIDTH)))


def test_16_bit_pgm_keeps_its_upper_8_bits():
    values = np.random.default_rng(5).integers(0, 2**16, (HEIGHT, WIDTH)).astype(">u2")
    data = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.tobytes()
    np.testing.assert_array_equal(decode(data, config(1))[0], values >> 8)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_png_gray_of_each_depth_by_hand(depth, interlaced):
    values = np.random.default_rng(5).integers(0, 2**depth, (9, 13))
    found = decode(hand_made_png(values[..., None], depth=depth, color_type=0, interlaced=interlaced), config(1, 9, 13))
    # Fewer bits are spread over 0 to 255, so that the brightest stays the brightest.
    np.testing.assert_array_equal(found[0], values >> 8 if depth == 16 else values * 255 // (2**depth - 1))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_png_colors_of_each_depth_by_hand(depth, interlaced):
    values = np.random.default_rng(5).integers(0, 2**depth, (9, 13, 3))
    found = decode(hand_made_png(values, depth=depth, color_type=2, interlaced=interlaced), config(3, 9, 13))
    np.testing.assert_array_equal(found, (values >> (depth - 8)).transpose(2, 0, 1))


@pytest.mark.parametrize(("color_type", "channels"), [(4, 2), (6, 4)])
def test_png_of_16_bits_with_alpha_keeps_the_upper_8_bits(color_type, channels):
    values = np.random.default_rng(5).integers(0, 2**16, (9, 13, channels))
    upper = Image.fromarray((values >> 8).astype(np.uint8), mode="LA" if channels == 2 else "RGBA")
    found = decode(hand_made_png(values, depth=16, color_type=color_type), config(3, 9, 13))
    np.testing.assert_array_equal(found, decode(saved(upper, "PNG"), config(3, 9, 13)))


def test_the_transparent_gray_of_a_16_bit_png():
    values = np.array([[[1000], [1001], [65535]]])
    data = hand_made_png(values, depth=16, color_type=0, chunks=[png_chunk(b"tRNS", struct.pack(">H", 1001))])
    assert decode(data, config(1, 1, 3, background="white")).tolist() == [[[3, 255, 255]]]
    assert decode(data, config(1, 1, 3, background="black")).tolist() == [[[3, 0, 255]]]


def test_12_bit_tiff_keeps_its_upper_8_bits():
    values = [0x000, 0xABC, 0xFFF, 0x123]
    data = bytes.fromhex("".join(f"{value:03x}" for value in values))
    found = decode(hand_made_tiff(4, 1, data, t258=12), config(1, 1, 4))
    assert found.tolist() == [[[value >> 4 for value in values]]]


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_16_bit_tiff_of_either_polarity(white_is_zero):
    values = np.array([0, 1000, 65535], "<u2")
    found = decode(hand_made_tiff(3, 1, values.tobytes(), t258=16, t262=int(not white_is_zero)), config(1, 1, 3))
    upper = [0, 3, 255]
    assert found.tolist() == [[[255 - value for value in upper] if white_is_zero else upper]]


WRONG_MODES = {
    "F": saved(Image.fromarray(np.random.default_rng(1).random((HEIGHT, WIDTH)).astype(np.float32)), "TIFF"),
    "I": saved(Image.fromarray(np.random.default_rng(1).integers(0, 9, (HEIGHT, WIDTH)).astype(np.int32)), "TIFF"),
    "LAB": saved(random_image("LAB"), "TIFF"),
}


@pytest.mark.parametrize("mode", WRONG_MODES)
def test_numbers_without_a_known_range_are_of_a_wrong_mode(mode):
    refusal = rejection(WRONG_MODES[mode])
    assert refusal.reason == "wrong_mode"
    assert refusal.detail == f"a TIFF of mode {mode}; 8 or 16 unsigned bits a channel are wanted"


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_obeyed_once(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    plain = decode(saved(random_image(), kind, **options), config()).transpose(1, 2, 0)
    upright = ORIENTED[orientation](plain)
    height, width = upright.shape[:2]
    found = decode_image(saved(random_image(), kind, exif=exif, **options), config(height=height, width=width))
    np.testing.assert_array_equal(found.pixels_CHW, upright.transpose(2, 0, 1))
    assert (found.width_px, found.height_px) == (width, height)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(saved(random_image(), "PNG", exif=exif), config()), as_chw(random_image()))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_broken_exif_block_is_no_reason_to_reject(exif, kind):
    plain = decode(saved(random_image(), kind), config())
    np.testing.assert_array_equal(decode(saved(random_image(), kind, exif=exif), config()), plain)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_is_taken_and_more_are_told_of(kind):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    alone = decode_image(saved(frames[0], kind, **options), config())
    first = decode_image(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options), config())
    assert (alone.has_more_frames, first.has_more_frames) == (False, True)
    np.testing.assert_array_equal(first.pixels_CHW, alone.pixels_CHW)
    np.testing.assert_allclose(first.pixels_CHW, as_chw(frames[0]), atol=2)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", *LOSSLESS])
def test_the_file_s_own_size_and_format_are_told(kind):
    found = decode_image(saved(random_image(height=40, width=70), kind), config(resize="stretch"))
    assert (found.width_px, found.height_px, found.has_more_frames, found.format) == (70, 40, False, kind)
    assert found.pixels_CHW.shape == (3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(
        found.pixels_CHW, decode(saved(random_image(height=40, width=70), kind), config(resize="stretch"))
    )


def test_every_suffix_of_a_format_that_is_read_is_taken():
    Image.init()
    of_formats = {suffix for suffix, kind in Image.EXTENSION.items() if kind in {*FORMATS, "MPO"}}
    assert of_formats - SUFFIXES == {".pfm"}, "floats, whose range no one knows"
    assert of_formats >= SUFFIXES


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_png_is_undone_by_decode(channels):
    pixels_CHW = random_pixels(channels=channels).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(encode_png(pixels_CHW), config(channels)), pixels_CHW)
