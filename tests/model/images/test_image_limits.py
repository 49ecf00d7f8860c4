"""Limits of the decoder: pixels, sides, time, and the memory that a hostile file can take."""

from __future__ import annotations

import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from shardmean.model.errors import ImageRejectedError
from shardmean.model.images.decoder import decode
from shardmean.model.images.jpeg import check_scans
from shardmean.model.images.time_limit import time_limit, unlimited
from tests.model.picture_files import (
    HEIGHT,
    WIDTH,
    config,
    hand_made_tiff,
    png_chunk,
    png_header,
    random_image,
    rejection,
    saved,
)


def test_a_decompression_bomb_is_too_large():
    data = png_header(60_000, 60_000)
    assert len(data) < 100
    assert rejection(data).reason == "too_large"


def test_too_large_says_size_and_limit():
    refusal = rejection(png_header(2000, 1000), max_pixels=1_999_999)
    assert refusal.reason == "too_large"
    assert refusal.detail == "2000 x 1000 pixels, the limit image.max_pixels is 1999999"


def test_a_larger_file_than_allowed_says_both_sizes():
    data = saved(random_image(), "BMP")
    refusal = rejection(data, max_file_bytes=len(data) - 1)
    assert refusal.reason == "too_large"
    assert refusal.detail == f"a file of {len(data)} bytes, the limit image.max_file_bytes is {len(data) - 1}"
    assert decode(data, config(max_file_bytes=len(data))).shape == (3, HEIGHT, WIDTH)


def test_the_limit_is_the_configs_and_not_pillows():
    # 400 million pixels: over Pillow's own limit, under ours; the file is then cut short, and that is its fault.
    before = Image.MAX_IMAGE_PIXELS
    assert rejection(png_header(20_000, 20_000), max_pixels=2**31).reason == "unreadable"
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("width", "height"), [(7, 9), (9, 7)])
def test_too_small_says_size_and_limit(width, height):
    data = saved(random_image(height=height, width=width), "PNG")
    refusal = rejection(data, min_side_px=8, resize="stretch")
    assert refusal.reason == "too_small"
    assert refusal.detail == f"{width} x {height} pixels, image.min_side_px is 8"
    assert decode(data, config(min_side_px=7, resize="stretch")).shape == (3, HEIGHT, WIDTH)


def test_another_size_is_rejected_when_nothing_is_resized():
    refusal = rejection(saved(random_image(height=7), "PNG"))
    assert (refusal.reason, refusal.detail) == ("wrong_size", "10 x 7 pixels, resize is none and 10 x 6 are wanted")


def test_an_image_that_takes_too_long_is_too_slow():
    handler = signal.getsignal(signal.SIGALRM)
    data = saved(random_image("RGB", 400, 400), "PNG")
    refusal = rejection(data, decode_timeout_s=1e-6, resize="stretch")
    assert (refusal.reason, refusal.detail) == ("too_slow", "not decoded within image.decode_timeout_s = 1e-06 s")
    assert signal.getsignal(signal.SIGALRM) is handler


def test_an_alarm_that_others_set_goes_on():
    before, _ = signal.setitimer(signal.ITIMER_REAL, 200, 7)
    try:
        decode(saved(random_image(), "PNG"), config(resize="stretch"))
        left_s, interval_s = signal.getitimer(signal.ITIMER_REAL)
        assert 100 < left_s <= 200
        assert interval_s == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, before)


