"""IDX files, the format of MNIST: pairs of images and labels, plain or packed with gzip."""

from __future__ import annotations

import gzip
import math
import re
import struct
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from shardmean.model.dataset.manifest import Split

IMAGES, LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
# Some unpack it to train-images.idx3-ubyte.
_NAME = re.compile(r"(?P<stem>.*)-(?P<kind>images[-.]idx3|labels[-.]idx1)-ubyte(?:\.gz)?", re.DOTALL)
_MAGIC = {IMAGES: 2051, LABELS: 2049}
# Deflate packs up to 1032 times, digits (MNIST) 5 times: what claims much more would fill the driver's memory.
_MAX_PACKING = 100
_FREE_BYTES = 64 * 2**20
# A file of a store that is read in one request rather than one for each image: MNIST's has 47 MB.
_WHOLE_BYTES = 64 * 2**20
_OPENING = threading.Lock()
_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "test": "test", "t10k": "test"}


def pair_up(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of (images, labels) among a folder's files, by what is before `-images-` and `-labels-`.

    Raises UserError when one has no partner, or a set is there both plain and packed.
    """
    images, labels = _by_stem(paths, IMAGES), _by_stem(paths, LABELS)
    if not images or images.keys() != labels.keys():
        raise UserError(
            f"expected pairs of NAME{IMAGES} and NAME{LABELS} files (or .gz), found {len(images)} and "
            f"{len(labels)}: images of {sorted(images)}, labels of {sorted(labels)}"
        )
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def split_of(path: str) -> Split:
    """The split that a file's name begins with: train, validation, test or t10k. Raises UserError for another."""
    stem = _stem(path, IMAGES) or path
    word = re.split("[-/]", stem)[-1]
    if word not in _SPLITS:
        raise UserError(
            f"source.split_files: {path} is of no split; expected {' or '.join(_SPLITS)} before {IMAGES}; "
            "rename it, or set source.split_files=false"
        )
    return _SPLITS[word]


def _stem(path: str, kind: str) -> str | None:
    folder, slash, name = path.rpartition("/")
    match = _NAME.fullmatch(name)
    return f"{folder}{slash}{match['stem']}" if match and match["kind"][:6] == kind[1:7] else None


def _by_stem(paths: Sequence[str], kind: str) -> dict[str, str]:
    by_stem: dict[str, str] = {}
    for path in paths:
        stem = _stem(path, kind)
        if stem is not None:
            if stem in by_stem:
                raise UserError(f"{stem}{kind} is there twice, such as plain and packed (.gz): keep one of the two")
            by_stem[stem] = path
    return by_stem


@dataclass(frozen=True)
class IdxFile:
    """An IDX file of items of unsigned bytes; `shape` is their number and the shape of one.

    Of a plain file, parts are read. A packed one is in memory, and so is a small one of a store, where each read is a
    request.
    """

    uri: str
    shape: tuple[int, ...]
    _read_at: Callable[[int, int], bytes]

    @property
    def item_bytes(self) -> int:
        """Bytes of one item."""
        return math.prod(self.shape[1:])

    def read(self, first: int, num_items: int = 1) -> bytes:
        """The bytes of items, fewer where the file was cut since it was opened. Raises RetryableError."""
        try:
            return self._read_at(num_items * self.item_bytes, first * self.item_bytes)
        except OSError as error:
            raise RetryableError(f"cannot read {self.uri}: {error}; check permission and network") from error


def open_images(uri: str, modified_ns: int) -> IdxFile:
    """Images of a shape (height, width). Errors as `open_labels`."""
    with _OPENING:  # a task's threads all want the same file at once
        return _open_images(uri, modified_ns)


@lru_cache(maxsize=2)
def _open_images(uri: str, modified_ns: int) -> IdxFile:  # noqa: ARG001 - a new file is opened anew
    return _open(uri, IMAGES, num_dimensions=3)


def open_labels(uri: str) -> IdxFile:
    """Labels of one byte.

    Raises UserError for no such file or a damaged one, FileNotFoundError when it is gone, RetryableError when it can't
    be read.
    """
    return _open(uri, LABELS, num_dimensions=1)


def _open(uri: str, kind: str, *, num_dimensions: int) -> IdxFile:
    file = filesystem.open_file(uri)
    head_bytes = 4 * (1 + num_dimensions)
    try:
        num_bytes = file.size()
        if file.read_at(2, 0) == b"\x1f\x8b":
            shape, data = _unpacked(uri, file, kind, head_bytes)
            return IdxFile(uri, shape, lambda size, first: data[first : first + size])
        shape = _shape(uri, file.read_at(head_bytes, 0), kind, head_bytes)
        expected = head_bytes + math.prod(shape)
        if num_bytes != expected:
            promised = f"{' x '.join(map(str, shape))} bytes after a head of {head_bytes}, so {expected} in all"
            raise UserError(f"{uri}: not an IDX file, or cut short: its head says {promised}; it has {num_bytes}")
        if filesystem.local_path(uri) is None and num_bytes <= _WHOLE_BYTES:
            data = file.read_at(num_bytes, 0)[head_bytes:]
            return IdxFile(uri, shape, lambda size, first: data[first : first + size])
    except OSError as error:
        raise RetryableError(f"cannot read {uri}: {error}; check permission and network") from error
    return IdxFile(uri, shape, lambda size, first: file.read_at(size, head_bytes + first))


def _shape(uri: str, head: bytes, kind: str, head_bytes: int) -> tuple[int, ...]:
    magic, *shape = struct.unpack(f">{head_bytes // 4}I", head) if len(head) == head_bytes else (0,)
    if magic != _MAGIC[kind]:
        raise UserError(f"{uri}: not an IDX file of unsigned bytes with {head_bytes // 4 - 1} dimensions, or cut short")
    return tuple(shape)


def _unpacked(uri: str, file: pa.NativeFile, kind: str, head_bytes: int) -> tuple[tuple[int, ...], bytes]:
    packed_bytes = file.size()
    file.seek(0)
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            shape = _shape(uri, stream.read(head_bytes), kind, head_bytes)
            # No more is unpacked than the head says, and it is believed only as far as the file's size makes likely.
            _check_packing(uri, num_bytes=math.prod(shape), packed_bytes=packed_bytes)
            data = stream.read(math.prod(shape) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{uri}: not an IDX file: its gzip archive is damaged ({error})") from error
    if len(data) != math.prod(shape):
        raise UserError(f"{uri}: not an IDX file, or cut short: its head says {' x '.join(map(str, shape))} bytes")
    return shape, data


def _check_packing(uri: str, *, num_bytes: int, packed_bytes: int) -> None:
    if num_bytes > max(_FREE_BYTES, _MAX_PACKING * packed_bytes):
        raise UserError(
            f"{uri}: {packed_bytes} bytes that would unpack to {num_bytes}, more than {_MAX_PACKING} times as much: "
            "not an IDX file, or unpack it yourself (gunzip)"
        )
