"""Files by URI: local paths and whatever stores pyarrow reaches (s3, gs, hdfs). A written file is whole or absent.

A local path is taken as it is. In a URI, odd characters are percent-encoded, and options of the store follow a `?`:
s3://bucket/folder?endpoint_override=http://127.0.0.1:9000&region=us-east-1 (pyarrow's `FileSystem.from_uri`).
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from ..errors import RetryableError, UserError
from .atomic_file import LocalFile

if TYPE_CHECKING:
    from collections.abc import Iterator

STORES = ("file", "s3", "s3a", "gs", "gcs", "hdfs", "viewfs")
# Below a file, at a folder, at a ring of links.
_NO_FILE = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def local_path(uri: str) -> Path | None:
    """The local path that a URI or plain path names, or None for a remote store."""
    name = _local_name(uri)
    return None if name is None else Path(name)


def _local_name(uri: str) -> str | None:
    scheme = urlsplit(uri).scheme if "://" in uri or uri.startswith("file:") else ""
    if not scheme:
        return uri
    return unquote(urlsplit(uri).path) if scheme == "file" else None


def absolute(uri: str) -> str:
    """`uri` with a relative local path made absolute against the working directory, `~` as the user's home.

    Raises UserError for a user who is not known, and for a URI with a password in it: URIs are logged and stored with
    what is made of them.
    """
    path = local_path(uri)
    if path is not None:
        try:
            return str(path.expanduser().absolute())
        except RuntimeError as error:
            raise UserError(f"{uri}: {error} Give the folder's path in full") from error
    if urlsplit(uri).password is not None:
        raise UserError("a URI must hold no password; give it by environment, such as AWS_SECRET_ACCESS_KEY")
    return uri


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a URI and the path in it. Raises UserError for a store that is not known."""
    path = local_path(uri)
    if path is not None:
        name = str(path.absolute())
        # Arrow takes no others.
        if (shown := os.fsencode(name).decode("utf-8", "backslashreplace")) != name:
            raise UserError(f"{shown}: a name that is not UTF-8; rename it")
        return _local(), name
    parts = urlsplit(uri)
    if parts.scheme not in STORES:
        raise UserError(f"{uri}: unknown store {parts.scheme!r}; use a local path or one of {', '.join(STORES)}")
    if parts.fragment:
        raise UserError(f"{uri}: a URI ends at #; write %23 where a name holds one")
    scheme = "s3" if parts.scheme == "s3a" else parts.scheme
    try:
        system, root = _store(parts._replace(scheme=scheme, path="/").geturl(), os.getpid())
    except pa.ArrowInvalid as error:
        raise UserError(f"{uri}: {error}; correct the URI") from error
    except OSError as error:
        raise RetryableError(
            f"{uri}: the store cannot be reached: {error}; check the address and credentials"
        ) from error
    below = unquote(parts.path).strip("/")
    return system, f"{root.rstrip('/')}/{below}" if below else root


@lru_cache
def _local() -> fs.LocalFileSystem:
    return fs.LocalFileSystem()


@lru_cache(maxsize=16)
def _store(uri: str, _process: int) -> tuple[fs.FileSystem, str]:
    # A client of S3 costs milliseconds and holds its connections: a task that reads a thousand files needs one, and a
    # process that is forked must not write into those of another.
    store: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
    return store


def join(uri: str, *names: str) -> str:
    """`uri` with further path segments, which are plain names: a URI gets them percent-encoded, before its options."""
    if "://" not in uri:
        return "/".join((uri.rstrip("/"), *names))
    parts = urlsplit(uri)
    return parts._replace(path="/".join((parts.path.rstrip("/"), *map(quote, names)))).geturl()


def read_bytes(uri: str, *, max_bytes: int = -1) -> bytes:
    """The content of a file, or its first `max_bytes` where that is not negative.

    Raises FileNotFoundError when there is no file, RetryableError when it cannot be read.
    """
    with translated("read", uri):
        if (local := _local_name(uri)) is not None:
            # No Path: for small images it costs as much as the reading.
            with open(local, "rb", opener=_open_at_once) as file:
                return file.read(max_bytes) or b""
        system, path = locate(uri)
        with system.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read(max_bytes if max_bytes >= 0 else None))


def _open_at_once(path: str, flags: int) -> int:
    # Otherwise opening a pipe that has come in a file's place would wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK)


def read_buffer(uri: str) -> pa.Buffer:
    """The content of a file, mapped into memory where it is local. Errors as `read_bytes`."""
    system, path = locate(uri)
    with translated("read", uri):
        if isinstance(system, fs.LocalFileSystem):
            with pa.memory_map(path) as mapped:
                return mapped.read_buffer()
        with system.open_input_file(path) as file:
            return file.read_buffer()


def open_file(uri: str) -> pa.NativeFile:
    """A file of which parts are read: `size()`, `read_at(num_bytes, first)`. Errors as `read_bytes`."""
    system, path = locate(uri)
    with translated("read", uri):
        return system.open_input_file(path)


