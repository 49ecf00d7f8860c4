"""Settings of images and splits, and what all settings share. Imports no torch.

Each field's docstring gives its meaning and unit; Airflow's trigger form and the JSON schema show it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]

MAX_EXAMPLE_BYTES = 64 * 2**20


class Settings(BaseModel):
    """Base of every config: unknown keys are errors, values never change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ImageConfig(Settings):
    """The fixed shape that every image gets, and how it gets it."""

    height_px: Annotated[int, Field(ge=1, le=4096)] = 28
    """Height of every example, in pixels."""
    width_px: Annotated[int, Field(ge=1, le=4096)] = 28
    """Width of every example, in pixels."""
    channels: Literal[1, 3] = 1
    """Channels of every example: 1 (grey) or 3 (RGB)."""
    resize: Literal["stretch", "fit", "centre_crop", "none"] = "stretch"
    """How an image of another size fits: stretch, fit (pad with black), centre_crop, or none (reject it)."""
    max_pixels: Annotated[int, Field(ge=1, le=2**31)] = 64_000_000
    """Larger images (width x height, pixels, from the file's header) are rejected before they are decoded."""

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
    """Shares of the three splits. An image keeps its split for ever, and its copies share it."""

    method: Literal["random", "stratified"] = "random"
    """random: by the hash of an image's bytes (or of its group); stratified: the shares hold within each class."""
    train: Fraction = 0.8
    """Share of the images to train on."""
    validation: Fraction = 0.1
    """Share of the images to choose the best epoch with."""
    test: Fraction = 0.1
    """Share of the images for the final figures."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Another seed deals the images to other splits."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + validation + test is {total:g} and must be 1")
        if self.train == 0:
            raise ValueError("train is 0: nothing would be left to train on")
        return self
