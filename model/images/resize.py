"""Which part of an image an example of fixed shape shows, and antialiased resizing to put it there."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..config.image import ImageConfig, rgb_of
from ..errors import ImageRejectedError
from .time_limit import unlimited

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Placement:
    """The part of an image to show (left, top, right, bottom, in pixels, fractions too); its size and position."""

    box: tuple[float, float, float, float]
    width_px: int
    height_px: int
    left_px: int = 0
    top_px: int = 0


def placement(width_px: int, height_px: int, config: ImageConfig) -> Placement:
    """How `image.resize` shows an upright image of this size.

    Raises ImageRejectedError with the reason wrong_size where it may not be resized and would have to be.
    """
    wanted_width, wanted_height = config.width_px, config.height_px
    whole = (0, 0, width_px, height_px)
    match config.resize:
        case "fit":
            width = min(wanted_width, max(1, round(width_px / height_px * wanted_height)))
            height = min(wanted_height, max(1, round(height_px / width_px * wanted_width)))
            left_px, top_px = round((wanted_width - width) / 2), round((wanted_height - height) / 2)
            return Placement(whole, width, height, left_px, top_px)
        case "center_crop":
            # The largest box of the wanted shape; its center is the image's, at half a pixel where sizes are odd.
            box_width = min(width_px, height_px * wanted_width / wanted_height)
            box_height = min(height_px, width_px * wanted_height / wanted_width)
            left, top = (width_px - box_width) / 2, (height_px - box_height) / 2
            return Placement((left, top, left + box_width, top + box_height), wanted_width, wanted_height)
        case "none" if (width_px, height_px) != (wanted_width, wanted_height):
            found, wanted = f"{width_px} x {height_px}", f"{wanted_width} x {wanted_height}"
            raise ImageRejectedError("wrong_size", f"{found} pixels, resize is none and {wanted} are wanted")
    return Placement(whole, wanted_width, wanted_height)


def paste(pixels_HWC: NDArray[np.uint8], where: Placement, config: ImageConfig) -> NDArray[np.uint8]:
    """The example, uint8 of shape (channels, height, width), with the box of `pixels_HWC` where it belongs."""
    part_CHW = _resize(pixels_HWC, where)
    if part_CHW.shape == config.shape:
        return np.ascontiguousarray(part_CHW)
    red, green, blue = rgb_of(config.padding)
    # Gray as Pillow makes it of a color.
    color = [red, green, blue] if config.channels == 3 else [(red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16]
    example_CHW = np.empty(config.shape, np.uint8)
    example_CHW[:] = np.array(color, np.uint8)[:, None, None]
    rows = slice(where.top_px, where.top_px + where.height_px)
    columns = slice(where.left_px, where.left_px + where.width_px)
    example_CHW[:, rows, columns] = part_CHW
    return example_CHW


def _resize(pixels_HWC: NDArray[np.uint8], where: Placement) -> NDArray[np.uint8]:
    left, top, right, bottom = where.box
    first_column, first_row = floor(left), floor(top)
    part_HWC = pixels_HWC[first_row : ceil(bottom), first_column : ceil(right)]
    if not all(float(edge).is_integer() for edge in where.box):
        box = (left - first_column, top - first_row, right - first_column, bottom - first_row)
        return _resize_fraction(part_HWC, box, where)
    if part_HWC.shape[:2] == (where.height_px, where.width_px):
        return part_HWC.transpose(2, 0, 1)
    # Not above: what needs no resizing, digits of 28 x 28 say, does not wait for torch.
    with unlimited():  # it is no fault of the image, and an interrupted import spoils torch for the whole process
        from torch import from_numpy
        from torch.nn.functional import interpolate

    # Whole numbers and the same bits on each CPU; three times as fast as Pillow, and within 1 of it.
    pixels_1CHW = from_numpy(np.require(part_HWC, requirements=["C", "W"])).permute(2, 0, 1)[None]
    size = (where.height_px, where.width_px)
    resized_CHW: NDArray[np.uint8] = interpolate(pixels_1CHW, size, mode="bilinear", antialias=True)[0].numpy()
    return resized_CHW


def _resize_fraction(
    part_HWC: NDArray[np.uint8], box: tuple[float, float, float, float], where: Placement
) -> NDArray[np.uint8]:
    """Pillow, for a box that begins or ends inside a pixel: torch knows whole ones only."""
    image = Image.fromarray(part_HWC if part_HWC.shape[2] == 3 else part_HWC[..., 0])
    resized = image.resize((where.width_px, where.height_px), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized).reshape(where.height_px, where.width_px, -1).transpose(2, 0, 1)
