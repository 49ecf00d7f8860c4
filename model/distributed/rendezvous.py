"""How the workers of a segment find each other: a key-value store in the driver, and a worker's group of peers.

The store carries addresses, progress and the abort flag. Spark's own `barrier()` and `allGather()` poll once a second;
a TCPStore answers in well under a millisecond.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Self

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # its stubs name them elsewhere

from .process_group import DeviceInfo, ProcessGroupAllReduce, check_alike, check_distinct, device_info
from .store import ABORT, Address, Progress, WorkerStore, progress_key
from .tcp_allreduce import TcpAllReduce, missing_peers

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PROGRESS_INTERVAL_S = 1.0
log = logging.getLogger(__name__)


class Rendezvous:
    """The driver's side. One store serves all segments of a training; each segment has keys of its own."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        """Listen at `host`, the address by which workers reach the driver."""
        self._host = host
        self._store = _store_at(host)
        self._prefix = secrets.token_hex(16)
        self._num_segments = 0
        self._reading = threading.Lock()

    def new_address(self) -> Address:
        """The address of the next segment, with keys and a secret of its own."""
        self._num_segments += 1
        prefix = f"{self._prefix}/{self._num_segments}"
        return Address(self._host, self._store.port, prefix, secrets.token_hex(16))

    def progress(self, address: Address, num_workers: int) -> dict[int, Progress]:
        """The last report of each worker that has made one, by rank."""
        store = PrefixStore(address.prefix, self._store)
        with self._reading:
            ranks = [rank for rank in range(num_workers) if store.check([progress_key(rank)])]
            return {rank: Progress(**json.loads(store.get(progress_key(rank)))) for rank in ranks}

    def abort(self, address: Address, reason: str) -> None:
        """Stop a segment's workers: each fails with AbortedError at its next report."""
        PrefixStore(address.prefix, self._store).compare_set(ABORT, "", reason)

    def abort_reason(self, address: Address) -> str:
        """The first reason given for aborting a segment; empty when it was not aborted."""
        store = PrefixStore(address.prefix, self._store)
        return store.get(ABORT).decode() if store.check([ABORT]) else ""

    def end(self, address: Address) -> None:
        """Delete a segment's keys but for the abort flag, which a worker that Spark lost track of may still read."""
        # `progress` reads keys that it has found, and would wait for one that is deleted in between.
        with self._reading:
            for key in self._store.list_keys():
                if address.prefix + "/" in key and not key.endswith(f"/{ABORT}"):
                    self._store.delete_key(key)


def _store_at(host: str) -> TCPStore:
    # By itself torch listens at all addresses of the machine, and its store authenticates nobody.
    try:
        family = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]
        server = socket.create_server((host, 0), family=family)
    except OSError as error:
        log.warning(
            "can't listen at the driver's host %s (%s): listening at all addresses of this machine", host, error
        )
        return TCPStore("localhost", 0, None, is_master=True, wait_for_workers=False)
    port = server.getsockname()[1]
    return TCPStore(host, port, None, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())


class WorkerGroup:
    """A worker's side: sums over all workers, and progress for the driver. Without `sums` it only reports.

    Workers on GPUs of their own sum on them by NCCL, a single worker's sums are where it computes, and all others sum
    on the CPU by `TcpAllReduce`.
    """

    def __init__(
        self,
        store: WorkerStore,
        *,
        num_workers: int,
        sums: bool = True,
        device: str = "cpu",
        allow_shared_gpu: bool = False,
    ) -> None:
        """Connect to the other workers of the store's segment.

        Raises UserError when some have a GPU and others none, or two share one and may not, MissingPeersError when one
        does not come, RetryableError when somebody else writes to the driver's store.
        """
        self._store = store
        self._num_workers = num_workers
        self._last_report_s = 0.0
        self._progress = Progress(socket.gethostname(), is_ready=True)
        self._changed: Callable[[Progress], Progress] = lambda last: last
        self.sums_on = device if num_workers == 1 else "cpu"
        self.report()
        self._reducer: TcpAllReduce | ProcessGroupAllReduce | None = None
        if not sums or num_workers == 1:
            return
        devices = self._devices_of_all(device_info(device))
        check_alike(devices)
        if device != "cpu" and check_distinct(devices, allow_shared=allow_shared_gpu):
            self.sums_on = device
            self._reducer = ProcessGroupAllReduce(store, backend="nccl", device=device, num_workers=num_workers)
        else:
            own_host = _own_host(store)
            self._reducer = TcpAllReduce(store, num_workers=num_workers, own_host=own_host, on_bytes=self.report)

    def all_reduce(self, values: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        """Sum float32 values on `sums_on` over all workers, in place; they travel as `dtype`.

        Raises LostPeersError or RuntimeError when a peer is gone.
        """
        if self._reducer is not None:
            self._reducer.all_reduce(values, dtype=dtype)

    def report(self, changed: Callable[[Progress], Progress] | None = None) -> None:
        """Report to the driver, at most once a second, how far this worker is; `changed` is called only then.

        Without it the last one is. Raises AbortedError when the segment was aborted.
        """
        self._changed = changed or self._changed
        if time.monotonic() - self._last_report_s >= PROGRESS_INTERVAL_S:
            self._last_report_s = time.monotonic()
            self._progress = replace(self._changed(self._progress), num_reports=self._progress.num_reports + 1)
            self._store.publish_progress(self._progress)
            self._store.raise_if_aborted()

    def _devices_of_all(self, own: DeviceInfo) -> list[DeviceInfo]:
        """Where each worker computes, in the order of ranks."""
        keys = [f"device/{rank}" for rank in range(self._num_workers)]
        self._store.set(keys[self._store.rank], json.dumps(asdict(own)))
        try:
            return [DeviceInfo(**json.loads(text)) for text in self._store.get_all(keys)]
        except TimeoutError as error:
            missing = [keys.index(key) for key in self._store.missing(keys)]
            raise missing_peers(self._store.rank, missing, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        """Leave: peers that wait for this worker fail at once, and the driver waits for it no more.

        An error stops all peers, also those that compute for long before the next sum.
        """
        if error is not None:
            # Before closing: NCCL's group may close only once the peers have left it.
            self._store.abort(error)
        try:
            if self._reducer is not None:
                self._reducer.close(broken=error is not None)
        except RuntimeError as failure:
            if error is None:
                raise
            log.warning("worker %d failed, and then failed to leave its group: %s", self._store.rank, failure)
        finally:
            self._store.mark_done(error)


def _own_host(store: WorkerStore) -> str:
    # Other machines of the cluster can reach the address by which this one reaches the driver.
    with socket.create_connection((store.address.host, store.address.port), store.timeout_s) as probe:
        return str(probe.getsockname()[0])
