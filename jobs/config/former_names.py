"""Names of settings in version 0.1.0: accepted in this version, with a message; folders of runs keep their names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)
# Dotted keys, and keys with values.
CURRENT = {
    "normalisation": "normalization",
    "averaging.exchange": "averaging.comm_dtype",
    "image.resize=centre_crop": "image.resize=center_crop",
    "image.background=grey": "image.background=gray",
    "image.padding=grey": "image.padding=gray",
}
# Keys that are settings of other files now.
MOVED = {"schedule": "the DAG's schedule is airflow.schedule in a pipeline's file"}


def with_current_names(document: Mapping[str, Any]) -> dict[str, Any]:
    """A config's document with current names; each former one is logged with its current name.

    A key that stands under both names is left alone, so that the check of unknown keys refuses it.
    """
    for key in MOVED.keys() & document.keys():
        log.warning("%s is left out: %s", key, MOVED[key])
    return _renamed({key: value for key, value in document.items() if key not in MOVED}, CURRENT, log.warning)


def with_former_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A job's settings with the names of version 0.1.0, by which a run's folder is named."""
    return _renamed(settings, {current: former for former, current in CURRENT.items()}, log.debug)


def current_key(key: str) -> str:
    """A dotted key by its current name."""
    section, dot, rest = key.partition(".")
    return CURRENT.get(key, f"{CURRENT.get(section, section)}{dot}{rest}")


def _renamed(
    document: Mapping[str, Any], names: Mapping[str, str], note: Callable[..., None], prefix: str = ""
) -> dict[str, Any]:
    def renamed(name: str) -> str:
        if name in names:
            note("%s is now called %s: change the config", name, names[name])
        return names.get(name, name)

    result = {}
    for key, value in document.items():
        is_twice = names.get(f"{prefix}{key}", "").removeprefix(prefix) in document
        name = f"{prefix}{key}" if is_twice else renamed(f"{prefix}{key}")
        if isinstance(value, Mapping):
            value = _renamed(value, names, note, f"{name}.")
        elif isinstance(value, str):
            value = renamed(f"{name}={value}").partition("=")[2]
        result[name.removeprefix(prefix)] = value
    return result
