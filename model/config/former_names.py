"""Names of values in the manifests and models that version 0.1.0 stored."""

from __future__ import annotations

FORMER_VALUES = {"grey": "gray", "centre_crop": "center_crop"}


def current_name(value: object) -> object:
    """A value by its name of today."""
    return FORMER_VALUES.get(value, value) if isinstance(value, str) else value
