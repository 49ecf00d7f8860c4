"""Writes a local file so that readers see all of it or nothing: it has a temporary name until it is on the disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import pyarrow as pa


class LocalFile:
    """Write bytes, then publish it by its name; it is deleted if it was not published when the `with` block ends."""

    def __init__(self, folder: Path, *, prefix: str = "new") -> None:
        """Begin a file in a folder, which is created where there is none. All methods raise OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        handle, name = tempfile.mkstemp(prefix=f".{prefix}.", suffix=".tmp", dir=folder)
        self._file, self._path = os.fdopen(handle, "wb"), Path(name)
        self._begun = 0

    def write(self, data: bytes | pa.Buffer) -> None:
        """Append bytes."""
        self._file.write(data)

    def flush(self) -> None:
        """Let the disk begin to write what there is so far, without waiting for it."""
        self._file.flush()
        begun, self._begun = self._begun, self._file.tell()
        if hasattr(os, "posix_fadvise"):  # not everywhere
            # Linux answers "not needed" by writing; it forgets only what is on the disk already, and this is not.
            os.posix_fadvise(self._file.fileno(), begun, self._begun - begun, os.POSIX_FADV_DONTNEED)

    def publish(self, name: str) -> None:
        """Wait for the disk and give the file its name, in place of one that had it."""
        self._finish()
        self._path.replace(self._folder / name)

    def publish_new(self, name: str) -> bool:
        """Give the file its name, whole, unless another has it: then False. The disk must know hard links."""
        self._finish()
        try:
            (self._folder / name).hardlink_to(self._path)
        except FileExistsError:
            return False
        return True

    def _finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.chmod(0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._file.close()
        finally:
            self._path.unlink(missing_ok=True)
