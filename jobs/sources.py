"""The images a job starts from: listed on the driver, read in the tasks. Three layouts, one kind of item."""

from __future__ import annotations

import errno
import gc
import hashlib
import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, pairwise, repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, NamedTuple

from jobs import folders, idx, table
from jobs.listing import MISSING, find_files, list_files
from jobs.patterns import extract, matches
from model import storage
from model.errors import ImageRejectedError, UserError, WorldError
from model.images import SUFFIXES, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from jobs.config import SourceConfig
    from jobs.listing import File
    from model.manifest import Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be: a path that names it in the DataSet, where its bytes are, and its class name.

    `split` is None where the image's hash decides. All items of one `group` belong to one split. `extra` holds the
    values of the scan's `extra_columns`. With a `reason` the listing rejects it: see `listing.File`.
    """

    path: str
    uri: str
    class_name: str
    size_bytes: int
    modified_ns: int
    row: int | None = None
    split: Split | None = None
    group: str | None = None
    extra: tuple[str | None, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Scan:
    """All items of a source in the order of their paths, the class names in order, and what was passed over.

    `num_left_out` images are not among the items because their classes have enough others; `num_hidden` files and
    folders because they are hidden.
    """

    items: list[Item]
    class_names: list[str]
    num_other_files: int
    extra_columns: tuple[str, ...] = ()
    num_left_out: int = 0
    num_hidden: int = 0

    @cached_property  # a run asks twice, and for many images it takes as long as to list them
    def fingerprint(self) -> str:
        """Changes whenever a file is added, removed, moved or written, or gets another class, split, group or extra."""
        digest = hashlib.sha256(repr(self.extra_columns).encode())
        for i in self.items:
            # A repr keeps neighbouring texts apart, whatever they hold, and takes names that are not UTF-8.
            facts = (i.path, i.class_name, i.size_bytes, i.modified_ns, i.split, i.group, i.extra, i.reason)
            digest.update(repr(facts).encode())
        return digest.hexdigest()[:32]


class Found(NamedTuple):
    """What one layout gives: see Scan."""

    items: list[Item]
    num_other_files: int
    num_hidden: int


def scan(config: SourceConfig) -> Scan:
    """List a source. Raises UserError for one that is missing, empty, or has fewer than two classes; WorldError."""
    scan_layout = {"folders": _scan_folders, "table": _scan_table, "idx": _scan_idx}[config.layout]
    try:
        with _no_collector():
            items, num_other_files, num_hidden = scan_layout(config)
            items.sort(key=attrgetter("path"))
            class_names = sorted({item.class_name for item in items})
            _check(items, class_names)
            chosen = _balanced(items, config.max_per_class)
    except UserError as error:
        raise UserError(f"source {config.uri}: {error}") from error.__cause__
    num_left_out = len(items) - len(chosen)
    return Scan(chosen, class_names, num_other_files, tuple(config.extra_columns), num_left_out, num_hidden)


@contextmanager
def _no_collector() -> Iterator[None]:
    """It would look at every item again and again, and none is ever garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def path_hash(path: str) -> bytes:
    """What orders images by chance, yet always alike: the hash of the path."""
    return hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=16).digest()


def _balanced(items: list[Item], max_per_class: int | Literal["smallest"] | None) -> list[Item]:
    """At most so many items of each class: those whose paths have the lowest hashes (as DataVec does)."""
    if max_per_class is None:
        return items
    num_per_class = Counter(item.class_name for item in items)
    most = min(num_per_class.values()) if max_per_class == "smallest" else max_per_class
    by_class: dict[str, list[tuple[bytes, int]]] = {name: [] for name, num in num_per_class.items() if num > most}
    for place, item in enumerate(items):
        if item.class_name in by_class:
            by_class[item.class_name].append((path_hash(item.path), place))
    left_out = {place for hashes in by_class.values() for _, place in sorted(hashes)[most:]}
    return [item for place, item in enumerate(items) if place not in left_out]


def read_item(item: Item) -> bytes:
    """The image file's bytes of an item.

    Raises FileNotFoundError when it is gone, ImageRejectedError when it was not there when the source was listed or is
    not of the size that it was, and WorldError when it can't be read.
    """
    if item.reason is not None:
        what = "no file stands at" if item.reason == MISSING else "a folder, pipe, socket or device stands at"
        raise ImageRejectedError(item.reason, printable(f"{what} {item.uri}"))
    if item.row is not None:
        images = idx.open_images(item.uri, item.modified_ns)
        num_rows, height, width = images.shape
        pixels = images.read(item.row) if images.item_bytes == item.size_bytes else b""
        if item.row >= num_rows or len(pixels) != item.size_bytes:
            detail = f"row {item.row} of {item.size_bytes} bytes when the source was listed, "
            detail += f"{num_rows} rows of {height * width} when it was read; the next run reads it"
            raise ImageRejectedError("changed", detail)
        return b"".join((b"P5\n%d %d\n255\n" % (width, height), pixels))
    try:
        # One byte more shows that a file has grown, and a file that never ends does no harm.
        content = storage.read_bytes(item.uri, max_bytes=item.size_bytes + 1)
    except WorldError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
            raise FileNotFoundError(item.uri) from error
        raise
    if len(content) != item.size_bytes:
        found = f"more than {item.size_bytes}" if len(content) > item.size_bytes else str(len(content))
        detail = f"{item.size_bytes} bytes when the source was listed, {found} when it was read; the next run reads it"
        raise ImageRejectedError("changed", detail)
    return content


