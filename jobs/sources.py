"""The images a job starts from: listed on the driver, read in the tasks. Three layouts, one kind of item."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from jobs import idx
from model import storage
from model.errors import UserError, WorldError
from model.images import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobs.config import SourceConfig
    from model.manifest import Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be: a path that names it in the DataSet, where its bytes are, and its class name.

    `split` is None where the image's hash decides. All items of one `group` belong to one split. `extra` holds the
    values of the scan's `extra_columns`.
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


@dataclass(frozen=True)
class Scan:
    """All items of a source in the order of their paths, the class names in order, and files that were passed over."""

    items: list[Item]
    class_names: list[str]
    num_other_files: int
    extra_columns: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Changes whenever a file is added, removed, moved or written, or gets another class, split, group or extra."""
        digest = hashlib.sha256(repr(self.extra_columns).encode())
        for i in self.items:
            # A repr keeps neighbouring texts apart, whatever they hold, and takes names that are not UTF-8.
            facts = (i.path, i.class_name, i.size_bytes, i.modified_ns, i.split, i.group, i.extra)
            digest.update(repr(facts).encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class _File:
    path: PurePosixPath
    uri: str
    size_bytes: int
    modified_ns: int


def scan(config: SourceConfig) -> Scan:
    """List a source. Raises UserError for one that is missing, empty, or has fewer than two classes."""
    found = {"folders": _scan_folders, "table": _scan_table, "idx": _scan_idx}[config.layout](config)
    if not found.items:
        raise UserError(f"source {config.uri}: no images in its idx files")
    if len(found.class_names) < 2:
        raise UserError(
            f"source {config.uri}: only one class, {found.class_names[0]!r}; a classifier needs two or more: "
            "add a folder (or label) per class"
        )
    return found


def read_item(item: Item) -> bytes:
    """The image file's bytes of an item. Raises FileNotFoundError or WorldError when they can't be read."""
    if item.row is None:
        return storage.read_bytes(item.uri)
    stream = io.BytesIO()
    Image.fromarray(idx.read_images(item.uri, item.modified_ns)[item.row]).save(stream, "PPM")
    return stream.getvalue()


def _scan_folders(config: SourceConfig) -> Scan:
    files = _list(config)
    images = [file for file in files if file.path.suffix.lower() in SUFFIXES]
    if not images:
        seen = f"{len(files)} files, none of them an image" if files else "no files"
        raise UserError(f"source {config.uri}: {seen}; expected FOLDER/CLASS/IMAGE with {', '.join(sorted(SUFFIXES))}")
    loose = [file.path for file in images if len(file.path.parts) == 1]
    if loose:
        raise UserError(
            f"source {config.uri}: {len(loose)} images stand outside any class folder (first: {loose[0]}); "
            "put each image in a folder that names its class, or use source.layout=table"
        )
    return _scanned([_item(file, file.path.parts[0]) for file in images], len(files) - len(images))


def _item(file: _File, label: str) -> Item:
    return Item(_printable(str(file.path)), file.uri, _printable(label), file.size_bytes, file.modified_ns)


def _printable(name: str) -> str:
    # Linux takes any bytes as a file name; what is not UTF-8 is shown by its codes.
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _scanned(items: list[Item], num_other_files: int) -> Scan:
    items = sorted(items, key=lambda item: item.path)
    return Scan(items, sorted({item.class_name for item in items}), num_other_files)


def _list(config: SourceConfig) -> list[_File]:
    """All files below the source but hidden ones and those in hidden folders."""
    root = storage.local_path(config.uri)
    try:
        if root is None:
            return _list_store(config.uri)
        if not root.exists():
            raise UserError(f"source {config.uri}: no such folder; correct source.uri")
        if not root.is_dir():
            raise UserError(f"source {config.uri}: a file, not a folder; correct source.uri or source.layout")
        return list(_list_folder(root, PurePosixPath(), (root.resolve(),)))
    except OSError as error:
        raise WorldError(f"source {config.uri}: cannot be listed: {error}; check permission and network") from error


def _list_folder(folder: Path, below: PurePosixPath, parents: tuple[Path, ...]) -> Iterator[_File]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = below / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                real = Path(entry.path).resolve() if entry.is_symlink() else parents[-1] / entry.name
                if real in parents:
                    log.warning("%s leads back to a folder above it and is passed over", entry.path)
                else:
                    yield from _list_folder(Path(entry.path), path, (*parents, real))
            else:
                # A link to nowhere is listed: reading it then rejects and counts it.
                stat = entry.stat(follow_symlinks=entry.is_file())
                yield _File(path, entry.path, stat.st_size, stat.st_mtime_ns)


def _list_store(uri: str) -> list[_File]:
    system, root = storage.locate(uri)
    try:
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
    except FileNotFoundError:
        raise UserError(f"source {uri}: no such folder; correct source.uri") from None
    files = []
    for info in found:
        path = PurePosixPath(info.path).relative_to(root)
        if info.type == fs.FileType.File and not any(part.startswith(".") for part in path.parts):
            files.append(_File(path, storage.join(uri, str(path)), info.size, info.mtime_ns or 0))
    return files


def _scan_table(config: SourceConfig) -> Scan:
    table = _table(config)
    system, table_path = storage.locate(config.uri)
    folder = PurePosixPath(table_path).parent
    names, labels = _strings(table, config.path_column, config), _strings(table, config.label_column, config)
    paths = [os.path.normpath(folder / name) for name in names]
    if len(set(paths)) < len(paths):
        seen: set[str] = set()
        twice = next(path for path in paths if path in seen or seen.add(path))  # type: ignore[func-returns-value]
        raise UserError(f"source {config.uri}: the path {twice} stands in more than one row; keep one")
    infos = system.get_file_info(paths)
    missing = [info.path for info in infos if info.type != fs.FileType.File]
    if missing:
        raise UserError(
            f"source {config.uri}: {len(missing)} of {len(paths)} paths are no files (first: {missing[0]}); "
            "correct the table; relative paths start at its folder"
        )
    scheme = config.uri.partition("://")[0] + "://" if storage.local_path(config.uri) is None else ""
    return _scanned(
        [
            Item(name, scheme + info.path, label, info.size, info.mtime_ns or 0)
            for info, name, label in zip(infos, names, labels, strict=True)
        ],
        0,
    )


def _table(config: SourceConfig) -> pa.Table:
    if (path := storage.local_path(config.uri)) is not None and path.is_dir():
        raise UserError(f"source {config.uri}: a folder, not a table; correct source.uri or source.layout")
    # A CSV has no types: class 01 is not class 1.
    as_text = pa.csv.ConvertOptions(
        column_types={config.path_column: pa.string(), config.label_column: pa.string()}, strings_can_be_null=True
    )
    try:
        stream = io.BytesIO(storage.read_bytes(config.uri))
        if config.uri.endswith(".parquet"):
            return pq.read_table(stream)
        return pa.csv.read_csv(stream, convert_options=as_text)
    except FileNotFoundError:
        raise UserError(f"source {config.uri}: no such table; correct source.uri") from None
    except (pa.ArrowException, UnicodeDecodeError, KeyError) as error:
        raise UserError(f"source {config.uri}: neither CSV nor Parquet in UTF-8: {error}; correct the table") from error


def _strings(table: pa.Table, column: str, config: SourceConfig) -> list[str]:
    if table.column_names.count(column) != 1:
        number = "more than one" if column in table.column_names else "no"
        raise UserError(
            f"source {config.uri}: {number} column {column!r} among {', '.join(table.column_names)}; "
            "set source.path_column and source.label_column"
        )
    values = table[column].to_pylist()
    if not values:
        raise UserError(f"source {config.uri}: the table has no rows; add one per image")
    empty = sum(value is None or value == "" for value in values)
    if empty:
        raise UserError(f"source {config.uri}: {empty} of {len(values)} rows have no {column}; fill them in")
    return [str(value) for value in values]


def _scan_idx(config: SourceConfig) -> Scan:
    files = {file.uri: file for file in _list(config)}
    try:
        pairs = idx.pair_up(list(files))
    except UserError as error:
        raise UserError(f"source {config.uri}: {error}") from None
    items = [item for images, labels in pairs for item in _idx_items(files[images], labels)]
    return _scanned(items, len(files) - 2 * len(pairs))


def _idx_items(images: _File, labels_uri: str) -> Iterator[Item]:
    labels = idx.read_labels(labels_uri)
    pixels = idx.read_images(images.uri, images.modified_ns)
    if len(labels) != len(pixels):
        raise UserError(f"{labels_uri}: {len(labels)} labels for {len(pixels)} images of {images.uri}")
    for row, label in enumerate(labels):
        yield Item(f"{images.path}/{row:06d}", images.uri, f"{label}", pixels[row].nbytes, images.modified_ns, row)
