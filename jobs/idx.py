"""IDX files, the format of MNIST: pairs of images and labels, plain or packed with gzip."""

from __future__ import annotations

import gzip
import io
import math
import re
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from model import storage
from model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.manifest import Split

IMAGES, LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
# Some unpack it to train-images.idx3-ubyte.
_NAME = re.compile(r"(?P<stem>.*)-(?P<kind>images[-.]idx3|labels[-.]idx1)-ubyte(?:\.gz)?", re.DOTALL)
_MAGIC = {IMAGES: 2051, LABELS: 2049}
# Deflate packs up to 1032 times, digits (MNIST) 5 times: what claims much more would fill the driver's memory.
_MAX_PACKING = 100
_FREE_BYTES = 64 * 2**20
_SPLITS: dict[str, Split] = {"train": "train", "validation": "validation", "test": "test", "t10k": "test"}


def pair_up(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of (images, labels) among a folder's files, by what stands before `-images-` and `-labels-`.

    Raises UserError when one has no partner, or a set is there both plain and packed.
    """
    found = {kind: _by_stem(paths, kind) for kind in (IMAGES, LABELS)}
    if not found[IMAGES] or set(found[IMAGES]) != set(found[LABELS]):
        raise UserError(
            f"expected pairs of NAME{IMAGES} and NAME{LABELS} files (or .gz), found {len(found[IMAGES])} and "
            f"{len(found[LABELS])}: images of {sorted(found[IMAGES])}, labels of {sorted(found[LABELS])}"
        )
    return [(found[IMAGES][stem], found[LABELS][stem]) for stem in sorted(found[IMAGES])]


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


@lru_cache(maxsize=2)
def read_images(uri: str, modified_ns: int) -> NDArray[np.uint8]:  # noqa: ARG001 - a new file is read anew
    """Images uint8 (N, H, W). Raises UserError for what is no such file or is damaged."""
    return _read(uri, IMAGES, num_dimensions=3)


def read_labels(uri: str) -> NDArray[np.uint8]:
    """Labels uint8 (N,). Raises UserError for what is no such file or is damaged."""
    return _read(uri, LABELS, num_dimensions=1)


def _read(uri: str, kind: str, *, num_dimensions: int) -> NDArray[np.uint8]:
    data = storage.read_bytes(uri)
    is_packed = data[:2] == b"\x1f\x8b"
    head_bytes = 4 * (1 + num_dimensions)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) if is_packed else io.BytesIO(data) as stream:
            head = stream.read(head_bytes)
            found, *shape = struct.unpack(f">{1 + num_dimensions}I", head) if len(head) == head_bytes else (0,)
            # No more is unpacked than the head tells, and it is believed only as far as the file's size makes likely.
            is_whole = found == _MAGIC[kind] and (is_packed or head_bytes + math.prod(shape) == len(data))
            if is_whole and is_packed:
                _check_packing(uri, num_bytes=math.prod(shape), packed_bytes=len(data))
            values = stream.read(math.prod(shape) + 1) if is_whole else b""
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{uri}: not an IDX file: its gzip archive is damaged ({error})") from error
    if not is_whole or len(values) != math.prod(shape):
        raise UserError(f"{uri}: not an IDX file of unsigned bytes with {num_dimensions} dimensions, or cut short")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _check_packing(uri: str, *, num_bytes: int, packed_bytes: int) -> None:
    if num_bytes > max(_FREE_BYTES, _MAX_PACKING * packed_bytes):
        raise UserError(
            f"{uri}: {packed_bytes} bytes that would unpack to {num_bytes}, more than {_MAX_PACKING} times as much: "
            "not an IDX file, or unpack it yourself (gunzip)"
        )