def test_threads_decode_without_a_time_limit():
    found, data = [], saved(random_image(), "JPEG")
    threads = [
        threading.Thread(target=lambda: found.append(decode(data, config(resize="stretch", decode_timeout_s=1e-6))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert Image.MAX_IMAGE_PIXELS


def test_the_clock_stands_still_where_nothing_may_be_broken_off():
    broken_off, ended = False, False
    try:
        with time_limit(0.2, InterruptedError):
            with unlimited():
                time.sleep(0.25)
                ended = True
            assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2, "the time that was left goes on"
            time.sleep(5)
    except InterruptedError:
        broken_off = True
    assert (ended, broken_off) == (True, True)


def test_without_a_limit_there_is_no_clock_to_go_on():
    before = signal.getitimer(signal.ITIMER_REAL)
    with unlimited():
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] <= before[0]


def test_the_first_image_of_a_worker_does_not_pay_for_loading_torch():
    """In a process of its own, since an import that was broken off would spoil torch for all tests after it."""
    program = """
import sys
from shardmean.model.config.image import ImageConfig
from shardmean.model.images.decoder import decode, encode_png
import numpy as np
data = encode_png(np.zeros((1, 40, 40), np.uint8))
assert "torch" not in sys.modules
for _ in range(2):
    decode(data, ImageConfig(decode_timeout_s=0.4))
assert "torch" in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


def scan_bomb() -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition costs the decoder a walk over the picture."""
    data = saved(random_image("RGB", 64, 64), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + 200 * data[last:-2] + data[-2:]


def empty_scans(num_scans: int) -> bytes:
    """A baseline JPEG, of 64 x 64 and few bytes: one code of no length says that a block is zero, again and again."""

    def segment(marker: int, data: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data

    one_code = bytes([1, *[0] * 15, 0])
    scans = [segment(0xDA, bytes([1, 1 + number % 3, 0, 0, 63, 0])) for number in range(num_scans)]
    parts = [
        b"\xff\xd8",
        segment(0xDB, b"\0" + b"\1" * 64),
        segment(0xC0, struct.pack(">BHHB", 8, 64, 64, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])),
        segment(0xC4, b"\x00" + one_code),
        segment(0xC4, b"\x10" + one_code),
        # They begin at even places and at odd ones.
        *(scan + bytes(16 + number % 2) for number, scan in enumerate(scans)),
    ]
    return b"".join([*parts, b"\xff\xd9"])


def test_a_baseline_jpeg_of_many_scans_is_rejected():
    assert decode(empty_scans(3), config(resize="stretch")).shape == (3, HEIGHT, WIDTH)
    for num_scans in (101, 3000):
        assert "a JPEG of more than 100 scans" in rejection(empty_scans(num_scans), resize="stretch").detail


@pytest.mark.parametrize("progressive", [False, True])
def test_what_only_looks_like_scans_is_not_counted(progressive):
    """Behind the end of the image a camera may write what it likes, and before it a thumbnail or notes."""
    image = random_image("RGB", 40, 40)
    plain = saved(image, "JPEG", progressive=progressive)
    wanted = decode(plain, config(resize="stretch"))
    noted = plain[:2] + b"\xff\xec\x03\xea" + 500 * b"\xff\xda" + plain[2:]
    for data in (plain + 500 * b"\xff\xda", noted):
        assert (decode(data, config(resize="stretch")) == wanted).all()


@given(st.binary(max_size=20), st.sampled_from([b"\xff", b"\xff\xda", b"\xff\xff\x01", b"\xff\xe0\0\0"]))
def test_any_bytes_are_walked_to_their_end_in_little_time(data, filling):
    started = time.monotonic()
    with suppress(ImageRejectedError):
        check_scans(data + filling * 10_000 + data + 101 * b"\xff\xda")
    assert time.monotonic() - started < 2


def test_a_png_may_hold_long_texts():
    """An editor's notes of 10 MB, packed, say nothing against the picture."""
    note = png_chunk(b"zTXt", b"notes\0\0" + zlib.compress(bytes(10 * 2**20), 1))
    plain = saved(random_image(), "PNG")
    before = PngImagePlugin.MAX_TEXT_CHUNK
    assert (decode(plain[:33] + note + plain[33:], config()) == decode(plain, config())).all()
    assert before == PngImagePlugin.MAX_TEXT_CHUNK, "put back for others"


TEXT = b"key\0\0" + zlib.compress(bytes(200 * 2**20), 9)
BOMBS = {
    "text": (png_header(1000, 1000, png_chunk(b"zTXt", TEXT)), "unreadable"),
    "many texts": (
        png_header(100, 100, *[png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2**20 - 9), 9))] * 200),
        "unreadable",
    ),
    "color profile": (png_header(1000, 1000, png_chunk(b"iCCP", TEXT)), "unreadable"),
    "screen": (
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + saved(random_image("L"), "GIF")[13:],
        "too_large",
    ),
    "frame": (
        b"GIF89a"
        + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
        + b"\2\2L\1\0;",
        "too_large",
    ),
    "tile": (hand_made_tiff(8, 8, b"", t322=60_000, t323=60_000, t324=8, t325=9), "too_large"),
    "strip": (hand_made_tiff(60_000, 60_000, b"x"), "too_large"),
    "samples": (hand_made_tiff(8, 8, b"x", t277=65_535), "unreadable"),
    "scans": (scan_bomb(), "unreadable"),
    "empty scans": (empty_scans(3000), "unreadable"),
    "pgm": (b"P5 60000 60000 255\n", "too_large"),
    "ppm": (b"P6 " + 10_000_000 * b"9", "unreadable"),
    "bmp": (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "too_large",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_rejected_without_its_memory(name, tmp_path):
    data, reason = BOMBS[name]
    (tmp_path / "bomb").write_bytes(data)
    program = """
import resource, sys
from shardmean.model.config.image import ImageConfig
from shardmean.model.images.decoder import ImageRejectedError, decode
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(data, ImageConfig())
    print("decoded")
except ImageRejectedError as refusal:
    print(refusal.reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "bomb")], capture_output=True, text=True, check=True, timeout=60
    )
    found, grown_mib = ran.stdout.split()
    assert (found, ran.stderr) == (reason, "")
    assert int(grown_mib) < 150
    assert [file.name for file in tmp_path.iterdir()] == ["bomb"]
