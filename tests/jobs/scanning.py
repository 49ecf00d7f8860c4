"""What a scan says of each path, for tests of sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.vectorize.source.scan import scan

if TYPE_CHECKING:
    from pathlib import Path

    from shardmean.jobs.vectorize.source.items import Item

# What Linux allows in a name and Unicode can tell; \x85 and others are line breaks to some readers.
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: not name.startswith(".") and len(name.encode()) < 200
)


def scanned(folder: Path | str, **settings) -> dict[str, Item]:
    found = scan(SourceConfig(uri=str(folder), **settings))
    assert [item.path for item in found.items] == sorted(item.path for item in found.items)
    assert found.class_names == sorted({item.class_name for item in found.items})
    return {item.path: item for item in found.items}


def told(folder: Path | str, what: str, **settings) -> dict[str, object]:
    return {path: getattr(item, what) for path, item in scanned(folder, **settings).items()}
