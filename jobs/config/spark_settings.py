"""Spark's own settings in a job's section `spark`: under their full names, or in levels, as dotted keys give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import BeforeValidator


def flattened(settings: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each setting by its full name: Spark's keys have dots, which a dotted key of ours turns into levels."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _checked(settings: object) -> dict[str, str]:
    if not isinstance(settings, Mapping):
        raise ValueError("expected Spark's keys with values, such as spark.executor.memory: 2g")
    texts = {}
    for key, value in flattened(settings):
        if not key.startswith("spark."):
            raise ValueError(f"{key} is no setting of Spark's, whose names begin with spark.: write spark.{key}")
        if value is not None and not isinstance(value, str | bool | int | float):
            raise ValueError(f"{key} is {value!r}: expected text, a number, true or false, or null to leave it out")
        if value is not None:
            texts[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return texts


SparkSettings = Annotated[dict[str, str], BeforeValidator(_checked)]
