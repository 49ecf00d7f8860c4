"""Pillow without its own limits on pixels and single texts, while one of us decodes."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image, PngImagePlugin

if TYPE_CHECKING:
    from collections.abc import Iterator

# A damaged file is reported by its rejection: where no log is set up, Python would print Pillow's to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_LOCK = threading.Lock()
_num_decoding = 0
_pillows_limits: tuple[int | None, int] = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK


@contextmanager
def pillow_limits_lifted() -> Iterator[None]:
    """Lift limits of Pillow, which are globals of the process. Threads may overlap.

    The limit on pixels comes from our config. A packed text of PNG (an editor's notes, say) is no reason to reject the
    picture; Pillow's limit on all texts of a file, 64 MiB, stays.
    """
    global _num_decoding, _pillows_limits
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
