"""IDX files, the format of MNIST: pairs of images and labels, plain or packed with gzip."""

from __future__ import annotations

import gzip
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from model import storage
from model.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGES, LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
_MAGIC = {IMAGES: 2051, LABELS: 2049}


def pair_up(uris: list[str]) -> list[tuple[str, str]]:
    """Pairs of (images, labels) among a folder's files, by what stands before `-images-` and `-labels-`.

    Raises UserError when one has no partner, or a set is there both plain and packed.
    """
    found = {kind: _by_stem(uris, kind) for kind in (IMAGES, LABELS)}
    if not found[IMAGES] or set(found[IMAGES]) != set(found[LABELS]):
        raise UserError(
            f"expected pairs of NAME{IMAGES} and NAME{LABELS} files (or .gz), found {len(found[IMAGES])} and "
            f"{len(found[LABELS])}: images of {sorted(found[IMAGES])}, labels of {sorted(found[LABELS])}"
        )
    return [(found[IMAGES][stem], found[LABELS][stem]) for stem in sorted(found[IMAGES])]


def _by_stem(uris: list[str], kind: str) -> dict[str, str]:
    by_stem: dict[str, str] = {}
    for uri in uris:
        stem, infix, rest = uri.rsplit("/", 1)[-1].partition(kind)
        if infix and rest in ("", ".gz"):
            if stem in by_stem:
                raise UserError(f"{stem}{kind} is there both plain and packed (.gz): keep one of the two")
            by_stem[stem] = uri
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
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{uri}: not an IDX file: its gzip archive is damaged ({error})") from error
    head = 4 * (1 + num_dimensions)
    found, *shape = struct.unpack(f">{1 + num_dimensions}I", data[:head]) if len(data) >= head else (0,)
    if found != _MAGIC[kind] or len(data) - head != int(np.prod(shape)):
        raise UserError(f"{uri}: not an IDX file of unsigned bytes with {num_dimensions} dimensions, or cut short")
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)
