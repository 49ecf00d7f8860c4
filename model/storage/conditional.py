"""Conditional writes: a file is written only while it is as it was last seen, so that no newer one is lost.

A local disk and S3 decide at the write itself, however long ago the file was looked at. All other stores are looked at
just before the write, which is best effort: of two that write at once, the later may replace the earlier unseen.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from pyarrow import fs

from . import filesystem
from .atomic_file import LocalFile

if TYPE_CHECKING:
    from collections.abc import Iterator

# What S3 answers where the file has changed, or is being written by another process at this moment.
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)


def is_exact(uri: str) -> bool:
    """Whether the store decides at the write itself: a local disk, S3."""
    return isinstance(filesystem.locate(uri)[0], (fs.LocalFileSystem, fs.S3FileSystem))


def version_of(uri: str) -> str | None:
    """A text that differs when a file's content differs; None where there is no file. Raises RetryableError."""
    if isinstance(filesystem.locate(uri)[0], fs.S3FileSystem):
        return _s3_version(uri)
    try:
        return hashlib.sha256(filesystem.read_bytes(uri)).hexdigest()
    except FileNotFoundError:
        return None


def write_if_unchanged(uri: str, data: bytes, version: str | None) -> bool:
    """Write a whole file if its version is still this one (None: if there is no file). False where it is not.

    Raises RetryableError when the store refuses.
    """
    system, path = filesystem.locate(uri)
    if isinstance(system, fs.S3FileSystem):
        return _put_s3(uri, data, version)
    if not isinstance(system, fs.LocalFileSystem):
        return _compare_and_write(uri, data, version)
    with filesystem.translated("write", uri):
        if version is None:
            with LocalFile(Path(path).parent, prefix=Path(path).name) as file:
                file.write(data)
                return file.publish_new(Path(path).name)
        with _locked(Path(path)) as is_ours:
            return is_ours and _compare_and_write(uri, data, version)


def _compare_and_write(uri: str, data: bytes, version: str | None) -> bool:
    if version_of(uri) != version:
        return False
    filesystem.write_bytes(uri, data)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """The right to replace a file, by a lock on the file itself; false where another process has or had it.

    Where the disk knows no locks (some network mounts), every process gets the right.
    """
    try:
        handle = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        yield _lock(handle) and path.stat().st_ino == os.fstat(handle).st_ino  # it may have been replaced since
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _s3_version(uri: str) -> str | None:
    client, at = _s3(uri)
    with filesystem.translated("read", uri), _as_os_errors():
        try:
            return str(client.head_object(**at)["ETag"])
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] != "404":
                raise
            return None


def _put_s3(uri: str, data: bytes, version: str | None) -> bool:
    client, at = _s3(uri)
    condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
    with filesystem.translated("write", uri), _as_os_errors():
        try:
            client.put_object(**at, Body=data, **condition)
        except client.exceptions.ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NotImplemented":  # by some stores that are like S3
                return _compare_and_write(uri, data, version)
            if code not in _CHANGED:
                raise
            # A request whose answer was lost is sent again, and then meets what it wrote itself.
            with suppress(FileNotFoundError):
                return filesystem.read_bytes(uri) == data
            return False
        return True


@contextmanager
def _as_os_errors() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error


def _s3(uri: str) -> tuple[Any, dict[str, str]]:
    """A client of S3, and the names of bucket and key."""
    system, path = filesystem.locate(uri)
    bucket, _, key = path.partition("/")
    return _client(urlsplit(uri).query, system.region), {"Bucket": bucket, "Key": key}


@lru_cache(maxsize=16)
def _client(query: str, region: str) -> Any:
    """A client of the server that pyarrow means by a URI's options; both find credentials in the same places."""
    from boto3.session import Session
    from botocore.config import Config

    options = {key: values[-1] for key, values in parse_qs(query).items()}
    endpoint = options.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
    verify = options.get("tls_ca_file_path") or options.get("tls_verify_certificates") != "false"
    # Stores that are like S3 may not know the checksums that newer clients add unasked.
    config = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    return Session().client("s3", endpoint_url=endpoint, region_name=region or None, verify=verify, config=config)
