"""Settings of fine-tuning: what a training starts from, what of it stays, and how images are normalized."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from ..storage.filesystem import absolute
from .base import Settings

REGISTERED = "models:/"
_MODEL = re.compile(r"models:/[^/@:]{1,250}(@[^/@:]{1,250}|/[0-9]{1,18})")


def _place(uri: str) -> str:
    if not uri.startswith("models:"):
        return absolute(uri)
    if not _MODEL.fullmatch(uri):
        raise ValueError("expected models:/NAME@ALIAS or models:/NAME/VERSION, such as models:/pets@champion")
    return uri


class FineTuningConfig(Settings):
    """What a training starts from, and what of it stays as it is."""

    start_from: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_place)] | None = None
    """models:/NAME@ALIAS, models:/NAME/VERSION, or a checkpoint (file, or a run's folder); null: fresh parameters."""
    freeze: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=100)] = []
    """Parameters to freeze, by fnmatch patterns on their names, such as layer1.* (BatchNorm's statistics too)."""
    replace_head: bool = False
    """Draw the last linear layer anew, for other classes than those it was trained on."""

    @model_validator(mode="after")
    def _a_head_is_there_to_replace(self) -> Self:
        if self.replace_head and self.start_from is None:
            raise ValueError("replace_head is true, but there is no start_from: give it, or leave replace_head out")
        return self


Means = Annotated[list[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]], Field(max_length=3)]


class NormalizationConfig(Settings):
    """How images are normalized, by channel, of values divided by 255. Empty: by the DataSet's own figures."""

    mean: Means = []
    """What is subtracted, for each channel; empty: the DataSet's, or with start_from that model's."""
    std: Means = []
    """What is divided by, for each channel; empty as mean."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one per channel to both")
        return self
