"""The one decoder: bytes of an image file to uint8 pixels of a fixed shape, for ETL, scoring and serving alike."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from ..errors import ImageRejectedError
from .color import to_pixels
from .jpeg import check_scans, jpeg_pixels, reduction
from .pillow_limits import pillow_limits_lifted
from .resize import paste, placement
from .time_limit import time_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from ..config.image import ImageConfig

T = TypeVar("T")
# Pillow can open more, but some of those run other programs (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm",
})  # fmt: skip
MAX_DETAIL = 200
ORIENTATION = 0x0112
TILE_WIDTH, TILE_HEIGHT = 322, 323


@dataclass(frozen=True)
class Decoded:
    """An example's pixels, uint8 of shape (channels, height, width), and what the file was.

    `width_px` and `height_px` are the picture's own, upright. With `has_more_frames` it was the first page or frame.
    """

    pixels_CHW: NDArray[np.uint8]
    width_px: int
    height_px: int
    has_more_frames: bool
    format: str


def decode(data: bytes, config: ImageConfig) -> NDArray[np.uint8]:
    """The pixels of an image file: uint8 of shape (channels, height_px, width_px). Raises as `decode_image` does."""
    return decode_image(data, config).pixels_CHW


def decode_image(data: bytes, config: ImageConfig) -> Decoded:
    """Decode, orient, convert and resize one image; docs/decoding.md says how.

    `data` is a whole image file. Raises ImageRejectedError with one of the reasons empty, unreadable, too_large,
    too_small, wrong_mode, wrong_size, too_slow, and nothing else.
    """
    if not data:
        raise ImageRejectedError("empty", "the file has 0 bytes")
    check_file_bytes(len(data), config)
    try:
        with warnings.catch_warnings(), pillow_limits_lifted():
            warnings.simplefilter("ignore")
            Image.init()  # loads Pillow's plugins, once: the clock must not ring inside an import
            too_slow = f"not decoded within image.decode_timeout_s = {config.decode_timeout_s:g} s"
            with time_limit(config.decode_timeout_s, lambda: ImageRejectedError("too_slow", too_slow)):
                return _decode(data, config)
    except ImageRejectedError as error:
        raise ImageRejectedError(error.reason, printable(error.detail)) from error.__cause__
    except Exception as error:  # a hostile file can make a decoder raise anything
        raise ImageRejectedError("unreadable", printable(f"{type(error).__name__}: {error}")) from error


def check_file_bytes(num_bytes: int, config: ImageConfig) -> None:
    """Raise ImageRejectedError, too_large, for a file of so many bytes; ask before reading where the size is known."""
    if num_bytes > config.max_file_bytes:
        detail = f"a file of {num_bytes} bytes, the limit image.max_file_bytes is {config.max_file_bytes}"
        raise ImageRejectedError("too_large", detail)


def _decode(data: bytes, config: ImageConfig) -> Decoded:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image, config)
        is_jpeg = image.format in ("JPEG", "MPO")  # MPO: a JPEG with more behind it, as many cameras write it
        if not is_jpeg:
            image.load()  # before its orientation, which may be at the file's end; TIFF turns itself upright
        orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        where, factor = placement(width, height, config), 1
        pixels_HWC = None
        if is_jpeg:
            check_scans(data)
            left, top, right, bottom = where.box
            factor = reduction(right - left, bottom - top, where.width_px, where.height_px)
            pixels_HWC = jpeg_pixels(data, image, channels=config.channels, factor=factor)
        if pixels_HWC is None:
            if is_jpeg and config.channels == 1 and image.mode == "RGB":
                image.draft("L", image.size)  # the file's own brightness, as above
            image.load()
            pixels_HWC, factor = to_pixels(image, config), 1
        where = replace(where, box=_reduced(where.box, width, height, orientation, factor))
        example_CHW = paste(_upright(pixels_HWC, orientation), where, config)
        # Where it can't be told, the first frame is whole, and what follows it is not.
        has_more_frames = _read_or(True, lambda: bool(getattr(image, "is_animated", False)))
        return Decoded(example_CHW, width, height, has_more_frames, image.format or "")


def _check_size(image: Image.Image, config: ImageConfig) -> None:
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    tile_width, tile_height = tags.get(TILE_WIDTH, 1), tags.get(TILE_HEIGHT, 1)
    for what, w, h in (("", width, height), ("tiles of ", tile_width, tile_height)):
        if w * h > config.max_pixels:
            detail = f"{what}{w} x {h} pixels, the limit image.max_pixels is {config.max_pixels}"
            raise ImageRejectedError("too_large", detail)
    if min(width, height) < config.min_side_px:
        detail = f"{width} x {height} pixels, image.min_side_px is {config.min_side_px}"
        raise ImageRejectedError("too_small", detail)


def _orientation(image: Image.Image) -> int:
    # A broken EXIF block says nothing about the picture.
    orientation = _read_or(1, lambda: image.getexif().get(ORIENTATION, 1))
    return orientation if orientation in range(1, 9) else 1


def _reduced(
    box: tuple[float, float, float, float], width: int, height: int, orientation: int, factor: int
) -> tuple[float, float, float, float]:
    """The box of an upright picture of this size in one that was decoded `factor` times smaller, then turned upright.

    The smaller one is rounded up at the file's right and bottom; where the orientation brings that part of a pixel to
    the left or the top, the picture begins after it.
    """
    is_mirrored, is_flipped = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    beyond_x = (-(-width // factor) - width / factor) * is_mirrored
    beyond_y = (-(-height // factor) - height / factor) * is_flipped
    left, top, right, bottom = (edge / factor for edge in box)
    return left + beyond_x, top + beyond_y, right + beyond_x, bottom + beyond_y


def _upright(pixels_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation: 5 to 8 exchange rows and columns first; then left and right, top and bottom."""
    if orientation >= 5:
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels_HWC[rows, columns]


def _read_or(default: T, read: Callable[[], T]) -> T:
    """What a part of a file says, or `default` where that part is broken."""
    try:
        return read()
    except ImageRejectedError:  # the time limit
        raise
    except Exception:
        return default


def printable(detail: str) -> str:
    """An error's text as one line, the same in each run: a file can put anything into it."""
    detail = re.sub(r" ?<_io\.BytesIO object at \w+>", "", detail)
    return "".join(c if c.isprintable() else " " for c in detail[: 2 * MAX_DETAIL])[:MAX_DETAIL]


def encode_png(pixels_CHW: NDArray[np.uint8]) -> bytes:
    """Pixels, uint8 of shape (channels, height, width), as the bytes of a PNG file."""
    pixels = pixels_CHW[0] if len(pixels_CHW) == 1 else np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
