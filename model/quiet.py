"""Pillow without its own limit on pixels and without words on stderr, for as long as one of us decodes."""

from __future__ import annotations

import ctypes
import logging
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = threading.Lock()
_num_decoding = 0
_pillows_limit: int | None = None


@contextmanager
def pillow() -> Iterator[None]:
    """Lift Pillow's limit, which is a global of the process: ours comes from the config. Threads may overlap."""
    global _num_decoding, _pillows_limit
    _silence()
    with _LOCK:
        if not _num_decoding:
            _pillows_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _num_decoding += 1
    try:
        yield
    finally:
        with _LOCK:
            _num_decoding -= 1
            if not _num_decoding:
                Image.MAX_IMAGE_PIXELS = _pillows_limit


@cache
def _silence() -> None:
    """A damaged file is told of by its rejection. libtiff, which Pillow has loaded, would write to stderr as well."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    for path in _loaded("libtiff"):
        ctypes.CDLL(path).TIFFSetErrorHandler(None)


def _loaded(name: str) -> set[str]:
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return {line.split(maxsplit=5)[5] for line in lines if Path(line.split(maxsplit=5)[-1]).name.startswith(name)}