def exists(uri: str) -> bool:
    """Whether there is a file at `uri`. Raises RetryableError when that is not known."""
    system, path = locate(uri)
    with translated("read", uri):
        return bool(system.get_file_info(path).is_file)


def list_entries(uri: str) -> list[fs.FileInfo]:
    """The files and folders directly in a folder; none where there is no folder. Raises RetryableError."""
    system, path = locate(uri)
    with translated("list", uri):
        entries: list[fs.FileInfo] = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return entries


def list_names(uri: str) -> list[str]:
    """Names of the files in a folder; none where there is no folder. Raises RetryableError."""
    return [entry.base_name for entry in list_entries(uri) if entry.is_file]


def list_modified_ns(uri: str) -> dict[str, int]:
    """The files in a folder by name, with the times of their last writing, in ns since 1970. Raises RetryableError."""
    return {entry.base_name: entry.mtime_ns or 0 for entry in list_entries(uri) if entry.is_file}


def list_sizes(uri: str) -> dict[str, int]:
    """The files in a folder by name, with their sizes in bytes. Raises RetryableError."""
    return {entry.base_name: entry.size for entry in list_entries(uri) if entry.is_file}


def check_writable(folder_uri: str) -> None:
    """Raise RetryableError now rather than after hours of work when nothing can be written to a folder."""
    probe = join(folder_uri, ".writable")
    write_bytes(probe, b"")
    delete(probe)


@contextmanager
def translated(verb: str, uri: str) -> Iterator[None]:
    """Raise RetryableError with the remedy for any OSError.

    But to read, list or delete what is not there is a FileNotFoundError, also where no file can be.
    """
    try:
        yield
    except OSError as error:
        if verb != "write" and isinstance(error, FileNotFoundError):
            raise
        if verb == "read" and error.errno in _NO_FILE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from error
        remedy = "check the path, permission and network"
        if verb == "write":
            remedy = "check permission and free space there, or choose another place"
        raise RetryableError(
            f"cannot {verb} {uri}: {error.strerror or error}; {remedy}, then repeat the command"
        ) from error


def write_bytes(uri: str, data: bytes | pa.Buffer) -> None:
    """Write a file so that a reader sees all of it or nothing, also after a crash.

    Local and hdfs: a temporary file beside it, then a rename; object stores publish a put as a whole. A file that was
    there is replaced at once, but see `replaces_at_once`. Raises RetryableError with the remedy when the store refuses.
    """
    system, path = locate(uri)
    with translated("write", uri):
        if isinstance(system, fs.LocalFileSystem):
            name = PurePosixPath(path).name
            with LocalFile(Path(path).parent, prefix=name) as file:
                file.write(data)
                file.publish(name)
        elif isinstance(system, fs.HadoopFileSystem):
            folder, name = PurePosixPath(path).parent, PurePosixPath(path).name
            system.create_dir(str(folder), recursive=True)
            unfinished = str(folder / f".{name}.{secrets.token_hex(8)}.tmp")
            _put(system, unfinished, data)
            system.move(unfinished, path)
        else:
            _put(system, path, data)


def replaces_at_once(uri: str) -> bool:
    """Whether a file that is written anew is there at any time. On hdfs Arrow deletes it before it renames the new one.

    For a moment, or after a crash between the two, there is none.
    """
    return not isinstance(locate(uri)[0], fs.HadoopFileSystem)


def is_unfinished(name: str) -> bool:
    """Whether a name is the temporary one of a file that is being written; a killed process leaves such files."""
    return name.startswith(".") and name.endswith(".tmp")


@contextmanager
def new_file(folder_uri: str) -> Iterator[NewFile]:
    """A file whose name is known when all of it is written: `write` its bytes, then `publish` it by the name.

    As whole as one by `write_bytes`, and with the same errors; one that is not published leaves nothing.
    """
    folder = local_path(folder_uri)
    with translated("write", folder_uri):
        if folder is None:
            yield _StoreFile(folder_uri)
        else:
            with LocalFile(folder.absolute()) as file:
                yield file


class _StoreFile:
    """In memory until it has its name: a store does not rename."""

    def __init__(self, folder_uri: str) -> None:
        self._folder_uri = folder_uri
        self._content = pa.BufferOutputStream()

    def write(self, data: bytes | pa.Buffer) -> None:
        """Append bytes."""
        self._content.write(data)

    def flush(self) -> None:
        """Do nothing: a store takes a file as a whole."""

    def publish(self, name: str) -> None:
        """Put it into the store."""
        write_bytes(join(self._folder_uri, name), self._content.getvalue())


NewFile = LocalFile | _StoreFile


def delete(uri: str) -> None:
    """Delete a file; one that is gone already is fine. Raises RetryableError."""
    system, path = locate(uri)
    with suppress(FileNotFoundError), translated("delete", uri):
        system.delete_file(path)


def _put(system: fs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    # Left to itself, pyarrow packs and unpacks by the file's name.
    with system.open_output_stream(path, compression=None) as stream:
        stream.write(data)
