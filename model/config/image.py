"""Settings of images and splits. Imports no torch.

Each field's docstring gives its meaning and unit; Airflow's trigger form and the JSON schema show it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .base import Fraction, Settings
from .former_names import current_name

MAX_EXAMPLE_BYTES = 64 * 2**20
NAMED_COLORS = {"black": "#000000", "gray": "#808080", "white": "#ffffff"}


def _parse_color(value: object) -> str:
    """The same text for the same color, so that a form can hold it and equal settings compare equal."""
    value = current_name(value)
    if isinstance(value, str) and (value in NAMED_COLORS or re.fullmatch(r"#[0-9a-fA-F]{6}", value)):
        return value.lower()
    if isinstance(value, list | tuple) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value):
        return "#{:02x}{:02x}{:02x}".format(*value)
    raise ValueError(f"a color is {', '.join(NAMED_COLORS)}, #rrggbb, or three whole numbers from 0 to 255")


Color = Annotated[str, BeforeValidator(_parse_color)]


def rgb_of(color: Color) -> tuple[int, int, int]:
    """Red, green and blue of a setting, each 0 to 255."""
    red, green, blue = bytes.fromhex(NAMED_COLORS.get(color, color)[1:])
    return red, green, blue


class ImageConfig(Settings):
    """The fixed shape that every image gets, and how it gets it."""

    height_px: Annotated[int, Field(ge=1, le=4096)] = 28
    """Height of every example, in pixels."""
    width_px: Annotated[int, Field(ge=1, le=4096)] = 28
    """Width of every example, in pixels."""
    channels: Literal[1, 3] = 1
    """Channels of every example: 1 (gray) or 3 (RGB)."""
    resize: Annotated[Literal["stretch", "fit", "center_crop", "none"], BeforeValidator(current_name)] = "stretch"
    """How an image of another size fits: stretch, fit (pad), center_crop, or none (reject it)."""
    background: Color = "white"
    """What shows through transparent parts: black, gray, white, #rrggbb, or three numbers from 0 to 255."""
    padding: Color = "black"
    """Color of the bars that resize=fit leaves around an image; written as background is."""
    max_pixels: Annotated[int, Field(ge=1, le=2**31)] = 64_000_000
    """Larger images (width x height, pixels, from the file's header) are rejected before they are decoded."""
    max_file_bytes: Annotated[int, Field(ge=1, le=2**40)] = 256 * 2**20
    """Larger image files, in bytes, are rejected before they are read."""
    min_side_px: Annotated[int, Field(ge=1, le=4096)] = 1
    """Images whose width or height is smaller, in pixels, are rejected."""
    decode_timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 30
    """An image that takes longer to decode, in seconds, is rejected."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an example."""
        return self.channels, self.height_px, self.width_px

    @property
    def example_bytes(self) -> int:
        """Bytes of one example: uint8, one byte a value."""
        return self.channels * self.height_px * self.width_px

    @model_validator(mode="after")
    def _fits_in_memory(self) -> Self:
        if self.example_bytes > MAX_EXAMPLE_BYTES:
            raise ValueError(f"one example would be {self.example_bytes} bytes, over the limit of {MAX_EXAMPLE_BYTES}")
        return self


class SplitConfig(Settings):
    """Shares of the three splits. An image keeps its split in later versions, and its copies share it.

    With `stratified`, one that is not in the source for a version may get another split when it comes back.
    """

    method: Literal["random", "stratified"] = "random"
    """random: by the hash of an image's bytes (or of its group); stratified: the shares hold within each class."""
    train: Fraction = 0.8
    """Share of the images to train on."""
    validation: Fraction = 0.1
    """Share of the images to choose the best epoch with."""
    test: Fraction = 0.1
    """Share of the images for the final metrics."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the assignment to splits."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g} and must be 1")
        if self.train == 0:
            raise ValueError("train is 0: nothing would be left to train on")
        return self
