"""Where driver and workers meet: a key-value store in the driver that carries rendezvous and progress.

Spark's own `barrier()` and `allGather()` poll once a second; a TCPStore answers in well under a millisecond.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # its stubs name them elsewhere

from .exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PROGRESS_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Address:
    """How a worker finds the meeting of one segment: the driver's host and port, and a prefix that holds a secret."""

    host: str
    port: int
    prefix: str


@dataclass(frozen=True)
class Progress:
    """What a worker last said: where it is, examples seen in this epoch and their mean loss, whether it is done."""

    host: str
    round_index: int = 0
    num_examples: int = 0
    loss: float = 0.0
    is_done: bool = False


class Meeting:
    """The driver's side. One store serves all segments of a training; each segment has keys of its own."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._store = TCPStore(host, 0, None, is_master=True, wait_for_workers=False)
        self._secret = secrets.token_hex(16)
        self._num_segments = 0

    def new_address(self) -> Address:
        """The meeting place of the next segment."""
        self._num_segments += 1
        return Address(self._host, self._store.port, f"{self._secret}/{self._num_segments}")

    def progress(self, address: Address, num_workers: int) -> dict[int, Progress]:
        """What the workers that have spoken last said, by rank."""
        store = PrefixStore(address.prefix, self._store)
        ranks = [rank for rank in range(num_workers) if store.check([_progress_key(rank)])]
        return {rank: Progress(**json.loads(store.get(_progress_key(rank)))) for rank in ranks}


class Member:
    """A worker's side: sums over all workers, and progress to the driver. Without `sums` it only reports."""

    def __init__(self, address: Address, *, rank: int, num_workers: int, timeout_s: int, sums: bool = True) -> None:
        timeout = timedelta(seconds=timeout_s)
        self._store = PrefixStore(address.prefix, _client(address.host, address.port, timeout, rank))
        self._rank = rank
        self._last_report_s = 0.0
        self._progress = Progress(socket.gethostname())
        self.report(lambda progress: progress)
        self._exchange: Exchange | None = None
        if sums and num_workers > 1:
            self._exchange = Exchange(
                self._store,
                secret=address.prefix,
                rank=rank,
                num_workers=num_workers,
                own_host=_own_host(address),
                timeout_s=timeout_s,
            )

    def all_reduce(self, values: Tensor) -> None:
        """Sum float32 values on the CPU over all workers, in place. Raises RuntimeError when a peer is gone."""
        if self._exchange is not None:
            self._exchange.all_reduce(values)

    def report(self, changed: Callable[[Progress], Progress]) -> None:
        """Tell the driver how far this worker is, at most once a second; it is asked for then only."""
        if time.monotonic() - self._last_report_s >= PROGRESS_INTERVAL_S:
            self._last_report_s = time.monotonic()
            self._progress = changed(self._progress)
            self._store.set(_progress_key(self._rank), json.dumps(asdict(self._progress)))

    def close(self) -> None:
        """Leave: peers that still wait for this worker fail at once, and the driver waits for it no more."""
        if self._exchange is not None:
            self._exchange.close()
        self._last_report_s = 0.0
        with contextlib.suppress(RuntimeError):  # the driver may be gone
            self.report(lambda progress: replace(progress, is_done=True))


@lru_cache(maxsize=8)
def _client(host: str, port: int, timeout: timedelta, rank: int) -> TCPStore:  # noqa: ARG001 - ranks share none
    # A connection is kept for the training: each new one makes torch ask the name server for the host's name, which
    # can take seconds where that is slow. While one rank waits for a key, its connection serves no other.
    return TCPStore(host, port, None, False, timeout, wait_for_workers=False)


def _own_host(address: Address) -> str:
    # The address by which this machine reaches the driver is one that other machines of the cluster reach too.
    with socket.create_connection((address.host, address.port)) as probe:
        return str(probe.getsockname()[0])


def _progress_key(rank: int) -> str:
    return f"progress/{rank}"
