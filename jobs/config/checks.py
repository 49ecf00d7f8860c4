"""Limits that a new version of a DataSet must keep before it is published. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shardmean.model.config.base import Fraction, Settings


class ChecksConfig(Settings):
    """What a candidate is held against: itself, and the version that is published."""

    min_images_per_class: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Fewest examples that each class has, over all splits; 0: any number."""
    max_class_share_change: Fraction = 1.0
    """Largest change of a class's share of all examples against the published version; 1: any."""
    max_rejected_growth: Fraction = 1.0
    """Largest growth of the rejected images' share against the published version; 1: any."""
    min_size_ratio: Fraction = 0.0
    """Smallest number of examples, as a share of the published version's; 0: any."""
