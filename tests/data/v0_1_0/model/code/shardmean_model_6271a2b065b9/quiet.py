"""Pillow without its own limits on pixels and single texts and without words on stderr, while one of us decodes."""

from __future__ import annotations

import ctypes
import logging
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, PngImagePlugin

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = threading.Lock()
_num_decoding = 0
_pillows_limits: tuple[int | None, int] = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK


@contextmanager
def pillow() -> Iterator[None]:
    """Lift limits of Pillow, which are globals of the process. Threads may overlap.

    The limit on pixels comes from our config. A packed text of PNG (an editor's notes, say) is no reason to reject the
    picture; Pillow's limit on all texts of a file, 64 MiB, stays.
    """
    global _num_decoding, _pillows_limits
    _silence()
    with _LOCK:
        if not _num_decoding:
            _pillows_limits = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = None, PngImagePlugin.MAX_TEXT_MEMORY
        _num_decoding += 1
    try:
        yield
    finally:
        with _LOCK:
            _num_decoding -= 1
            if not _num_decoding:
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = _pillows_limits


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
