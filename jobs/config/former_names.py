"""Names of settings in version 0.1.0: still accepted, with a message; run folders keep the names they gave."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)
# Dotted keys: former to current.
KEYS = {"normalisation": "normalization", "averaging.exchange": "averaging.comm_dtype"}
VALUES = {
    ("image.resize", "centre_crop"): "center_crop",
    ("image.background", "grey"): "gray",
    ("image.padding", "grey"): "gray",
}


def with_current_names(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of a config's document with current names; each former one is logged with its new name.

    A key that stands under both names is left alone, so that the check of unknown keys refuses it.
    """
    renamed = _moved(document, KEYS, where)
    for (key, former), current in VALUES.items():
        *path, last = key.split(".")
        section = _section(renamed, path)
        if section is not None and section.get(last) == former:
            log.warning("%s: %s=%s is now called %s", where, key, former, current)
            section[last] = current
    return renamed


def with_former_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a job's settings with the keys of version 0.1.0, by which a run's folder is named."""
    return _moved(document, {current: former for former, current in KEYS.items()}, None)


def _moved(document: Mapping[str, Any], keys: Mapping[str, str], where: str | None) -> dict[str, Any]:
    copied: dict[str, Any] = _copied(document)
    for before, after in keys.items():
        *path, old = before.split(".")
        new = after.rsplit(".", 1)[-1]
        section = _section(copied, path)
        if section is None or old not in section or new in section:
            continue
        if where is not None:
            log.warning("%s: %s is now called %s", where, before, after)
        section[new] = section.pop(old)
    return copied


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _section(document: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    found: Any = document
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None
