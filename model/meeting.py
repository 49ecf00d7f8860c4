"""Where driver and workers meet: a key-value store in the driver that carries rendezvous, progress and the abort flag.

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
from typing import TYPE_CHECKING, Self

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # its stubs name them elsewhere

from .exchange import Exchange
from .gpus import GroupExchange, check_distinct, gpu_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from torch import Tensor

PROGRESS_INTERVAL_S = 1.0
_ABORT = "abort"


class AbortedError(RuntimeError):
    """The driver, or another worker that failed, told all workers to stop."""


@dataclass(frozen=True)
class Address:
    """How a worker finds the meeting of one segment: the driver's host and port, and a prefix that holds a secret."""

    host: str
    port: int
    prefix: str


@dataclass(frozen=True)
class Progress:
    """What a worker last said: where it is, examples seen in this segment and their mean loss, whether it is done."""

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

    def abort(self, address: Address, reason: str) -> None:
        """Tell a segment's workers to stop: each fails with AbortedError at its next report."""
        PrefixStore(address.prefix, self._store).compare_set(_ABORT, "", reason)

    def abort_reason(self, address: Address) -> str:
        """Why a segment was aborted, by the first who said so; empty when it was not."""
        store = PrefixStore(address.prefix, self._store)
        return store.get(_ABORT).decode() if store.check([_ABORT]) else ""


class Member:
    """A worker's side: sums over all workers, and progress to the driver. Without `sums` it only reports.

    Workers on GPUs of their own sum on them by NCCL; all others sum on the CPU by `Exchange`.
    """

    def __init__(
        self,
        address: Address,
        *,
        rank: int,
        num_workers: int,
        timeout_s: int,
        sums: bool = True,
        device: str = "cpu",
        allow_shared_gpu: bool = False,
    ) -> None:
        """Meet the others. Raises UserError when two share a GPU and may not, RuntimeError when one does not come."""
        timeout = timedelta(seconds=timeout_s)
        self._store = PrefixStore(address.prefix, _client(address.host, address.port, timeout, rank))
        self._rank = rank
        self._num_workers = num_workers
        self._last_report_s = 0.0
        self._progress = Progress(socket.gethostname())
        self.sums_on = "cpu"
        self.report(lambda progress: progress)
        self._exchange: Exchange | GroupExchange | None = None
        if not sums or num_workers == 1:
            return
        common = {"rank": rank, "num_workers": num_workers, "timeout_s": timeout_s}
        if device != "cpu" and check_distinct(self._gather("gpu", gpu_name(device)), allow_shared=allow_shared_gpu):
            self.sums_on = device
            self._exchange = GroupExchange(self._store, backend="nccl", device=device, **common)
        else:
            own_host = _own_host(address)
            self._exchange = Exchange(self._store, secret=address.prefix, own_host=own_host, **common)

    def all_reduce(self, values: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        """Sum float32 values on `sums_on` over all workers, in place; they travel as `dtype`.

        Raises LostPeersError or RuntimeError when a peer is gone.
        """
        if self._exchange is not None:
            self._exchange.all_reduce(values, dtype=dtype)

    def report(self, changed: Callable[[Progress], Progress]) -> None:
        """Tell the driver how far this worker is, at most once a second; it is asked for then only.

        Raises AbortedError when the segment was given up.
        """
        if time.monotonic() - self._last_report_s >= PROGRESS_INTERVAL_S:
            self._tell(changed(self._progress))
            if self._store.check([_ABORT]):
                raise AbortedError(f"worker {self._rank} was told to stop: {self._store.get(_ABORT).decode()}")

    def _tell(self, progress: Progress) -> None:
        self._last_report_s = time.monotonic()
        self._progress = progress
        self._store.set(_progress_key(self._rank), json.dumps(asdict(progress)))

    def _gather(self, name: str, value: str) -> list[str]:
        """What all workers give for `name`, in the order of ranks."""
        self._store.set(f"{name}/{self._rank}", value)
        return [self._store.get(f"{name}/{rank}").decode() for rank in range(self._num_workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave: peers that still wait for this worker fail at once, and the driver waits for it no more.

        After an error all peers are told to stop, those too that compute for long before the next sum.
        """
        if self._exchange is not None:
            self._exchange.close()
        with contextlib.suppress(RuntimeError):  # the driver may be gone
            if error is not None:
                self._store.compare_set(_ABORT, "", f"{error}")
            self._tell(replace(self._progress, is_done=True))


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
