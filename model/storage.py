"""Files by URI: local paths and whatever stores pyarrow reaches (s3, gs, hdfs). A written file is whole or absent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from .errors import UserError, WorldError

STORES = ("file", "s3", "s3a", "gs", "gcs", "hdfs", "viewfs")


def local_path(uri: str) -> Path | None:
    """The local path that a URI or plain path names, or None for a remote store."""
    scheme = urlsplit(uri).scheme if "://" in uri or uri.startswith("file:") else ""
    if not scheme:
        return Path(uri)
    return Path(unquote(urlsplit(uri).path)) if scheme == "file" else None


def absolute(uri: str) -> str:
    """`uri` with a relative local path made absolute against the working directory."""
    path = local_path(uri)
    return uri if path is None else str(path.expanduser().absolute())


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a URI and the path in it. Raises UserError for a store that is not known."""
    path = local_path(uri)
    if path is not None:
        return fs.LocalFileSystem(), str(path.absolute())
    scheme = urlsplit(uri).scheme
    if scheme not in STORES:
        raise UserError(f"{uri}: unknown store {scheme!r}; use a local path or one of {', '.join(STORES)}")
    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri.replace("s3a://", "s3://", 1))
    except (pa.ArrowInvalid, OSError) as error:
        raise WorldError(f"{uri}: the store cannot be reached: {error}; check the address and credentials") from error
    return found


def join(uri: str, *names: str) -> str:
    """`uri` with further path segments."""
    return "/".join((uri.rstrip("/"), *names))


def read_bytes(uri: str) -> bytes:
    """The content of a file. Raises FileNotFoundError when there is none, WorldError when it cannot be read."""
    try:
        if (local := local_path(uri)) is not None:
            return local.read_bytes()
        system, path = locate(uri)
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _refused("read", uri, error) from error


def read_buffer(uri: str) -> pa.Buffer:
    """The content of a file, mapped into memory where it is local. Errors as `read_bytes`."""
    system, path = locate(uri)
    try:
        if isinstance(system, fs.LocalFileSystem):
            with pa.memory_map(path) as mapped:
                return mapped.read_buffer()
        with system.open_input_file(path) as file:
            return file.read_buffer()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _refused("read", uri, error) from error


def exists(uri: str) -> bool:
    """Whether a file stands at `uri`. Raises WorldError when that can't be found out."""
    system, path = locate(uri)
    try:
        return bool(system.get_file_info(path).type == fs.FileType.File)
    except OSError as error:
        raise _refused("read", uri, error) from error


def list_names(uri: str) -> list[str]:
    """Names of the files in a folder; none where there is no folder. Raises WorldError."""
    system, path = locate(uri)
    try:
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except OSError as error:
        raise _refused("list", uri, error) from error
    return [info.base_name for info in found if info.type == fs.FileType.File]


def check_writable(folder_uri: str) -> None:
    """Raise WorldError now rather than after hours of work when nothing can be written to a folder."""
    probe = join(folder_uri, ".writable")
    write_bytes(probe, b"")
    delete(probe)


def _refused(verb: str, uri: str, error: OSError) -> WorldError:
    reason = error.strerror or error
    return WorldError(f"cannot {verb} {uri}: {reason}; check the path, permission and network, then repeat the command")


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, also after a crash.

    Local and hdfs: a temporary file beside it, then a rename; object stores publish a put as a whole.
    Raises WorldError with the remedy when the store refuses.
    """
    system, path = locate(uri)
    try:
        if isinstance(system, fs.LocalFileSystem):
            _write_local(Path(path), data)
        elif isinstance(system, fs.HadoopFileSystem):
            system.create_dir(str(PurePosixPath(path).parent), recursive=True)
            _put(system, f"{path}.{os.getpid()}.tmp", data)
            system.move(f"{path}.{os.getpid()}.tmp", path)
        else:
            _put(system, path, data)
    except OSError as error:
        raise WorldError(
            f"cannot write {uri}: {error.strerror or error}; "
            "check permission and free space there, or choose another place, then repeat the command"
        ) from error


def delete(uri: str) -> None:
    """Delete a file; one that is gone already is fine. Raises WorldError."""
    system, path = locate(uri)
    try:
        system.delete_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refused("delete", uri, error) from error


def _put(system: fs.FileSystem, path: str, data: bytes) -> None:
    with system.open_output_stream(path) as stream:
        stream.write(data)


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
