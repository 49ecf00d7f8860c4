"""Image files for tests of the decoder: made by Pillow, or by hand where Pillow writes no such file."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from shardmean.model.config.image import ImageConfig
from shardmean.model.errors import ImageRejectedError
from shardmean.model.images.decoder import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEIGHT, WIDTH = 6, 10
LOSSLESS = ["PNG", "BMP", "DIB", "TIFF", "PPM"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
# What a viewer does to the pixels of a file with each EXIF orientation.
ORIENTED = {
    1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud,
    5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: lambda p: np.rot90(p, 1),
}  # fmt: skip


def random_pixels(height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)


def random_image(mode: str = "RGB", height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    if mode == "1":
        return Image.fromarray(random_pixels(height, width)[..., 0] > 127)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = random_pixels(height, width, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode=mode)
    if mode == "P":
        image.putpalette(np.random.default_rng(4).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


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


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG whose header claims a size and whose data is next to nothing."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"".join([PNG_SIGNATURE, header, *chunks, png_chunk(b"IDAT", zlib.compress(b"\0")), png_chunk(b"IEND", b"")])


def hand_made_png(
    values_HWC: NDArray[Any],
    *,
    depth: int,
    color_type: int,
    chunks: list[bytes] | None = None,
    interlaced: bool = False,
) -> bytes:
    """A PNG of any depth, after the specification of the W3C; `chunks` stand between header and data."""
    height, width = values_HWC.shape[:2]
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    rows = [
        b"\0" + _packed(row, depth)
        for top, left, down, right in passes
        for row in values_HWC[top::down, left::right]
        if row.size
    ]
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    data = png_chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"".join([PNG_SIGNATURE, png_chunk(b"IHDR", header), *(chunks or []), data, png_chunk(b"IEND", b"")])


def _packed(row: NDArray[Any], depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    bits = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - depth :]
    return np.packbits(bits).tobytes()


def hand_made_tiff(width: int, height: int, data: bytes, next_ifd: int = 0, **tags: int) -> bytes:
    """A gray TIFF of one strip; `tags` change its fields or add some, each named t and its number."""
    fields = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(data)}
    fields |= {int(name[1:]): value for name, value in tags.items()}
    start = 8 + 2 + 12 * len(fields) + 4
    fields[273] = start if fields.get(322) is None else fields.pop(273)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(fields.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + entries + struct.pack("<I", next_ifd) + data
