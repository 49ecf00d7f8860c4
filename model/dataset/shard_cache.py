"""A cache of shards on a worker machine's own disk, for DataSets in remote stores; its workers share it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RetryableError
from ..storage import filesystem
from .manifest import SHARD_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

log = logging.getLogger(__name__)
# A worker that was killed while it wrote leaves a temporary file, which must go like any other.
_OURS = re.compile(rf"^\.?{SHARD_NAME.strip('^$')}(\.\w+\.tmp)?$")


def cache_folder() -> Path:
    """The user's own folder in SHARDMEAN_CACHE_DIR, else in the system's folder for temporary files."""
    parent = os.environ.get("SHARDMEAN_CACHE_DIR") or tempfile.gettempdir()
    return Path(parent) / f"shardmean-shards-{os.getuid()}"


class ShardCache:
    """Keeps at most `max_bytes` of shards, the most recently used. A shard's name holds the hash of its content."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def read(self, name: str, fetch: Callable[[], pa.Buffer], is_whole: Callable[[pa.Buffer], bool]) -> pa.Buffer:
        """A shard's content, mapped into memory from the cache or fetched and kept.

        What `is_whole` does not accept is fetched anew. If the cache is not writable, or belongs to another user, it is
        bypassed: what is mapped from it could be changed at any time.
        """
        try:
            self._make_folder()
        except OSError as error:
            log.warning("the shard cache can't be used: %s", error)
            return fetch()
        file = self._folder / name
        with contextlib.suppress(OSError, RetryableError):
            content = filesystem.read_buffer(str(file))
            if is_whole(content):
                os.utime(file)
                return content
        content = fetch()
        try:
            if self._make_room(content.size):
                filesystem.write_bytes(str(file), content)
        except (OSError, RetryableError) as error:
            log.warning("the shard cache can't be used: %s", error)
        return content

    def _make_folder(self) -> None:
        """Raises OSError where there can be none, or none that is ours alone."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self._folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            # A link may be turned to another folder at any time.
            raise OSError(f"{self._folder} is a link, not a folder")
        if status.st_uid != os.getuid():
            raise OSError(f"{self._folder} belongs to user {status.st_uid}")

    def _make_room(self, num_bytes: int) -> bool:
        """Delete the least recently used shards until there is room; False when there can be none."""
        if num_bytes > self._max_bytes:
            return False
        files = sorted(self._files(), key=lambda pair: pair[0].st_mtime_ns)
        excess = sum(status.st_size for status, _ in files) + num_bytes - self._max_bytes
        for status, file in files:
            if excess <= 0:
                break
            # Another worker may have deleted it; one that has it mapped keeps its content.
            file.unlink(missing_ok=True)
            excess -= status.st_size
        return True

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        """The shards that are kept; other files are not ours to count or delete."""
        for file in self._folder.iterdir():
            if _OURS.match(file.name):
                with contextlib.suppress(FileNotFoundError):
                    yield file.lstat(), file
