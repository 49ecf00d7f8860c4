"""A lease: by agreement one process at a time writes to a folder, on any store, and one that lost it stops.

Each holder has a number, greater than any before it (a fencing token). It takes the number by creating a file that
must not exist yet, and shows life in a file beside it. A holder that is silent for `silent_after_s`, or that was one of
this machine's processes and is dead, is passed over. The greatest number holds the lease: `check` asks before each
write. A number's own file is never written again: on some stores a file that is written anew is absent for a moment
(see `filesystem.replaces_at_once`), and where the greatest number is not seen, two may write.

What this can't do: a holder that sleeps between `check` and its write, and is passed over meanwhile, still writes when
it wakes. So what must not be overwritten, a DataSet's manifest, is written conditionally (see `conditional`); all other
files are named by their content or by the step that made them, and writing one again does no harm.

Two that try at once: on a local disk and on S3 only one can create the number's file. Elsewhere (gs, hdfs) both may,
and the later replaces the earlier; each looks again after a moment, and `check` tells the other that it lost.

Source: M. Kleppmann, "How to do distributed locking" (2016), for the fencing tokens.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from ..errors import LeaseLostError, RetryableError
from . import conditional, filesystem

log = logging.getLogger(__name__)
SILENT_AFTER_S = 30.0
_NAME = re.compile(r"^(\d{8})\.(json|life)$")
_CLAIM = "claim-"  # with which version 0.1.0 announced itself on S3


class Lease:
    """The right to write below a folder, held from `with` to its end. Its files lie in `FOLDER/lease`."""

    def __init__(self, folder_uri: str, *, what: str, silent_after_s: float = SILENT_AFTER_S) -> None:
        """`what` names the work for messages, such as "this training"."""
        self._uri = filesystem.join(folder_uri, "lease")
        self._what = what
        self._silent_after_s = silent_after_s
        self._holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": start_of(os.getpid())}
        self._holder |= {"kernel": _kernel(), "nonce": secrets.token_hex(8)}
        self._number = 0
        self._beats = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        """Take the lease. Raises RetryableError that names the holder when another process has it and lives."""
        newest = self._newest()
        if newest:
            self._wait_until_passed(newest)
        self._number = newest + 1
        self._take()
        for name in filesystem.list_names(self._uri):
            match = _NAME.match(name)
            if (match and int(match[1]) < self._number) or name.startswith(_CLAIM):
                filesystem.delete(filesystem.join(self._uri, name))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give it back, if it is still ours."""
        self._done.set()
        self._thread.join()
        try:
            if self._newest() == self._number:
                # The number stays taken, so that the next holder's is greater.
                self._show_life(released=True)
        except RetryableError as problem:
            log.warning("the lease of %s could not be given back: %s", self._what, problem)

    def check(self) -> None:
        """Raise LeaseLostError when another process took the folder over; call it before each write.

        Raises RetryableError when the lease is gone or the store cannot be asked.
        """
        newest = self._newest()
        if newest < self._number:
            # The next process would take the first number again, and neither would stop for the other.
            raise RetryableError(
                f"{self._file(self._number)} is gone, which kept others away while {self._what} is at work: "
                "delete nothing in that folder; repeat the command"
            )
        if self._is_of_another(newest):
            other = _content(self._file(newest))
            raise LeaseLostError(
                f"{self._what} was taken over by process {other.get('pid')} on {other.get('host')} while this one was "
                "silent: this one stops and writes nothing more"
            )

    def is_lost(self) -> bool:
        """Whether another process took the folder over. Raises RetryableError when the store cannot be asked."""
        newest = self._newest()
        return newest >= self._number and self._is_of_another(newest)

    def _is_of_another(self, number: int) -> bool:
        mine = self._holder["nonce"]
        return number > self._number or _content(self._file(number)).get("nonce", mine) != mine

    def _wait_until_passed(self, number: int) -> None:
        # Another machine's clock is not ours: a holder is silent when its file stays the same while we look.
        first = self._read(number)
        deadline = time.monotonic() + self._silent_after_s
        while not _is_over(first):
            if _is_alive_here(first) or self._read(number) != first:
                raise self._refused(first)
            if time.monotonic() > deadline:
                log.info(
                    "the last holder (process %s on %s) no longer responds: taking over its lease",
                    first.get("pid"),
                    first.get("host"),
                )
                return
            time.sleep(min(1.0, self._silent_after_s / 10))

    def _refused(self, holder: dict[str, Any]) -> RetryableError:
        return RetryableError(
            f"{self._what} is already running: process {holder.get('pid')} on {holder.get('host')} ({self._uri}); "
            "wait until it ends, or stop it, then repeat the command"
        )

    def _beat(self) -> None:
        while not self._done.wait(self._silent_after_s / 6):
            try:
                if self._newest() != self._number:
                    return
                self._beats += 1
                self._show_life(beats=self._beats)
            except RetryableError as problem:
                log.warning("%s", problem)

    def _newest(self) -> int:
        matches = map(_NAME.match, filesystem.list_names(self._uri))
        return max((int(match[1]) for match in matches if match and match[2] == "json"), default=0)

    def _file(self, number: int, suffix: str = "json") -> str:
        return filesystem.join(self._uri, f"{number:08d}.{suffix}")

    def _read(self, number: int) -> dict[str, Any]:
        """Who holds a number, with the signs of life; nothing where there is none."""
        holder, life = _content(self._file(number)), _content(self._file(number, "life"))
        return holder | life if life.get("nonce") == holder.get("nonce") else holder

    def _show_life(self, **signs: Any) -> None:
        content = {"nonce": self._holder["nonce"], **signs}
        filesystem.write_bytes(self._file(self._number, "life"), json.dumps(content).encode())

    def _take(self) -> None:
        """Create the number's file. Raises RetryableError that names the process that was first."""
        uri = self._file(self._number)
        if not conditional.write_if_unchanged(uri, json.dumps(self._holder).encode(), None):
            raise self._refused(self._read(self._newest()))
        if not conditional.is_exact(uri):
            time.sleep(self._silent_after_s / 30)
            if self._is_of_another(self._number):
                raise self._refused(self._read(self._number))


def _content(uri: str) -> dict[str, Any]:
    try:
        content = json.loads(filesystem.read_bytes(uri))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def start_of(pid: int) -> str:
    """When a process of this machine started, in the kernel's clock ticks; tells it from a later one of that number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_over(holder: dict[str, Any]) -> bool:
    return bool(not holder or holder.get("released") or (_is_here(holder) and not _is_alive_here(holder)))


def _kernel() -> str:
    """The machine's start and this process's set of process numbers: containers may share a host's name, not these.

    Empty where there is no /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_here(holder: dict[str, Any]) -> bool:
    return holder.get("host") == socket.gethostname() and holder.get("kernel") == _kernel() != ""


def _is_alive_here(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    return _is_here(holder) and isinstance(pid, int) and holder.get("started") == start_of(pid) != ""
