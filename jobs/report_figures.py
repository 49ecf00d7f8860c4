"""What a DataSet's manifest and index tell in figures: counts, rejected images, copies, conflicts. Reads no pixels."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report_histogram import Histogram, aspect_histogram, histogram, say_bytes, say_number
from model.manifest import SPLITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.manifest import Manifest

NUM_PATHS = 20
NUM_GROUPS = 20
NUM_PATHS_A_GROUP = 6
NUM_SIZES = 8
MANY_CLASSES = 30
COLUMNS = (
    "path", "size_bytes", "modified_ns", "class_name", "split", "content_hash", "reason", "detail", "width", "height",
)  # fmt: skip
CONFLICT = "conflicting_labels"


@dataclass(frozen=True)
class ClassCount:
    """Examples of one class in each split, and how many of its images were rejected."""

    name: str
    num_per_split: tuple[int, ...]
    num_rejected: int

    @property
    def num_examples(self) -> int:
        """Examples in all splits."""
        return sum(self.num_per_split)


@dataclass(frozen=True)
class Rejection:
    """The images rejected for one reason, and the first of them: path and detail."""

    reason: str
    num_images: int
    first: list[tuple[str, str]]


@dataclass(frozen=True)
class Copies:
    """Accepted images of equal bytes: how many, in which class and split, and the first paths."""

    num_images: int
    class_name: str
    split: str
    paths: list[str]


@dataclass(frozen=True)
class Conflict:
    """Images whose bytes stand in more than one class: in which, how many contents in how many files, and some."""

    class_names: tuple[str, ...]
    num_contents: int
    num_images: int
    paths: list[str]


@dataclass(frozen=True)
class Figures:
    """All that the report says but for its pictures. Lists are in the order in which they are shown."""

    classes: list[ClassCount]
    num_rejected: int
    rejections: list[Rejection]
    num_copies: int
    num_copied: int
    copies: list[Copies]
    num_conflicts: int
    conflicts: list[Conflict]
    lacking: dict[str, list[str]]
    sizes: list[tuple[str, int]]
    num_sizes: int
    per_class: Histogram | None
    histograms: list[Histogram]
    newest_ns: int | None

    def num_examples(self, split: str | None = None) -> int:
        """Examples in one split, or in all."""
        if split is None:
            return sum(one.num_examples for one in self.classes)
        return sum(one.num_per_split[SPLITS.index(split)] for one in self.classes)


def figures(manifest: Manifest, index: pa.Table) -> Figures:
    """Count. `index` has a row for each image of the source, sorted by path, and at least the columns of `COLUMNS`."""
    index = index.select(COLUMNS)
    accepted, rejected = index.filter(pc.is_valid(index["split"])), index.filter(pc.is_valid(index["reason"]))
    classes = _classes(manifest, rejected)
    num_copies, num_copied, copies = _copies(accepted)
    num_conflicts, conflicts = _conflicts(rejected)
    num_sizes, sizes = _sizes(accepted)
    return Figures(
        classes=classes,
        num_rejected=rejected.num_rows,
        rejections=_rejections(rejected),
        num_copies=num_copies,
        num_copied=num_copied,
        copies=copies,
        num_conflicts=num_conflicts,
        conflicts=conflicts,
        lacking=lacking(manifest),
        sizes=sizes,
        num_sizes=num_sizes,
        per_class=_per_class(classes),
        histograms=_histograms(accepted),
        newest_ns=pc.max(index["modified_ns"]).as_py(),
    )


def lacking(manifest: Manifest) -> dict[str, list[str]]:
    """For each split that has examples or was to have some, the classes without one in it; none for the others."""
    found = {}
    for split in SPLITS:
        if manifest.num_examples(split) or getattr(manifest.split, split):
            counts = manifest.num_per_class(split)
            found[split] = [name for name, n in zip(manifest.class_names, counts, strict=True) if n == 0]
    return {split: names for split, names in found.items() if names}


def _classes(manifest: Manifest, rejected: pa.Table) -> list[ClassCount]:
    per_split = zip(*(manifest.num_per_class(split) for split in SPLITS), strict=True)
    num_rejected = _counts(rejected["class_name"])
    return [
        ClassCount(name, counts, num_rejected.get(name, 0))
        for name, counts in zip(manifest.class_names, per_split, strict=True)
    ]


def _counts(column: pa.ChunkedArray) -> dict[Any, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def _rejections(rejected: pa.Table) -> list[Rejection]:
    found = []
    for reason, number in sorted(_counts(rejected["reason"]).items(), key=lambda pair: (-pair[1], pair[0])):
        first = rejected.filter(pc.equal(rejected["reason"], reason)).slice(0, NUM_PATHS)
        pairs = zip(first["path"].to_pylist(), first["detail"].to_pylist(), strict=True)
        found.append(Rejection(reason, number, [(path, detail or "") for path, detail in pairs]))
    return found


def _copies(accepted: pa.Table) -> tuple[int, int, list[Copies]]:
    """How many images are copies of another, of how many contents, and the largest groups of them."""
    read = accepted.filter(pc.is_valid(accepted["content_hash"]))
    # Without threads the first of a group is the first in the table, so by path.
    groups = read.group_by("content_hash", use_threads=False).aggregate([("path", "count"), ("path", "first")])
    groups = groups.filter(pc.greater(groups["path_count"], 1))
    num_copies = (pc.sum(groups["path_count"]).as_py() or 0) - groups.num_rows
    groups = groups.sort_by([("path_count", "descending"), ("path_first", "ascending")])
    largest = [
        _group(read, content_hash, number)
        for content_hash, number in zip(
            groups["content_hash"][:NUM_GROUPS].to_pylist(), groups["path_count"][:NUM_GROUPS].to_pylist(), strict=True
        )
    ]
    return num_copies, groups.num_rows, largest


def _group(read: pa.Table, content_hash: bytes, num_images: int) -> Copies:
    is_member = pc.equal(read["content_hash"], pa.scalar(content_hash, read["content_hash"].type))
    members = read.filter(is_member).slice(0, NUM_PATHS_A_GROUP)
    return Copies(
        num_images, members["class_name"][0].as_py(), members["split"][0].as_py(), members["path"].to_pylist()
    )


def _conflicts(rejected: pa.Table) -> tuple[int, list[Conflict]]:
    """How many sets of classes share contents, and those that share the most."""
    found = rejected.filter(pc.and_(pc.equal(rejected["reason"], CONFLICT), pc.is_valid(rejected["content_hash"])))
    class_names, paths = defaultdict(set), defaultdict(list)
    for row in found.select(["content_hash", "class_name", "path"]).to_pylist():
        class_names[row["content_hash"]].add(row["class_name"])
        paths[row["content_hash"]].append(row["path"])
    # By the set of classes rather than by pairs: one black image in 10,000 classes would make 50 million pairs.
    num_contents: Counter[tuple[str, ...]] = Counter()
    shared: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for content_hash, names in class_names.items():
        key = tuple(sorted(names))
        num_contents[key] += 1
        shared[key] += paths[content_hash]
    order = sorted(num_contents, key=lambda key: (-num_contents[key], key))
    return len(order), [
        Conflict(key, num_contents[key], len(shared[key]), sorted(shared[key])[:NUM_PATHS_A_GROUP])
        for key in order[:NUM_GROUPS]
    ]


def _known_sizes(accepted: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    known = accepted.filter(pc.and_(pc.is_valid(accepted["width"]), pc.is_valid(accepted["height"])))
    return known["width"].to_numpy().astype(np.int64), known["height"].to_numpy().astype(np.int64)


def _sizes(accepted: pa.Table) -> tuple[int, list[tuple[str, int]]]:
    """How many different sizes there are, and the commonest of them."""
    widths, heights = _known_sizes(accepted)
    keys, counts = np.unique(widths << 32 | heights, return_counts=True)
    commonest = np.argsort(-counts, kind="stable")[:NUM_SIZES]
    pairs = zip(keys[commonest].tolist(), counts[commonest].tolist(), strict=True)
    return len(keys), [(f"{key >> 32:,} x {key & 0xFFFFFFFF:,}", number) for key, number in pairs]


def _per_class(classes: list[ClassCount]) -> Histogram | None:
    if len(classes) < MANY_CLASSES:
        return None
    found = histogram("Examples of a class", np.array([one.num_examples for one in classes]), say_number)
    return None if found is None or found.is_single else found


def _histograms(accepted: pa.Table) -> list[Histogram]:
    widths, heights = _known_sizes(accepted)
    files = accepted["size_bytes"].drop_null().to_numpy()
    say_pixels = partial(_with_unit, unit="px")
    found = [
        histogram("Width", widths, say_pixels),
        histogram("Height", heights, say_pixels),
        aspect_histogram("Aspect ratio", widths, heights),
        histogram("File size", files, say_bytes),
    ]
    return [one for one in found if one is not None]


def _with_unit(value: float, unit: str) -> str:
    return f"{say_number(value)} {unit}"
