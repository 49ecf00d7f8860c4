"""Broken and hostile files: pixels of the right shape or a known reason, in little time, memory and noise."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardmean.model.errors import ImageRejectedError
from shardmean.model.images.decoder import decode, decode_image
from tests.model.picture_files import (
    HEIGHT,
    LOSSLESS,
    WIDTH,
    config,
    hand_made_tiff,
    random_image,
    rejection,
    saved,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

REASONS = {"empty", "unreadable", "too_large", "wrong_mode"}
TWO_FRAMES = {"save_all": True, "append_images": [random_image("L", 20, 30)]}
CORPUS = {
    **{kind: saved(random_image("RGB", 20, 30), kind) for kind in ("JPEG", "WEBP", "GIF", *LOSSLESS)},
    "gray JPEG": saved(random_image("L", 20, 30), "JPEG"),
    "progressive JPEG": saved(random_image("RGB", 20, 30), "JPEG", progressive=True),
    "JPEG with restarts": saved(random_image("RGB", 20, 30), "JPEG", restart_marker_blocks=1),
    "CMYK JPEG": saved(random_image("CMYK", 20, 30), "JPEG"),
    "PNG with alpha": saved(random_image("RGBA", 20, 30), "PNG"),
    "PNG of a palette": saved(random_image("P", 20, 30), "PNG"),
    "PNG with frames": saved(random_image("L", 20, 30), "PNG", **TWO_FRAMES),
    "lossless WebP": saved(random_image("RGBA", 20, 30), "WEBP", lossless=True),
    "WebP with frames": saved(random_image("RGB", 20, 30), "WEBP", **TWO_FRAMES),
    "GIF with frames": saved(random_image("P", 20, 30), "GIF", **TWO_FRAMES),
    "TIFF with pages": saved(random_image("L", 20, 30), "TIFF", **TWO_FRAMES),
    "bilevel TIFF": saved(random_image("1", 20, 30), "TIFF", compression="group4"),
    "bilevel PBM": saved(random_image("1", 20, 30), "PPM"),
    **{
        f"TIFF, {name}": saved(random_image("RGB", 20, 30), "TIFF", compression=name)
        for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    },
}


def outcome(data: bytes, channels: int = 3) -> NDArray[np.uint8] | ImageRejectedError:
    """The pixels or the refusal; any other error, a wrong shape or an unknown reason fails the test."""
    try:
        found = decode(data, config(channels, resize="stretch", max_pixels=100_000))
    except ImageRejectedError as refusal:
        found = refusal
    if isinstance(found, ImageRejectedError):
        assert found.reason in REASONS
        assert 0 < len(found.detail) <= 200
        assert found.detail.isprintable()
    else:
        assert (found.shape, found.dtype) == ((channels, HEIGHT, WIDTH), np.uint8)
    return found


@pytest.mark.parametrize("name", CORPUS)
def test_a_file_cut_anywhere_is_rejected_or_has_lost_no_pixel(name):
    data = CORPUS[name]
    whole = outcome(data)
    assert not isinstance(whole, ImageRejectedError)
    step = max(1, len(data) // 300)
    for length in sorted({*range(0, len(data), step), *range(max(0, len(data) - 40), len(data))}):
        found = outcome(data[:length])
        assert isinstance(found, ImageRejectedError) or (found == whole).all(), f"cut to {length} of {len(data)} bytes"


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "gray JPEG", "CMYK JPEG", "JPEG with restarts"])
def test_no_jpeg_loses_its_second_half_in_silence(kind):
    """Many decoders paint what is missing gray. Here the end marker stands after the cut, as if nothing were amiss."""
    data = CORPUS[kind]
    cut = outcome(data[: len(data) * 2 // 3] + b"\xff\xd9")
    assert isinstance(cut, ImageRejectedError)
    assert cut.reason == "unreadable"


@pytest.mark.parametrize("name", CORPUS)
def test_changed_bytes_decode_or_are_rejected(name):
    draw, data = random.Random(name), CORPUS[name]
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            # Half of them where headers and tables are.
            damaged[draw.randrange(min(200, len(data)) if draw.random() < 0.5 else len(data))] = draw.randrange(256)
        outcome(bytes(damaged), draw.choice([1, 3]))


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


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(HEADS), st.binary(max_size=200), st.sampled_from([1, 3]))
def test_random_bytes_decode_or_are_rejected(head, data, channels):
    outcome(head + data, channels)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(CORPUS)), st.data())
def test_damaged_files_decode_or_are_rejected(name, data):
    damaged = bytearray(CORPUS[name])
    for bit in data.draw(st.lists(st.integers(0, 8 * len(damaged) - 1), max_size=8)):
        damaged[bit // 8] ^= 1 << bit % 8
    keep = data.draw(st.integers(0, len(damaged)))
    outcome(bytes(damaged[:keep]), data.draw(st.sampled_from([1, 3])))


def test_an_empty_file_is_rejected():
    refusal = rejection(b"")
    assert (refusal.reason, refusal.detail) == ("empty", "the file has 0 bytes")


@pytest.mark.parametrize(
    "data", [b"hello, I am text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\0\1"]
)
def test_what_is_no_image_is_unreadable(data):
    refusal = rejection(data)
    assert refusal.reason == "unreadable"
    assert "cannot identify image file" in refusal.detail


def test_the_detail_says_the_same_each_time():
    details = {rejection(b"text" * 10).detail for _ in range(3)}
    assert len(details) == 1
    assert "0x" not in details.pop(), "an address in memory tells the reader nothing"


def test_a_file_cannot_write_lines_into_the_log(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("a name of the file:\r\n\x1b[2JERROR all is lost " + 1000 * "x")

    monkeypatch.setattr(Image, "open", refuse)
    refusal = rejection(b"x")
    assert refusal.detail.startswith("ValueError: a name of the file:   [2JERROR all is lost")
    assert refusal.detail.isprintable()
    assert len(refusal.detail) == 200


@pytest.mark.parametrize("next_ifd", [8, 4, 2**31])
def test_pages_that_lead_in_a_circle_end(next_ifd):
    pixels = random_image("L")
    found = decode_image(hand_made_tiff(WIDTH, HEIGHT, pixels.tobytes(), next_ifd), config(1))
    np.testing.assert_array_equal(found.pixels_CHW[0], np.asarray(pixels))


@pytest.mark.parametrize("is_tiff", [False, True])
def test_nothing_of_a_broken_file_reaches_stderr(tmp_path, is_tiff):
    """In a process of its own: pytest's handlers take what Python would print of a log without any.

    But for what libtiff, a C library, prints of a damaged TIFF: the name of its function, and what is wrong.
    """
    for number, (name, data) in enumerate(CORPUS.items()):
        if ("TIFF" in name) != is_tiff:
            continue
        draw = random.Random(name)
        for repeat in range(12):
            damaged = bytearray(data[: draw.randrange(len(data) // 2, len(data))] if repeat % 2 else data)
            for _ in range(3):
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            (tmp_path / f"{number:02}-{repeat}").write_bytes(damaged)
    program = """
import sys
from pathlib import Path
from shardmean.model.config.image import ImageConfig
from shardmean.model.images.decoder import ImageRejectedError, decode
for file in Path(sys.argv[1]).iterdir():
    try:
        decode(file.read_bytes(), ImageConfig(max_pixels=100_000))
    except ImageRejectedError:
        pass
"""
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = [line for line in ran.stderr.splitlines() if not (is_tiff and re.match(r"[\w.]+: \w", line))]
    assert (ran.stdout, lines) == ("", [])
