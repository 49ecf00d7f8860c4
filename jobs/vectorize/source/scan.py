"""The images a job starts from, listed where the job is planned. Three layouts, one kind of item."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardmean.jobs.common.arrow_tables import by_path, give_back_memory, kept, rows_of
from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.config.patterns import extract, matches
from shardmean.jobs.config.uris import AllowedRoots
from shardmean.jobs.vectorize.source import idx, table
from shardmean.jobs.vectorize.source.folders import WORDS, Folders, named_split
from shardmean.jobs.vectorize.source.items import ITEMS, Item, Items, path_hashes
from shardmean.jobs.vectorize.source.listing import MAX_PATH, MISSING, find_files, list_files
from shardmean.model.dataset.shard import one_chunk
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.images.decoder import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shardmean.jobs.config.source import SourceConfig
    from shardmean.model.dataset.manifest import Split

# What an example is made of, and what rejects it; not where it is.
FINGERPRINTED = ("path", "class_name", "size_bytes", "modified_ns", "split", "group", "extra", "reason")
_SUFFIX = rf"(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))})$"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """All items of a source in the order of their paths, the class names in order, and what was left out.

    `num_left_out` images are not among the items because their classes have enough others; `num_hidden` files and
    folders because they are hidden.
    """

    items: Items
    class_names: list[str]
    num_other_files: int
    extra_columns: tuple[str, ...] = ()
    num_left_out: int = 0
    num_hidden: int = 0

    @cached_property  # a run asks twice, and for many images it takes as long as to list them
    def fingerprint(self) -> str:
        """Changes whenever a file is added, removed, moved or written, or gets another class, split, group or extra."""
        digest = hashlib.sha256(repr(self.extra_columns).encode())
        for facts in rows_of(self.items.table, FINGERPRINTED):
            # A repr keeps neighboring texts apart, whatever they hold.
            digest.update(repr(facts).encode())
        return digest.hexdigest()[:32]


class LayoutScan(NamedTuple):
    """What one layout gives: see Scan."""

    items: Items
    num_other_files: int
    num_hidden: int


def scan(config: SourceConfig, allowed_roots: Sequence[str] = ()) -> Scan:
    """List a source, whose files lie below `allowed_roots` where there are any.

    Raises UserError for one that is missing, empty, lies elsewhere, or has fewer than two classes; RetryableError.
    """
    scan_layout = {"folders": _scan_folders, "table": _scan_table, "idx": _scan_idx}[config.layout]
    try:
        items, num_other_files, num_hidden = scan_layout(config, AllowedRoots(allowed_roots))
        items = Items(by_path(items.table), items.root)
        class_names = sorted(items.table["class_name"].unique().to_pylist())
        _check(items, class_names)
        chosen = _balanced(items, config.max_per_class)
    except UserError as error:
        raise UserError(f"source {config.uri}: {error}") from error.__cause__
    num_left_out = len(items) - len(chosen)
    give_back_memory()
    return Scan(chosen, class_names, num_other_files, tuple(config.extra_columns), num_left_out, num_hidden)


def _balanced(items: Items, max_per_class: int | Literal["smallest"] | None) -> Items:
    """At most so many items of each class: those whose paths have the lowest hashes (as DataVec does)."""
    if max_per_class is None:
        return items
    codes_N = one_chunk(items.table["class_name"]).dictionary_encode().indices.to_numpy()
    num_per_class = np.bincount(codes_N)
    most = num_per_class.min() if max_per_class == "smallest" else max_per_class
    high_N, low_N = path_hashes(one_chunk(items.table["path"]))
    order = np.lexsort((low_N, high_N, codes_N))
    firsts = np.cumsum(num_per_class) - num_per_class
    rank_N = np.arange(len(order)) - firsts[codes_N[order]]
    return items.take(np.sort(order[rank_N < most]))


def _check(items: Items, class_names: Sequence[str]) -> None:
    if not items:
        raise UserError("no images in it")
    if len(class_names) < 2:
        raise UserError(
            f"only one class, {class_names[0]!r}; a classifier needs two or more: add a folder (or label) per class"
        )
    paths = one_chunk(items.table["path"])
    repeated = pc.index(pc.equal(paths[1:], paths[:-1]), True).as_py()
    if repeated >= 0:
        raise UserError(
            f"two files have the path {paths[repeated].as_py()!r} where odd bytes are shown by their codes; rename one"
        )
    _check_groups(items)


def _check_groups(items: Items) -> None:
    of_group = items.table.select(["group", "split", "path"]).filter(pc.is_valid(items.table["group"]))
    both = of_group.group_by(["group", "split"], use_threads=False).aggregate([("path", "first")])
    if both.num_rows == pc.count_distinct(both["group"]).as_py():
        return
    splits: dict[str, Split | None] = {}
    for group, split, path in zip(*(both[name].to_pylist() for name in ("group", "split", "path_first")), strict=True):
        if splits.setdefault(group, split) != split:
            given = " and ".join(name or "no split" for name in (splits[group], split))
            raise UserError(f"the group {group!r} is given to {given} (first there: {path}); one group needs one split")


def _scan_folders(config: SourceConfig, allowed: AllowedRoots) -> LayoutScan:
    files, num_hidden, root = list_files(config.uri, allowed)
    num_files = files.num_rows
    _check_links(config, files)
    files = kept(files, _are_images(one_chunk(files["path"])))
    num_other_files = num_files - files.num_rows
    if not files.num_rows:
        seen = f"{num_files} files, none of them an image" if num_files else "no files"
        seen += f" (and {num_hidden} hidden files and folders)" if num_hidden else ""
        raise UserError(f"{seen}; expected FOLDER/CLASS/IMAGE with {', '.join(sorted(SUFFIXES))}")
    files = by_path(kept(files, _chosen(config, one_chunk(files["path"]))))
    paths = one_chunk(files["path"])
    folders = Folders(paths)
    facts = {}
    if config.split_folders:
        facts["split"] = folders.splits()
    if config.label_pattern is not None:
        facts["class_name"] = _extracted(paths, config.label_pattern, "label")
    else:
        is_parent = config.label_from == "parent_folder"
        classes = folders.classes("parent_folder" if is_parent else "top_folder", are_split=config.split_folders)
        facts["class_name"] = classes
        names = sorted(classes.unique().to_pylist())
        if not config.split_folders and all(map(named_split, names)):
            raise UserError(
                f"the classes would be {', '.join(names)}: set source.split_folders=true if these folders "
                "are the splits, or source.label_from=parent_folder"
            )
    if config.group_pattern is not None:
        facts["group"] = _extracted(paths, config.group_pattern, "group")
    return LayoutScan(_items(files, facts, root), num_other_files, num_hidden)


def _are_images(paths: pa.LargeStringArray) -> pa.BooleanArray:
    return pc.match_substring_regex(pc.ascii_lower(paths), _SUFFIX)


def _check_links(config: SourceConfig, files: pa.Table) -> None:
    """Raise RetryableError for broken links that may lead to folders, even of a class, unless they are excluded."""
    paths = one_chunk(files.filter(pc.equal(files["reason"], MISSING))["path"])
    paths = paths.filter(pc.invert(_are_images(paths)))
    if config.exclude:
        as_folders = pa.array([f"{path}/" for path in paths.to_pylist()], pa.large_string())
        paths = paths.filter(pc.invert(matches(as_folders, config.exclude)))
    if paths:
        raise RetryableError(
            f"source {config.uri}: {len(paths)} broken links, perhaps to folders of images (first: "
            f"{truncate_printable(paths[0].as_py(), MAX_PATH)}): mount what they lead to, remove them, or exclude them "
            "by source.exclude"
        )


def _scan_table(config: SourceConfig, allowed: AllowedRoots) -> LayoutScan:
    label_column = config.label_column if config.label_from == "layout" else None
    names = (config.path_column, label_column, config.split_column, config.group_column, *config.extra_columns)
    columns, num_hidden = table.read_columns(config.uri, list(dict.fromkeys(name for name in names if name)))
    columns = kept(columns, _chosen(config, table.filled(columns, config.path_column)))
    paths = one_chunk(columns[config.path_column])
    facts = {}
    if label_column is not None:
        facts["class_name"] = table.filled(columns, label_column)
    elif config.label_pattern is not None:
        facts["class_name"] = _extracted(paths, config.label_pattern, "label")
    else:
        facts["class_name"] = Folders(paths).classes("parent_folder")
    if config.split_column is not None:
        facts["split"] = _named_splits(one_chunk(columns[config.split_column]), config.split_column)
    if config.group_column is not None:
        facts["group"] = table.filled(columns, config.group_column)
    elif config.group_pattern is not None:
        facts["group"] = _extracted(paths, config.group_pattern, "group")
    if config.extra_columns:
        facts["extra"] = _side_by_side([one_chunk(columns[name]) for name in config.extra_columns])
    return LayoutScan(_items(find_files(config.uri, paths, allowed), facts), 0, num_hidden)


def _side_by_side(columns: Sequence[pa.LargeStringArray]) -> pa.LargeListArray:
    """For each row a list of its values."""
    num_rows, num_columns = len(columns[0]), len(columns)
    order = np.arange(num_rows * num_columns).reshape(num_columns, num_rows).T.ravel()
    offsets = np.arange(num_rows + 1) * num_columns
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.concat_arrays(columns).take(pa.array(order)))


def _scan_idx(config: SourceConfig, allowed: AllowedRoots) -> LayoutScan:
    listed, num_hidden, root = list_files(config.uri, allowed)
    _check_links(config, listed)
    # Files of many images each, so of no one class.
    files = {file.path: file for file in _items(listed, {"class_name": pa.repeat("", listed.num_rows)}, root)}
    pairs = idx.pair_up(list(files))
    is_chosen = _chosen(config, pa.array([images for images, _ in pairs], pa.string())).to_pylist()
    chosen = [(files[images], files[labels]) for images, labels in compress(pairs, is_chosen)]
    items = Items.of(item for images, labels in chosen for item in _idx_items(config, images, labels))
    return LayoutScan(items, len(files) - 2 * len(pairs), num_hidden)


def _idx_items(config: SourceConfig, images: Item, labels: Item) -> Iterator[Item]:
    for file in (images, labels):
        if file.reason:
            raise UserError(f"{file.uri}: {file.reason}, where an IDX file was expected; put the file itself there")
    split = idx.split_of(images.path) if config.split_files else None
    pixels, values = idx.open_images(images.uri, images.modified_ns), idx.open_labels(labels.uri)
    (num_labels,), (num_images, *_) = values.shape, pixels.shape
    if num_labels != num_images:
        raise UserError(f"{labels.uri}: {num_labels} labels for {num_images} images of {images.uri}")
    for row, label in enumerate(values.read(0, num_labels)):
        path = f"{images.path}/{row:06d}"
        yield Item(path, images.uri, str(label), pixels.item_bytes, images.modified_ns, row, split)


def _items(files: pa.Table, facts: Mapping[str, pa.Array], root: str = "") -> Items:
    """Files with what is known of them by the names of their columns."""
    columns = {name: files[name] for name in files.column_names} | dict(facts)
    return Items(
        pa.table(
            [columns.get(field.name, pa.nulls(files.num_rows, field.type)) for field in ITEMS],
            schema=ITEMS,
        ),
        root,
    )


def _chosen(config: SourceConfig, paths: pa.LargeStringArray) -> pa.BooleanArray:
    """For each path, whether include and exclude choose it. Raises UserError when they choose none."""
    chosen = matches(paths, config.include) if config.include else pa.array(np.ones(len(paths), np.bool_))
    if config.exclude:
        chosen = pc.and_not(chosen, matches(paths, config.exclude))
    if config.include or config.exclude:
        num_chosen = chosen.true_count
        log.info("source.include and source.exclude leave %d of %d files", num_chosen, len(paths))
        if not num_chosen:
            raise UserError(f"source.include and source.exclude leave none of {len(paths)} files; correct the patterns")
    return chosen


def _extracted(paths: pa.LargeStringArray, pattern: str, group: str) -> pa.LargeStringArray:
    values = pc.fill_null(extract(paths, pattern, group), "")
    without = np.flatnonzero(pc.equal(values, "").to_numpy(zero_copy_only=False))
    if len(without):
        raise UserError(
            f"source.{group}_pattern finds no {group} in {len(without)} of {len(paths)} paths (first: "
            f"{paths[without[0]].as_py()!r}); correct the pattern, or leave such paths out by source.exclude"
        )
    return values


def _named_splits(values: pa.LargeStringArray, column: str) -> pa.StringArray:
    encoded = pc.fill_null(values, "").dictionary_encode()
    words = encoded.dictionary.to_pylist()
    splits = [named_split(word) for word in words]
    wrong = [code for code, word in enumerate(words) if word and splits[code] is None]
    if wrong:
        rows = np.flatnonzero(np.isin(encoded.indices.to_numpy(), wrong))
        raise UserError(
            f"{len(rows)} of {len(values)} rows have no split in {column} (first: {values[rows[0]].as_py()!r}); "
            f"expected {WORDS}, or nothing for a split by hash"
        )
    return pa.array(splits, pa.string()).take(encoded.indices)
