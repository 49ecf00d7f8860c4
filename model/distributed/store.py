"""One segment's keys in the driver's key-value store, as a worker of the segment reads and writes them."""

from __future__ import annotations

import contextlib
import hmac
import json
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import lru_cache

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # its stubs name them elsewhere

from ..errors import AbortedError, RetryableError

ABORT = "abort"
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


@dataclass(frozen=True)
class Address:
    """How a worker joins one segment: the driver's host and port, the prefix of the segment's keys, and its secret.

    The store authenticates nobody: whoever reaches it can list and change its keys. `secret` is what the segment's
    workers recognize each other by. It reaches them with their tasks alone, and is never stored or sent.
    """

    host: str
    port: int
    prefix: str
    secret: str = field(repr=False)

    def tag(self, *words: str | int) -> bytes:
        """The HMAC-SHA256, as hex digits, of these words of the segment: only who knows the secret can make it."""
        return hmac.digest(self.secret.encode(), json.dumps([self.prefix, *words]).encode(), "sha256").hex().encode()

    def hidden(self, text: str) -> str:
        """`text` without the prefix and the secret, which torch's errors may show."""
        return text.replace(self.prefix, "segment").replace(self.secret, "secret")


@dataclass(frozen=True)
class Progress:
    """A worker's last report: its host, the round it is in, examples seen in this segment and their mean loss.

    `is_ready` says that it has opened the DataSet and joins the others, `is_done` that it has left them. `num_reports`
    makes each report another: a worker whose reports change is alive.
    """

    host: str
    round_index: int = 0
    num_examples: int = 0
    loss: float = 0.0
    num_reports: int = 0
    is_ready: bool = False
    is_done: bool = False


class WorkerStore:
    """One worker's view of its segment's keys. What workers tell each other is signed: `set` signs, `get` verifies."""

    def __init__(self, address: Address, *, rank: int, timeout_s: float) -> None:
        """Connect to the driver's store. Raises DistError when it can't be reached."""
        self.address = address
        self.rank = rank
        self.timeout_s = timeout_s
        try:
            self._connect()
        except RuntimeError:
            # The connection was kept from an earlier segment and may be broken.
            _client.cache_clear()
            self._connect()

    def _connect(self) -> None:
        timeout = timedelta(seconds=self.timeout_s)
        client = _client(self.address.host, self.address.port, timeout, self.rank)
        self.tcp_store = PrefixStore(self.address.prefix, client)
        self.tcp_store.check([ABORT])

    def set(self, key: str, value: str) -> None:
        """Publish a value for the other workers; `key` ends in "/" and this worker's rank."""
        self.tcp_store.set(key, f"{self.address.tag('entry', key, value).decode()} {value}")

    def get(self, key: str) -> str:
        """The value of a key, once it is there.

        Raises AbortedError, TimeoutError after the segment's timeout, and RetryableError when no worker of this segment
        wrote what is there.
        """
        return self.get_all([key])[0]

    def get_all(self, keys: list[str]) -> list[str]:
        """The values of some keys, once all are there; errors as `get`. Takes as many requests as one key does."""
        # Short waits of our own: the store's would not end when the segment is aborted.
        deadline, pause_s = time.monotonic() + self.timeout_s, _FIRST_PAUSE_S
        while not self.tcp_store.check(keys):
            self.raise_if_aborted()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {', '.join(self.missing(keys))} after {self.timeout_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return [self._verified(key, entry) for key, entry in zip(keys, self.tcp_store.multi_get(keys), strict=True)]

    def _verified(self, key: str, entry: bytes) -> str:
        tag, _, content = entry.partition(b" ")
        value = content.decode(errors="replace")
        if not hmac.compare_digest(tag, self.address.tag("entry", key, value)):
            raise RetryableError(
                f"worker {self.rank} refused the entry {key} of the driver's store at {self.address.host} port "
                f"{self.address.port}: worker {key.rpartition('/')[2]} of this segment did not sign it, so somebody "
                "else writes to that store; keep others away from the driver's port"
            )
        return value

    def missing(self, keys: list[str]) -> list[str]:
        """Those of some keys that are not there yet."""
        return [key for key in keys if not self.tcp_store.check([key])]

    def raise_if_aborted(self) -> None:
        """Raise AbortedError when the segment was aborted."""
        if self.tcp_store.check([ABORT]):
            raise AbortedError(f"worker {self.rank} was stopped: {self.tcp_store.get(ABORT).decode()}")

    def publish_progress(self, progress: Progress) -> None:
        """Report to the driver how far this worker is."""
        self.tcp_store.set(progress_key(self.rank), json.dumps(asdict(progress)))

    def abort(self, error: BaseException) -> None:
        """Stop all workers of the segment; the first call gives the reason."""
        with contextlib.suppress(RuntimeError):  # the driver may be gone
            self.tcp_store.compare_set(ABORT, "", self.address.hidden(f"{error}"))

    def mark_done(self, error: BaseException | None) -> None:
        """Report that this worker has left, so that the driver does not take it for hung; an error stops the others."""
        if error is not None:
            self.abort(error)
        with contextlib.suppress(RuntimeError):
            key = progress_key(self.rank)
            if self.tcp_store.check([key]):
                self.publish_progress(replace(Progress(**json.loads(self.tcp_store.get(key))), is_done=True))


@lru_cache(maxsize=8)
def _client(host: str, port: int, timeout: timedelta, rank: int) -> TCPStore:  # noqa: ARG001 - ranks share none
    # A connection is kept for the training: each new one makes torch ask the name server for the host's name, which
    # can take seconds where that is slow. While one rank waits for a key, its connection serves no other.
    return TCPStore(host, port, None, False, timeout, wait_for_workers=False)


def progress_key(rank: int) -> str:
    """The key of a worker's last report."""
    return f"progress/{rank}"
