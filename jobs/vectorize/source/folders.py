"""What the folders in paths say of images: their classes, and in sources that are already split, their splits."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardmean.model.dataset.manifest import Split

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
WORDS = "train, validation (or valid, val) and test"


def named_split(name: str) -> Split | None:
    """The split that a folder's name or a table's value means, in upper or lower case; None for none."""
    return SPLIT_NAMES.get(name.lower())


class Folders:
    """The folders of N paths. Each folder's name is looked at once, however many images it holds."""

    def __init__(self, paths: pa.LargeStringArray) -> None:
        """Take the folders off the paths."""
        folders = pc.struct_field(pc.extract_regex(paths, "(?s)^(?P<folder>.*)/[^/]+/*$"), "folder")
        encoded = pc.fill_null(folders, "").dictionary_encode()
        self._paths = paths
        self._names: list[str] = encoded.dictionary.to_pylist()
        self._codes_N = encoded.indices

    def splits(self) -> pa.StringArray:
        """The split of each path, by a folder that every path has at the same level. Raises UserError where none is."""
        level = self._split_level
        return self._each([named_split(name.split("/")[level]) for name in self._names])

    def classes(self, which: Literal["top_folder", "parent_folder"], *, are_split: bool = False) -> pa.StringArray:
        """The class of each path: its first folder or its last, not counting those that name splits.

        Raises UserError for a path without folders.
        """
        level = self._split_level if are_split else None
        class_names = [_class_name(name, 0 if which == "top_folder" else -1, level) for name in self._names]
        loose = [code for code, class_name in enumerate(class_names) if class_name is None]
        if loose:
            rows = np.flatnonzero(np.isin(self._codes_N.to_numpy(), loose))
            raise UserError(
                f"{len(rows)} images are outside any class folder (first: {self._paths[rows[0]]}); put each "
                "image in a folder that names its class, leave such out by source.exclude, or source.layout=table"
            )
        return self._each(class_names)

    def _each(self, of_folders: Sequence[str | None]) -> pa.StringArray:
        """Give each path what its folder has."""
        return pa.array(of_folders, pa.string()).take(self._codes_N)

    @cached_property
    def _split_level(self) -> int:
        """The level of the splits' folders, counted from the top, or below zero from the images up."""
        shortest = 1 + min(name.count("/") for name in self._names)
        levels: list[int] = [*range(shortest), *range(-1, -shortest - 1, -1)]
        for level in levels:
            if all(named_split(name.split("/")[level]) for name in self._names):
                return level
        without = [name for name in self._names if not any(map(named_split, name.split("/")))]
        first = min(without or self._names) or "the source itself"
        what = "in no folder of a split" if without else "in folders of a split, but not all at the same level"
        raise UserError(
            f"source.split_folders: images are {what} (first: {first}); every path needs a folder named {WORDS} at "
            "one level, above or below the class; move the images, or leave them out by source.exclude"
        )


def _class_name(name: str, index: int, level: int | None) -> str | None:
    """The first or last of the folders in a name, without the one at a level; None where no folder is left."""
    parts = name.split("/")
    if level is not None:
        del parts[level]
    return parts[index] if any(parts) else None
