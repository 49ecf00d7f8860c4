"""The files of a source, whatever they are: all below a folder, or those that a table names."""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import re
from stat import S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
import pyarrow as pa
from pyarrow import fs

from shardmean.jobs.common.arrow_tables import Rows, batches
from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.vectorize.source.items import ITEMS
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardmean.jobs.config.uris import AllowedRoots

MAX_PATH = 300
# Why a listed path cannot be read: there is nothing; or there is a folder, pipe, socket or device.
MISSING, NOT_A_FILE = "missing", "not_a_file"
# A path up to its first name with a dot before it.
_HIDDEN = re.compile(r"(?:(?!\.)[^/]*/)*\.[^/]*")
log = logging.getLogger(__name__)


class File(NamedTuple):
    """One file: its path below the source, where it is, its size, and when it was written.

    `uri` is None where it is the path below the source's.
    With a `reason` (MISSING or NOT_A_FILE) it is no file: size and time are 0, and it must not be opened.
    """

    path: str
    uri: str | None
    size_bytes: int
    modified_ns: int
    reason: str | None = None


FILES = pa.schema([ITEMS.field(name) for name in File._fields])


class Listing(NamedTuple):
    """The files below a folder, `root`: a `File` in each row of a table (FILES). Hidden ones are only counted.

    Hidden is what has a name with a dot before it, file or folder; what is in a hidden folder is neither listed nor
    counted.
    """

    files: pa.Table
    num_hidden: int
    root: str


def list_files(uri: str, allowed: AllowedRoots) -> Listing:
    """All files below a folder but hidden ones and those in hidden folders. Raises UserError and RetryableError."""
    root = filesystem.local_path(uri)
    try:
        if root is None:
            return _list_store(uri)
        if not root.exists():
            raise UserError("no such folder; correct source.uri")
        if not root.is_dir():
            raise UserError("a file, not a folder; correct source.uri or source.layout")
        return _list_folder(str(root), allowed)
    except OSError as error:
        raise RetryableError(f"source {uri}: cannot be listed: {error}; check permission and network") from error


def _list_folder(root: str, allowed: AllowedRoots) -> Listing:
    files = Rows(FILES)
    start = f"{root.rstrip('/')}/"
    num_hidden = 0
    waiting = [(root, "")]
    listed: set[tuple[int, int]] = set()
    while waiting:
        folder, below = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116 - strings are several times faster than paths
            entries = os.scandir(folder)
        except FileNotFoundError:
            _warn(folder, "vanished while the source was listed")
            continue
        here = (status.st_dev, status.st_ino)
        if here in listed:
            _warn(folder, "is a folder that was listed already, and is left out")
            entries.close()
            continue
        listed.add(here)
        with entries:
            for entry in entries:
                path = below + _printable(entry.name)
                if entry.name.startswith("."):
                    num_hidden += 1
                    continue
                if entry.is_symlink():
                    allowed.check(entry.path)
                if entry.is_symlink() and _leads_inside(entry.path, root):
                    _warn(entry.path, "leads to a folder of the source itself, or above it, and is left out")
                elif _is_folder(entry):
                    waiting.append((entry.path, f"{path}/"))
                elif (file := _file(entry, path, start)) is not None:
                    files.append(file)
    return Listing(files.table(), num_hidden, root)


def _warn(path: str, what: str) -> None:
    log.warning("%s %s", truncate_printable(path, MAX_PATH), what)


