"""Numbers of a DataSet, from its manifest and index: counts, rejected images, copies, conflicts. Reads no pixels."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardmean.jobs.common.arrow_tables import rows_of
from shardmean.jobs.vectorize.index.duplicates import CONFLICT, copies
from shardmean.jobs.vectorize.index.table import bytes_of
from shardmean.jobs.vectorize.report.histogram import (
    Histogram,
    aspect_histogram,
    format_bytes,
    format_number,
    histogram,
)
from shardmean.model.dataset.manifest import SPLITS

if TYPE_CHECKING:
    from shardmean.model.dataset.manifest import Manifest

NUM_PATHS = 20
NUM_GROUPS = 20
NUM_PATHS_A_GROUP = 6
NUM_SIZES = 8


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
class SameBytes:
    """Files of equal bytes in one class and split, or such contents in the same classes, which conflict; some paths."""

    class_names: tuple[str, ...]
    split: str | None
    num_contents: int
    num_images: int
    paths: list[str]


class DatasetStatistics:
    """All that the report says, without its pictures. Lists are in the order in which they are shown."""

    def __init__(self, manifest: Manifest, index: pa.Table) -> None:
        """Count. `index` has a row for each image of the source, sorted by path (see `index.table.INDEX`)."""
        # Rows of millions of images are not copied: of those accepted, only what a figure needs is.
        is_accepted = pc.is_valid(index["split"])
        rejected = index.filter(pc.is_valid(index["reason"]))
        sizes = index.select(["width", "height"]).filter(is_accepted).drop_null()
        self.classes = _classes(manifest, rejected)
        self.num_rejected = rejected.num_rows
        self.rejections = _rejections(rejected)
        self.num_copies, self.num_copied, self.copies = _copies(index, is_accepted)
        self.num_conflicts, self.conflicts = _conflicts(rejected)
        self.num_sizes, self.sizes = _sizes(sizes)
        num_examples = np.array([one.num_examples for one in self.classes])
        self.per_class = histogram("Examples of a class", num_examples, format_number)
        self.histograms = _histograms(sizes, index["size_bytes"].filter(is_accepted))
        self.newest_ns: int | None = pc.max(index["modified_ns"]).as_py()

    def num_examples(self, split: str | None = None) -> int:
        """Examples in one split, or in all."""
        if split is None:
            return sum(one.num_examples for one in self.classes)
        return sum(one.num_per_split[SPLITS.index(split)] for one in self.classes)


def lacking(manifest: Manifest) -> dict[str, list[str]]:
    """For each split that has examples or was to have some, the classes without one in it; none for the others."""
    lacking = {
        split: [name for name, n in zip(manifest.class_names, manifest.num_per_class(split), strict=True) if n == 0]
        for split in SPLITS
        if manifest.num_examples(split) or getattr(manifest.split, split)
    }
    return {split: names for split, names in lacking.items() if names}


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
    rejections = []
    for reason, number in sorted(_counts(rejected["reason"]).items(), key=lambda pair: (-pair[1], pair[0])):
        first = rejected.filter(pc.equal(rejected["reason"], reason)).slice(0, NUM_PATHS)
        pairs = [(path, detail or "") for path, detail in rows_of(first, ["path", "detail"])]
        rejections.append(Rejection(reason, number, pairs))
    return rejections


def _copies(index: pa.Table, is_accepted: pa.ChunkedArray) -> tuple[int, int, list[SameBytes]]:
    """How many images are copies of another, of how many contents, and the largest groups of them."""
    hashes = index["content_hash"]
    read = np.flatnonzero(pc.and_(is_accepted, pc.is_valid(hashes)).to_numpy())
    groups = copies(bytes_of(hashes.take(pa.array(read))))
    num_copies = sum(len(group) - 1 for group in groups)
    # By the number of images, then by the first's path, by which the index is sorted.
    groups.sort(key=lambda group: (-len(group), group[0]))
    most_copied = []
    for group in groups[:NUM_GROUPS]:
        some = index.take(pa.array(read[group[:NUM_PATHS_A_GROUP]]))
        class_name, split = some["class_name"][0].as_py(), some["split"][0].as_py()
        most_copied.append(SameBytes((class_name,), split, 1, len(group), some["path"].to_pylist()))
    return num_copies, len(groups), most_copied


def _conflicts(rejected: pa.Table) -> tuple[int, list[SameBytes]]:
    """How many sets of classes share contents, and those that share the most."""
    is_conflict = pc.and_(pc.equal(rejected["reason"], CONFLICT), pc.is_valid(rejected["content_hash"]))
    conflicting = rejected.filter(is_conflict)
    by_content = conflicting.group_by("content_hash").aggregate([("class_name", "distinct"), ("path", "list")])
    # By the set of classes rather than by pairs: one black image in 10,000 classes would make 50 million pairs.
    shared: defaultdict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for names, paths in rows_of(by_content, ["class_name_distinct", "path_list"]):
        shared[tuple(sorted(names))].append(paths)
    conflicts = []
    for names in sorted(shared, key=lambda names: (-len(shared[names]), names))[:NUM_GROUPS]:
        paths = sorted(chain.from_iterable(shared[names]))
        conflicts.append(SameBytes(names, None, len(shared[names]), len(paths), paths[:NUM_PATHS_A_GROUP]))
    return len(shared), conflicts


def _sizes(sizes: pa.Table) -> tuple[int, list[tuple[str, int]]]:
    """How many different sizes there are, and the commonest of them."""
    counts = sizes.group_by(["width", "height"]).aggregate([([], "count_all")])
    order = [("count_all", "descending"), ("width", "ascending"), ("height", "ascending")]
    commonest = rows_of(counts.sort_by(order).slice(0, NUM_SIZES), ["width", "height", "count_all"])
    return counts.num_rows, [(f"{width:,} x {height:,}", number) for width, height, number in commonest]


def _histograms(sizes: pa.Table, sizes_bytes: pa.ChunkedArray) -> list[Histogram]:
    def format_pixels(value: float) -> str:
        return f"{format_number(value)} px"

    widths, heights = (sizes[name].to_numpy() for name in ("width", "height"))
    charts = [
        histogram("Width", widths, format_pixels),
        histogram("Height", heights, format_pixels),
        aspect_histogram("Aspect ratio", widths, heights),
        histogram("File size", sizes_bytes.drop_null().to_numpy(), format_bytes),
    ]
    return [chart for chart in charts if chart is not None]
