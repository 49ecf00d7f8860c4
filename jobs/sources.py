"""The images a job starts from: listed on the driver, read in the tasks. Three layouts, one kind of item."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from model import storage
from model.errors import UserError, WorldError
from model.images import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from jobs.config import SourceConfig

IDX_MAGIC_IMAGES, IDX_MAGIC_LABELS = 2051, 2049


@dataclass(frozen=True)
class Item:
    """One image to be: a path that names it in the DataSet, where its bytes are, and its class name."""

    path: str
    uri: str
    class_name: str
    size_bytes: int
    modified_ns: int
    row: int | None = None


@dataclass(frozen=True)
class Scan:
    """All items of a source in the order of their paths, the class names in order, and files that were passed over."""

    items: list[Item]
    class_names: list[str]
    num_other_files: int

    @property
    def fingerprint(self) -> str:
        """Changes whenever a file is added, removed, moved or written."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(f"{item.path}\0{item.class_name}\0{item.size_bytes}\0{item.modified_ns}\n".encode())
        return digest.hexdigest()[:32]


def scan(config: SourceConfig) -> Scan:
    """List a source. Raises UserError for one that is missing, empty, or has fewer than two classes."""
    found = {"folders": _scan_folders, "table": _scan_table, "idx": _scan_idx}[config.layout](config)
    if len(found.class_names) < 2:
        raise UserError(
            f"source {config.uri}: only one class, {found.class_names[0]!r}; a classifier needs two or more: "
            "add a folder (or label) per class"
        )
    return found


def read_item(item: Item) -> bytes:
    """The image file's bytes of an item. Raises OSError or WorldError when they can't be read."""
    if item.row is None:
        return storage.read_bytes(item.uri)
    stream = io.BytesIO()
    Image.fromarray(_idx_images(item.uri)[item.row]).save(stream, "PPM")
    return stream.getvalue()


def _scan_folders(config: SourceConfig) -> Scan:
    root, files = _list(config)
    images = [f for f in files if PurePosixPath(f.path).suffix.lower() in SUFFIXES]
    pairs = [(file, PurePosixPath(file.path).relative_to(root)) for file in images]
    if not pairs:
        seen = f"{len(files)} files, none of them an image" if files else "no files"
        raise UserError(f"source {config.uri}: {seen}; expected FOLDER/CLASS/IMAGE with {', '.join(sorted(SUFFIXES))}")
    loose = [relative for _, relative in pairs if len(relative.parts) == 1]
    if loose:
        raise UserError(
            f"source {config.uri}: {len(loose)} images stand outside any class folder (first: {loose[0]}); "
            "put each image in a folder that names its class, or use source.layout=table"
        )
    items = [_item(file, str(relative), file.path, relative.parts[0], root, config) for file, relative in pairs]
    return _scanned(items, len(files) - len(images))


def _item(file: fs.FileInfo, name: str, path: str, label: str, root: str, config: SourceConfig) -> Item:
    uri = path if storage.local_path(config.uri) is not None else storage.join(config.uri, path[len(root) :].strip("/"))
    return Item(name, uri, label, file.size, file.mtime_ns or 0)


def _scanned(items: list[Item], num_other_files: int) -> Scan:
    items = sorted(items, key=lambda item: item.path)
    return Scan(items, sorted({item.class_name for item in items}), num_other_files)


def _list(config: SourceConfig) -> tuple[str, list[fs.FileInfo]]:
    system, root = storage.locate(config.uri)
    try:
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
    except FileNotFoundError:
        raise UserError(f"source {config.uri}: no such folder; correct source.uri") from None
    except NotADirectoryError:
        raise UserError(f"source {config.uri}: a file, not a folder; correct source.uri or source.layout") from None
    except OSError as error:
        raise WorldError(f"source {config.uri}: cannot be listed: {error}; check permission and network") from error
    return root, [info for info in found if info.type == fs.FileType.File and not info.base_name.startswith(".")]