def _leads_inside(link: str, root: str) -> bool:
    """Whether a link leads to a folder of the source or above it: its files would be listed twice and more."""
    if not os.path.isdir(link):  # noqa: PTH112 - strings are several times faster than paths
        return False
    real, top = os.path.realpath(link), os.path.realpath(root)
    return f"{real}/".startswith(f"{top}/") or f"{top}/".startswith(f"{real}/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _file(entry: os.DirEntry[str], path: str, start: str) -> File | None:
    try:
        status = _stat(entry)
    except FileNotFoundError:
        _warn(entry.path, "vanished while the source was listed")
        return None
    uri = None if entry.path == start + path else entry.path
    if not S_ISREG(status.st_mode):
        return File(path, uri, 0, 0, MISSING if S_ISLNK(status.st_mode) else NOT_A_FILE)
    return File(path, uri, status.st_size, status.st_mtime_ns)


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        if entry.is_symlink() and error.errno in (errno.ELOOP, errno.ENOENT):
            # A broken link, or one in a ring, is listed as itself.
            return entry.stat(follow_symlinks=False)
        raise


def _printable(name: str) -> str:
    # Linux takes any bytes as a file name; what is not UTF-8 is shown by its codes.
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def _list_store(uri: str) -> Listing:
    system, root = filesystem.locate(uri)
    try:
        infos = system.get_file_info(fs.FileSelector(root, recursive=True))
    except FileNotFoundError:
        raise UserError("no such folder; correct source.uri") from None
    except pa.ArrowInvalid as error:
        raise UserError(f"a key in it is no path: {error}; rename it, or choose a folder without it") from error
    except OSError as error:
        if "NO_SUCH_BUCKET" in str(error):
            raise UserError("no such bucket; correct source.uri") from error
        raise
    start = len(root.rstrip("/")) + 1
    files = Rows(FILES)
    hidden: set[str] = set()
    for info in infos:
        path = info.path[start:]
        if at := _HIDDEN.match(path):
            hidden.add(at[0])
        elif info.is_file:
            files.append(File(path, None, info.size, info.mtime_ns or 0))
    return Listing(files.table(), len(hidden), uri)


def find_files(table_uri: str, names: pa.LargeStringArray, allowed: AllowedRoots) -> pa.Table:
    """The files (FILES) that a table names: by a URI, from the root of its store, or from the table's folder.

    Those that are not there have a reason. Raises UserError when none is there, one is named twice or is not
    allowed, RetryableError when the store can't be asked.
    """
    folder_uri = _parent(table_uri)
    resolved = (allowed.check(_resolved(folder_uri, name)) for some in batches(names) for name in some)
    uris = pa.array((uri.encode() for uri in resolved), pa.large_binary())
    # Codes are numbered by first appearance: the first that is not its row's number has appeared before.
    codes_N = uris.dictionary_encode().indices.to_numpy()
    repeated = np.flatnonzero(codes_N != np.arange(len(codes_N)))
    if len(repeated):
        raise UserError(f"the path {uris[repeated[0]].as_py().decode()} is in more than one row; keep one")
    files = Rows(FILES)
    for some, encoded in zip(batches(names), batches(uris), strict=True):
        batch = [uri.decode() for uri in encoded]
        for name, uri, info in zip(some, batch, _infos(batch), strict=True):
            if info.is_file:
                files.append(File(name, uri, info.size, info.mtime_ns or 0))
            else:
                reason = MISSING if info.type == fs.FileType.NotFound else NOT_A_FILE
                files.append(File(name, uri, 0, 0, reason))
    table = files.table()
    if not table["reason"].null_count:
        raise UserError(
            f"none of its {len(names)} paths is a file (first: {uris[0].as_py().decode()}); "
            "correct the table; relative paths start at its folder"
        )
    return table


def _parent(uri: str) -> str:
    if (local := filesystem.local_path(uri)) is not None:
        return str(local.parent)
    parts = urlsplit(uri)
    return parts._replace(path=posixpath.dirname(parts.path.rstrip("/"))).geturl()


def _resolved(folder_uri: str, name: str) -> str:
    if "://" in name:
        return filesystem.absolute(name)
    if "://" not in folder_uri:
        return os.path.normpath(f"{folder_uri}/{name}" if not name.startswith("/") else name)
    parts = urlsplit(folder_uri)
    return parts._replace(path=posixpath.normpath(posixpath.join(f"{parts.path}/", quote(name)))).geturl()


def _infos(uris: Sequence[str]) -> list[fs.FileInfo]:
    # One request to each store, which it answers for many files at once.
    located = [filesystem.locate(uri) for uri in uris]
    by_store: dict[int, list[int]] = {}
    for number, (system, _) in enumerate(located):
        by_store.setdefault(id(system), []).append(number)
    infos: dict[int, fs.FileInfo] = {}
    try:
        for numbers in by_store.values():
            system = located[numbers[0]][0]
            infos |= zip(numbers, system.get_file_info([located[number][1] for number in numbers]), strict=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"a path is no path: {error}; correct the table") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"a path is too long: {str(error)[:200]}; correct the table") from error
        raise RetryableError(f"the table's files cannot be looked up: {error}; check permission and network") from error
    return [infos[number] for number in range(len(uris))]
