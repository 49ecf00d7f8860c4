"""A segment's keys in the driver's store, as one of its workers sees them: what it says, what it waits for, the end."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import lru_cache

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # its stubs name them elsewhere

from ..errors import AbortedError

ABORT = "abort"
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


@dataclass(frozen=True)
class Address:
    """How a worker finds the meeting of one segment: the driver's host and port, and the prefix of its keys.

    Whoever reaches the store can list its keys. So `secret`, by which workers know each other, is never in it.
    """

    host: str
    port: int
    prefix: str
    secret: str = field(repr=False)

    def hidden(self, text: str) -> str:
        """`text` without the prefix and the secret, which torch's errors may show."""
        return text.replace(self.prefix, "segment").replace(self.secret, "secret")


@dataclass(frozen=True)
class Progress:
    """What a worker last said: where it is, examples seen in this segment and their mean loss, whether it is done.

    `is_ready` says that it has opened the DataSet and goes to meet the others.
    """

    host: str
    round_index: int = 0
    num_examples: int = 0
    loss: float = 0.0
    is_ready: bool = False
    is_done: bool = False


class WorkerStore:
    """One worker's view of its segment's keys."""

    def __init__(self, address: Address, *, rank: int, timeout_s: float) -> None:
        """Reach the driver's store. Raises DistError when it can't be reached."""
        self._address = address
        self._rank = rank
        self._timeout_s = timeout_s
        try:
            self._connect()
        except RuntimeError:
            # A connection that was kept since an earlier segment may have broken: a new one tells.
            _client.cache_clear()
            self._connect()

    def _connect(self) -> None:
        timeout = timedelta(seconds=self._timeout_s)
        client = _client(self._address.host, self._address.port, timeout, self._rank)
        self.tcp_store = PrefixStore(self._address.prefix, client)
        self.tcp_store.check([ABORT])

    def set(self, key: str, value: str) -> None:
        """Write a key of the segment."""
        self.tcp_store.set(key, value)

    def get(self, key: str) -> str:
        """The value of a key, once it is there. Raises AbortedError, and TimeoutError after the segment's timeout."""
        return self.get_all([key])[0]

    def get_all(self, keys: list[str]) -> list[str]:
        """The values of some keys, once all are there; errors as `get`. It takes no more requests than one key does."""
        # Short waits of our own: one of the store's would not see that the segment was given up.
        deadline, pause_s = time.monotonic() + self._timeout_s, _FIRST_PAUSE_S
        while not self.tcp_store.check(keys):
            self.raise_if_aborted()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {', '.join(self.missing(keys))} for {self._timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return [value.decode() for value in self.tcp_store.multi_get(keys)]

    def missing(self, keys: list[str]) -> list[str]:
        """Those of some keys that are not there yet."""
        return [key for key in keys if not self.tcp_store.check([key])]

    def raise_if_aborted(self) -> None:
        """Raise AbortedError when the segment was given up."""
        if self.tcp_store.check([ABORT]):
            raise AbortedError(f"worker {self._rank} was told to stop: {self.tcp_store.get(ABORT).decode()}")

    def publish_progress(self, progress: Progress) -> None:
        """Tell the driver how far this worker is."""
        self.set(progress_key(self._rank), json.dumps(asdict(progress)))

    def abort_all(self, error: BaseException) -> None:
        """Tell all workers to stop; the first who does so says why."""
        with contextlib.suppress(RuntimeError):  # the driver may be gone
            self.tcp_store.compare_set(ABORT, "", self._address.hidden(f"{error}"))

    def mark_done(self, error: BaseException | None) -> None:
        """Tell the driver to wait for this worker no more, and after an error all workers to stop."""
        if error is not None:
            self.abort_all(error)
        with contextlib.suppress(RuntimeError):
            key = progress_key(self._rank)
            if self.tcp_store.check([key]):
                self.publish_progress(replace(Progress(**json.loads(self.tcp_store.get(key))), is_done=True))


@lru_cache(maxsize=8)
def _client(host: str, port: int, timeout: timedelta, rank: int) -> TCPStore:  # noqa: ARG001 - ranks share none
    # A connection is kept for the training: each new one makes torch ask the name server for the host's name, which
    # can take seconds where that is slow. While one rank waits for a key, its connection serves no other.
    return TCPStore(host, port, None, False, timeout, wait_for_workers=False)


def progress_key(rank: int) -> str:
    """The key under which a worker says how far it is."""
    return f"progress/{rank}"