def _scan_table(config: SourceConfig) -> Scan:
    table = _table(config)
    system, table_path = storage.locate(config.uri)
    folder = PurePosixPath(table_path).parent
    paths = [str(folder / path) for path in _strings(table, config.path_column, config)]
    labels = _strings(table, config.label_column, config)
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"source {config.uri}: the path {twice} stands in more than one row; keep one")
    infos = system.get_file_info(paths)
    missing = [info.path for info in infos if info.type != fs.FileType.File]
    if missing:
        raise UserError(
            f"source {config.uri}: {len(missing)} of {len(paths)} paths are no files (first: {missing[0]}); "
            "correct the table; relative paths start at its folder"
        )
    rows = zip(infos, _strings(table, config.path_column, config), labels, strict=True)
    return _scanned([_item(info, name, info.path, label, str(folder), config) for info, name, label in rows], 0)


def _table(config: SourceConfig) -> pa.Table:
    try:
        stream = io.BytesIO(storage.read_bytes(config.uri))
        if config.uri.endswith(".parquet"):
            return pq.read_table(stream)
        return pa.csv.read_csv(stream)
    except FileNotFoundError:
        raise UserError(f"source {config.uri}: no such table; correct source.uri") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"source {config.uri}: neither CSV nor Parquet: {error}") from error


def _strings(table: pa.Table, column: str, config: SourceConfig) -> list[str]:
    if column not in table.column_names:
        raise UserError(
            f"source {config.uri}: no column {column!r} among {', '.join(table.column_names)}; "
            "set source.path_column and source.label_column"
        )
    values = table[column].to_pylist()
    empty = sum(value is None or value == "" for value in values)
    if empty or not values:
        raise UserError(f"source {config.uri}: {empty} of {len(values)} rows have no {column}; fill them in")
    return [str(value) for value in values]


def _scan_idx(config: SourceConfig) -> Scan:
    _, files = _list(config)
    by_kind = {kind: sorted(f.path for f in files if f"{kind}-ubyte" in f.base_name) for kind in _IDX_KINDS}
    if not by_kind["idx3"] or len(by_kind["idx3"]) != len(by_kind["idx1"]):
        raise UserError(
            f"source {config.uri}: expected pairs of *-images-idx3-ubyte and *-labels-idx1-ubyte files (or .gz), "
            f"found {len(by_kind['idx3'])} and {len(by_kind['idx1'])}"
        )
    infos = {file.path: file for file in files}
    items = [
        item
        for images, labels in zip(by_kind["idx3"], by_kind["idx1"], strict=True)
        for item in _idx_items(infos[images], labels)
    ]
    return _scanned(items, len(files) - 2 * len(by_kind["idx3"]))


_IDX_KINDS = ("idx3", "idx1")


def _idx_items(images: fs.FileInfo, labels_path: str) -> Iterator[Item]:
    labels = _idx(labels_path, IDX_MAGIC_LABELS, num_dimensions=1)
    pixels = _idx_images(images.path)
    if len(labels) != len(pixels):
        raise UserError(f"{labels_path}: {len(labels)} labels for {len(pixels)} images of {images.path}")
    for row, label in enumerate(labels):
        name = f"{images.base_name}/{row:06d}"
        yield Item(name, images.path, f"{label}", pixels[row].nbytes, images.mtime_ns or 0, row)


@lru_cache(maxsize=2)
def _idx_images(path: str) -> NDArray[np.uint8]:
    return _idx(path, IDX_MAGIC_IMAGES, num_dimensions=3)


def _idx(path: str, magic: int, *, num_dimensions: int) -> NDArray[np.uint8]:
    data = storage.read_bytes(path)
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    head = 4 * (1 + num_dimensions)
    found, *shape = struct.unpack(f">{1 + num_dimensions}I", data[:head]) if len(data) >= head else (0,)
    if found != magic or len(data) - head != int(np.prod(shape)):
        raise UserError(f"{path}: not an IDX file of unsigned bytes with {num_dimensions} dimensions, or cut short")
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)
