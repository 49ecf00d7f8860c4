"""All-reduce by a process group of torch.distributed (NCCL), and the checks that each worker has a GPU for it."""

from __future__ import annotations

import os
import socket
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ..errors import LostPeersError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from .store import WorkerStore

_SPIN_S = 0.0005
_LONGEST_PAUSE_S = 0.001
_ABORT_CHECK_S = 1.0
_GRACE_S = 60


@dataclass(frozen=True)
class DeviceInfo:
    """Where a worker computes: its host, the kind of its device and, for a GPU, its UUID and the CUDA of its torch."""

    host: str
    kind: str
    gpu: str = ""
    cuda: str = ""


def device_info(device: str) -> DeviceInfo:
    """The running process's DeviceInfo, where it computes on `device`."""
    host, kind = socket.gethostname(), torch.device(device).type
    if kind == "cpu":
        return DeviceInfo(host, kind)
    return DeviceInfo(host, kind, f"{torch.cuda.get_device_properties(device).uuid}", f"{torch.version.cuda}")


def check_alike(devices: list[DeviceInfo]) -> None:
    """Raise UserError, with the hosts, unless all workers have one kind of device and a torch built for one CUDA."""
    if kinds := _differing([device.kind for device in devices], devices):
        raise UserError(
            f"workers compute on different kinds of device ({kinds}) and can't average: give each a GPU and a torch "
            "for CUDA, or set device=cpu"
        )
    if versions := _differing([device.cuda for device in devices], devices):
        raise UserError(
            f"the workers' torch was built for different versions of CUDA ({versions}): install one build on all"
        )


def check_distinct(devices: list[DeviceInfo], *, allow_shared: bool) -> bool:
    """Whether every worker has a GPU of its own.

    Raises UserError that names workers with the same GPU, unless sharing is allowed.
    """
    by_gpu: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, device in enumerate(devices):
        by_gpu[device.host, device.gpu].append(rank)
    shared = [ranks for ranks in by_gpu.values() if len(ranks) > 1]
    if shared and not allow_shared:
        device = devices[shared[0][0]]
        raise UserError(
            f"workers {', '.join(map(str, shared[0]))} on {device.host} share the GPU {device.gpu}: give each its own "
            "(let Spark hand them out by spark.executor.resource.gpu.amount, one Spark worker per machine), lower "
            "num_workers, or set allow_shared_gpu=true"
        )
    return not shared


def _differing(values: list[str], devices: list[DeviceInfo]) -> str:
    """Each value with the first worker that has it and that worker's host; nothing where all have the same."""
    firsts = {value: values.index(value) for value in dict.fromkeys(values)}
    found = [f"{value} for worker {first} on {devices[first].host}" for value, first in firsts.items()]
    return "; ".join(found) if len(found) > 1 else ""


class ProcessGroupAllReduce:
    """All-reduce by a process group, on the device of the values. Errors are RuntimeErrors."""

    def __init__(self, store: WorkerStore, *, backend: str, device: str, num_workers: int) -> None:
        """Make the group together with the other workers. Raises RuntimeError when one does not come."""
        self._store = store
        self._num_workers = num_workers
        with _nccl_errors_raised():
            dist.init_process_group(
                backend,
                store=store.tcp_store,
                rank=store.rank,
                world_size=num_workers,
                # Longer than this worker waits: it gives up by itself, with a message, and leaves no thread behind.
                timeout=timedelta(seconds=store.timeout_s + _GRACE_S),
                device_id=torch.device(device) if backend == "nccl" else None,
            )

    def all_reduce(self, values: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        """Sum float32 values over all workers, in place; they travel as `dtype` and are added in float32.

        Raises AbortedError when the segment was aborted, LostPeersError after the timeout.
        """
        if dtype == torch.float32:
            self._wait(dist.all_reduce(values, async_op=True))
            return
        # The group would add in the short type. So all send each worker its part of the values, which it adds.
        size = -(-values.numel() // self._num_workers)
        wire = torch.zeros(size * self._num_workers, dtype=dtype, device=values.device)
        wire[: values.numel()] = values
        inbox = torch.empty_like(wire)
        self._wait(dist.all_to_all_single(inbox, wire, async_op=True))
        total = inbox.reshape(self._num_workers, size).float().sum(dim=0)
        self._wait(dist.all_gather_into_tensor(wire, total.to(dtype), async_op=True))
        values.copy_(wire[: values.numel()])

    def _wait(self, work: dist.Work) -> None:
        """Wait for a sum until the timeout or an abort: NCCL itself does not notice that a peer has left."""
        started = checked = time.monotonic()
        while not work.is_completed():
            now = time.monotonic()
            waited_s = now - started
            if now - checked >= _ABORT_CHECK_S:
                checked = now
                self._store.raise_if_aborted()
            if waited_s > self._store.timeout_s:
                raise LostPeersError(f"no sum with the other workers after {self._store.timeout_s:g} s")
            # Short sums are over while this spins; long ones last a 20th longer at most.
            time.sleep(0 if waited_s < _SPIN_S else min(waited_s / 20, _LONGEST_PAUSE_S))
        work.wait()

    def close(self, *, broken: bool = False) -> None:
        """Leave the group; the process serves many segments, and the next one makes a group of its own.

        A `broken` group is aborted: at an orderly end NCCL waits for sums that the others never take part in.
        """
        if broken:
            # torch 2.13 has no public function for it: `abort` ends what is under way, but keeps the group's name.
            distributed_c10d._abort_process_group()  # noqa: SLF001
        else:
            dist.destroy_process_group()


@contextmanager
def _nccl_errors_raised() -> Iterator[None]:
    """NCCL's groups made in this block raise their errors; by default they end the process."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
