"""The one decoder: bytes of an image file to uint8 pixels of a fixed shape, for ETL, scoring and serving alike."""

from __future__ import annotations

import io
import re
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from .errors import ImageRejectedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .config import ImageConfig

# Pillow can open more, but some of those run other programs (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"})
BACKGROUND = (255, 255, 255)
_PILLOWS_LIMIT = threading.Lock()


def decode(data: bytes, config: ImageConfig) -> NDArray[np.uint8]:
    """Decode, orient, convert and resize one image.

    `data` is a whole image file; the result is uint8 of shape (channels, height_px, width_px). The first frame
    of an animation is taken, EXIF orientation is obeyed, transparent parts become white, 16-bit grey keeps its
    upper 8 bits, and resizing is bilinear with antialiasing.

    Raises ImageRejectedError with one of the reasons empty, unreadable, too_large, wrong_size.
    """
    if not data:
        raise ImageRejectedError("empty", "the file has 0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _pixels(data, config)
    except ImageRejectedError:
        raise
    except Exception as error:  # a hostile file can make a decoder raise anything
        detail = re.sub(r" ?<_io\.BytesIO object at \w+>", "", f"{type(error).__name__}: {error}")
        raise ImageRejectedError("unreadable", detail[:200]) from error


def _pixels(data: bytes, config: ImageConfig) -> NDArray[np.uint8]:
    with _open(data) as image:
        if image.width * image.height > config.max_pixels:
            raise ImageRejectedError(
                "too_large", f"{image.width} x {image.height} pixels, the limit image.max_pixels is {config.max_pixels}"
            )
        image.load()
        upright = ImageOps.exif_transpose(image)
    resized = _resize(_convert(upright, config.channels), config)
    pixels_HWC = np.asarray(resized, dtype=np.uint8).reshape(config.height_px, config.width_px, config.channels)
    return np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1))


def _open(data: bytes) -> Image.Image:
    # Pillow's own limit on pixels is a global; ours comes from the config and is checked by the caller.
    with _PILLOWS_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(canvas, rgba)
    return image.convert("L" if channels == 1 else "RGB")


def _resize(image: Image.Image, config: ImageConfig) -> Image.Image:
    size = (config.width_px, config.height_px)
    if image.size == size:
        return image
    match config.resize:
        case "stretch":
            return image.resize(size, Image.Resampling.BILINEAR)
        case "fit":
            return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=0)
        case "centre_crop":
            return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        case "none":
            found, wanted = f"{image.width} x {image.height}", f"{size[0]} x {size[1]}"
            raise ImageRejectedError("wrong_size", f"{found} pixels, resize is none and {wanted} are wanted")


def encode_png(pixels_CHW: NDArray[np.uint8]) -> bytes:
    """Pixels, uint8 of shape (channels, height, width), as the bytes of a PNG file."""
    pixels = pixels_CHW[0] if len(pixels_CHW) == 1 else np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
