"""Settings of augmentation: random changes of training images. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from ..errors import UserError
from .base import Fraction, Settings

if TYPE_CHECKING:
    from .image import ImageConfig

_FULL = {"crop_area_min": 1.0, "crop_aspect_max": 1.0, "scale_min": 1.0, "scale_max": 1.0}
_GEOMETRY = ("rotate_degrees", "translate_fraction", "translate_px", "shear_degrees", "warp_fraction")
_RGB_ONLY = ("saturation", "hue", "grayscale")


class AugmentationConfig(Settings):
    """Random changes of training images, in the order of the fields; never in evaluation. All are off by default.

    How an example is changed depends only on the seed, the epoch and the example's id.
    """

    probability: Fraction = 1.0
    """Share of the examples that are changed at all, drawn again each epoch."""
    flip_horizontal: Fraction = 0.0
    """Probability of exchanging left and right."""
    flip_vertical: Fraction = 0.0
    """Probability of exchanging top and bottom."""
    crop_area_min: Annotated[float, Field(ge=0.01, le=1)] = 1.0
    """Smallest share of the image's area that a random crop keeps before it is resized to full; 1: no such crop."""
    crop_aspect_max: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Largest change of the crop's aspect ratio, in both directions; 1: none."""
    scale_min: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    """Smallest factor of size, about the center."""
    scale_max: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    """Largest factor of size, about the center."""
    shear_degrees: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Largest slant of the vertical edges, to both sides, in degrees."""
    rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation about the center, in either direction, in degrees."""
    translate_fraction: Fraction = 0.0
    """Largest shift along each axis, in either direction, as a share of the image's size."""
    translate_px: Annotated[int, Field(ge=0, le=4096)] = 0
    """Largest shift along each axis in whole pixels, in either direction: a random crop after padding by so many."""
    warp_fraction: Annotated[float, Field(ge=0, le=0.4)] = 0.0
    """Largest move of each corner along each axis (perspective), as a share of half the image's size."""
    border: Literal["black", "edge", "reflect"] = "black"
    """What fills pixels that lie outside the image: black, the pixels of its edge, or its mirror image."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma_px: Annotated[float, Field(ge=0.1, le=20)] = 1.5
    """Largest standard deviation of the blur, in pixels; the smallest is 0.1."""
    brightness: Fraction = 0.0
    """Brightness jitter x: pixels are multiplied by a random factor from 1 - x to 1 + x."""
    contrast: Fraction = 0.0
    """Contrast jitter x: each pixel's distance from the image's mean gray is multiplied by 1 - x to 1 + x."""
    saturation: Fraction = 0.0
    """Saturation jitter x: each color's distance from gray is multiplied by 1 - x to 1 + x; RGB only."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift of the hue, in either direction, as a share of the full circle; RGB only."""
    grayscale: Fraction = 0.0
    """Probability of converting to grayscale; RGB only."""
    equalize: Fraction = 0.0
    """Probability of spreading each channel's values evenly from 0 to 255."""
    erase: Fraction = 0.0
    """Probability of covering a random rectangle with the DataSet's mean color."""
    erase_area_max: Annotated[float, Field(ge=0.02, le=1)] = 0.33
    """Largest share of the image that is covered; the smallest is 0.02."""

    @model_validator(mode="after")
    def _scales_are_in_order(self) -> Self:
        if self.scale_min > self.scale_max:
            raise ValueError(f"scale_min is {self.scale_min:g} and must be at most scale_max, {self.scale_max:g}")
        return self

    @property
    def moves_pixels(self) -> bool:
        """Whether images are resampled: any geometric change but a flip."""
        moves = any(getattr(self, name) for name in _GEOMETRY)
        return moves or any(getattr(self, name) != full for name, full in _FULL.items())

    @property
    def changes_values(self) -> bool:
        """Whether pixel values change: any change that is not geometric."""
        names = ("blur", "brightness", "contrast", *_RGB_ONLY, "equalize", "erase")
        return any(getattr(self, name) for name in names)

    @property
    def is_on(self) -> bool:
        """Whether any image is ever changed."""
        flips = self.flip_horizontal or self.flip_vertical
        return bool(self.probability and (flips or self.moves_pixels or self.changes_values))

    def check(self, image: ImageConfig) -> None:
        """Raise UserError for a change of color where images are gray."""
        asked = [f"augmentation.{name} = {getattr(self, name):g}" for name in _RGB_ONLY if getattr(self, name)]
        if asked and image.channels != 3:
            raise UserError(
                f"{', '.join(asked)}: images of {image.channels} channel have no colors to change; "
                "set it to 0, or vectorize with image.channels=3"
            )
