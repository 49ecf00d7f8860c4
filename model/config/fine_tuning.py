"""Settings of fine-tuning: the pretrained model, its frozen parameters, and how images are normalized."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from ..storage.filesystem import absolute
from .base import Settings

REGISTERED = "models:/"
_MODEL = re.compile(r"models:/[^/@:]{1,250}(@[^/@:]{1,250}|/[0-9]{1,18})")


def _checked_uri(uri: str) -> str:
    if not uri.startswith("models:"):
        return absolute(uri)
    if not _MODEL.fullmatch(uri):
        raise ValueError("expected models:/NAME@ALIAS or models:/NAME/VERSION, such as models:/pets@champion")
    return uri


class FineTuningConfig(Settings):
    """The model that a training starts from, and which of its parameters stay as they are."""

    start_from: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_checked_uri)] | None = None
    """models:/NAME@ALIAS, models:/NAME/VERSION, or a checkpoint (file, or a run's folder); null: fresh parameters."""
    freeze: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=100)] = []
    """Parameters to freeze, by fnmatch patterns on their names, such as layer1.* (BatchNorm's statistics too)."""
    replace_head: bool = False
    """Initialize the last linear layer again, for other classes than those it was trained on."""

    @model_validator(mode="after")
    def _replaced_head_has_a_model(self) -> Self:
        if self.replace_head and self.start_from is None:
            raise ValueError("replace_head is true, but there is no start_from: give it, or leave replace_head out")
        return self


Means = Annotated[list[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]], Field(max_length=3)]


class NormalizationConfig(Settings):
    """Mean and standard deviation of each channel, of values divided by 255. Empty: the DataSet's own."""

    mean: Means = []
    """Mean to subtract, for each channel; empty: the DataSet's, or with start_from that model's."""
    std: Means = []
    """Standard deviation to divide by, for each channel; empty: as for mean."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one per channel to both")
        return self
