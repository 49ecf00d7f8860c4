"""Pixels of every mode that image files have, as grey or RGB of 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .config import rgb_of
from .errors import ImageRejectedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .config import ImageConfig

# The modes of Pillow with 8 bits a channel, or one bit, or a palette.
EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


def to_pixels(image: Image.Image, config: ImageConfig) -> NDArray[np.uint8]:
    """A loaded image as uint8 of shape (height, width, channels), transparent parts over `image.background`.

    Raises ImageRejectedError with the reason wrong_mode for numbers whose range no one knows: floats, 32 bits, Lab.
    """
    image = image if image.mode in EIGHT_BITS else _eight_bits(image)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*rgb_of(config.background), 255))
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    wanted = image.convert("L" if config.channels == 1 else "RGB")
    return np.asarray(wanted).reshape(image.height, image.width, config.channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    # 16 bits of PGM come as mode I, as do 32 bits of TIFF.
    if not image.mode.startswith("I;16") and (image.mode, image.format) != ("I", "PPM"):
        raise ImageRejectedError(
            "wrong_mode", f"a {image.format} of mode {image.mode}; 8 or 16 unsigned bits a channel are wanted"
        )
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(BITS_PER_SAMPLE, (16,))[0])  # TIFF has 12 bits too
    values = np.asarray(image)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts 8 bits, and these not
        values = 2**bits - 1 - values
    grey = Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