def _check(items: Sequence[Item], class_names: Sequence[str]) -> None:
    if not items:
        raise UserError("no images in it")
    if len(class_names) < 2:
        raise UserError(
            f"only one class, {class_names[0]!r}; a classifier needs two or more: add a folder (or label) per class"
        )
    twice = next((a.path for a, b in pairwise(items) if a.path == b.path), None)
    if twice is not None:
        raise UserError(f"two files have the path {twice!r} where odd bytes are shown by their codes; rename one")
    splits: dict[str, Split | None] = {}
    for item in items:
        if item.group is not None and splits.setdefault(item.group, item.split) != item.split:
            both = " and ".join(split or "no split" for split in (splits[item.group], item.split))
            raise UserError(
                f"the group {item.group!r} is given to {both} (last: {item.path}); one group needs one split"
            )


def _scan_folders(config: SourceConfig) -> Found:
    files, num_hidden = list_files(config.uri)
    images = [file for file in files if file.path.lower().endswith(tuple(SUFFIXES))]
    if not images:
        seen = f"{len(files)} files, none of them an image" if files else "no files"
        seen += f" (and {num_hidden} hidden files and folders)" if num_hidden else ""
        raise UserError(f"{seen}; expected FOLDER/CLASS/IMAGE with {', '.join(sorted(SUFFIXES))}")
    num_other_files = len(files) - len(images)
    images = list(compress(images, _chosen(config, [file.path for file in images])))
    paths = [file.path for file in images]
    splits = folders.read_splits(paths) if config.split_folders else repeat(None)
    if config.label_pattern is not None:
        labels = _extracted(paths, config.label_pattern, "label")
    else:
        of_classes = folders.without_splits(paths) if config.split_folders else paths
        labels = folders.read_classes(
            of_classes, "parent_folder" if config.label_from == "parent_folder" else "top_folder"
        )
    if config.label_pattern is None and not config.split_folders and all(map(folders.named_split, set(labels))):
        raise UserError(
            f"the classes would be {', '.join(sorted(set(labels)))}: set source.split_folders=true if these folders "
            "are the splits, or source.label_from=parent_folder"
        )
    groups = _extracted(paths, config.group_pattern, "group") if config.group_pattern else repeat(None)
    facts = zip(images, labels, splits, groups, strict=False)
    return Found([_item(*fact) for fact in facts], num_other_files, num_hidden)


def _scan_table(config: SourceConfig) -> Found:
    label_column = config.label_column if config.label_from == "layout" else None
    names = (config.path_column, label_column, config.split_column, config.group_column, *config.extra_columns)
    columns, num_hidden = table.read_columns(config.uri, list(dict.fromkeys(name for name in names if name)))
    chosen = _chosen(config, table.filled(columns, config.path_column))
    columns = {name: list(compress(values, chosen)) for name, values in columns.items()}
    paths = table.filled(columns, config.path_column)
    if label_column is not None:
        labels = table.filled(columns, label_column)
    elif config.label_pattern is not None:
        labels = _extracted(paths, config.label_pattern, "label")
    else:
        labels = folders.read_classes(paths, "parent_folder")
    splits = _named_splits(columns[config.split_column], config.split_column) if config.split_column else repeat(None)
    groups: Iterable[str | None] = repeat(None)
    if config.group_column is not None:
        groups = table.filled(columns, config.group_column)
    elif config.group_pattern is not None:
        groups = _extracted(paths, config.group_pattern, "group")
    extras = zip(*(columns[name] for name in config.extra_columns), strict=True) if config.extra_columns else repeat(())
    facts = zip(find_files(config.uri, paths), labels, splits, groups, extras, strict=False)
    return Found([_item(*fact) for fact in facts], 0, num_hidden)


def _scan_idx(config: SourceConfig) -> Found:
    listed, num_hidden = list_files(config.uri)
    files = {file.path: file for file in listed}
    pairs = idx.pair_up(list(files))
    chosen = list(compress(pairs, _chosen(config, [images for images, _ in pairs])))
    items = [item for images, labels in chosen for item in _idx_items(config, files[images], files[labels])]
    return Found(items, len(files) - 2 * len(pairs), num_hidden)


def _idx_items(config: SourceConfig, images: File, labels: File) -> Iterator[Item]:
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


def _item(file: File, label: str, split: Split | None, group: str | None, extra: tuple[str | None, ...] = ()) -> Item:
    return Item(file.path, file.uri, label, file.size_bytes, file.modified_ns, None, split, group, extra, file.reason)


def _chosen(config: SourceConfig, paths: Sequence[str]) -> list[bool]:
    """For each path, whether include and exclude choose it. Raises UserError when they choose none."""
    chosen = matches(paths, config.include) if config.include else [True] * len(paths)
    if config.exclude:
        excluded = matches(paths, config.exclude)
        chosen = [yes and not no for yes, no in zip(chosen, excluded, strict=True)]
    if config.include or config.exclude:
        log.info("source.include and source.exclude leave %d of %d files", sum(chosen), len(paths))
        if not any(chosen):
            raise UserError(f"source.include and source.exclude leave none of {len(paths)} files; correct the patterns")
    return chosen


def _extracted(paths: Sequence[str], pattern: str, group: str) -> list[str]:
    values = extract(paths, pattern, group)
    without = [path for path, value in zip(paths, values, strict=True) if not value]
    if without:
        raise UserError(
            f"source.{group}_pattern finds no {group} in {len(without)} of {len(paths)} paths (first: {without[0]!r}); "
            "correct the pattern, or leave such paths out by source.exclude"
        )
    return [value or "" for value in values]


def _named_splits(values: Sequence[str | None], column: str) -> list[Split | None]:
    wrong = [value for value in values if value and folders.named_split(value) is None]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(values)} rows have no split in {column} (first: {wrong[0]!r}); "
            f"expected {folders.WORDS}, or nothing for a split by hash"
        )
    return [folders.named_split(value) if value else None for value in values]
