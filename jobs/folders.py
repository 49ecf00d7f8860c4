"""What the folders in a path say of an image: its class, and in sources that are already split, its split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from model.manifest import Split

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


def read_splits(paths: Sequence[str]) -> list[Split]:
    """The split of each path, by a folder that every path has at the same level. Raises UserError where none is."""
    level = _split_level(paths)
    return [SPLIT_NAMES[_folders(path)[level].lower()] for path in paths]


def without_splits(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that name their splits."""
    level = _split_level(paths)
    return ["/".join(_without(path.split("/"), level if level >= 0 else level - 1)) for path in paths]


def read_classes(paths: Sequence[str], which: Literal["top_folder", "parent_folder"]) -> list[str]:
    """The class of each path: its first folder or its last. Raises UserError for a path without folders."""
    loose = [path for path in paths if "/" not in path.strip("/")]
    if loose:
        raise UserError(
            f"{len(loose)} images stand outside any class folder (first: {loose[0]}); "
            "put each image in a folder that names its class, leave such out by source.exclude, or source.layout=table"
        )
    place = 0 if which == "top_folder" else -1
    return [_folders(path)[place] for path in paths]


def _folders(path: str) -> list[str]:
    return path.split("/")[:-1]


def _without(parts: list[str], place: int) -> list[str]:
    return [part for number, part in enumerate(parts) if number != place % len(parts)]


def _split_level(paths: Iterable[str]) -> int:
    """The level of the splits' folders, counted from the top, or below zero from the images up."""
    folders = [folder.split("/") for folder in sorted({path.rpartition("/")[0] for path in paths})]
    shortest = min(map(len, folders))
    levels: list[int] = [*range(shortest), *range(-1, -shortest - 1, -1)]
    for level in levels:
        if all(parts[level].lower() in SPLIT_NAMES for parts in folders):
            return level
    without = [parts for parts in folders if not any(part.lower() in SPLIT_NAMES for part in parts)]
    first = "/".join((without or folders)[0]) or "the source itself"
    what = "in no folder of a split" if without else "in folders of a split, but not all at the same level"
    raise UserError(
        f"source.split_folders: images stand {what} (first: {first}); every path needs a folder named {WORDS} at one "
        "level, above or below the class; move the images, or leave them out by source.exclude"
    )
