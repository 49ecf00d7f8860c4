"""GPUs of the workers of one segment: whether each has its own, and sums among them by a process group."""

from __future__ import annotations

import socket
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined] # its stubs name it elsewhere


def gpu_name(device: str) -> str:
    """Host and UUID of a GPU, by which two workers find out that they share it."""
    return f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"


def check_distinct(names: list[str], *, allow_shared: bool) -> bool:
    """Whether every worker has a GPU of its own, given each one's `gpu_name`.

    Raises UserError that names the workers of one GPU, unless sharing is allowed.
    """
    ranks_by_name: dict[str, list[int]] = defaultdict(list)
    for rank, name in enumerate(names):
        ranks_by_name[name].append(rank)
    shared = {name: ranks for name, ranks in ranks_by_name.items() if len(ranks) > 1}
    if shared and not allow_shared:
        (host, gpu), ranks = next(iter(shared)).split(" ", 1), next(iter(shared.values()))
        raise UserError(
            f"workers {', '.join(map(str, ranks))} on {host} share the GPU {gpu}: give each its own (let Spark hand "
            "them out by spark.executor.resource.gpu.amount, one Spark worker per machine), lower num_workers, "
            "or set allow_shared_gpu=true"
        )
    return not shared


class GroupExchange:
    """Sums over all workers by a process group of torch.distributed, on its device. Errors are RuntimeErrors."""

    def __init__(
        self, store: Store, *, backend: str, device: str, rank: int, num_workers: int, timeout_s: float
    ) -> None:
        """Join the others' group. Raises RuntimeError when one does not come."""
        self._num_workers = num_workers
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=num_workers,
            timeout=timedelta(seconds=timeout_s),
            device_id=torch.device(device) if backend == "nccl" else None,
        )

    def all_reduce(self, values: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        """Sum float32 values over all workers, in place; they travel as `dtype` and are added in float32."""
        if dtype == torch.float32:
            dist.all_reduce(values)
            return
        # The group would add in the short type. So each worker adds a part of the values, which all send it.
        size = -(-values.numel() // self._num_workers)
        wire = torch.zeros(size * self._num_workers, dtype=dtype, device=values.device)
        wire[: values.numel()] = values
        inbox = torch.empty_like(wire)
        dist.all_to_all_single(inbox, wire)
        total = inbox.reshape(self._num_workers, size).float().sum(dim=0)
        dist.all_gather_into_tensor(wire, total.to(dtype))
        values.copy_(wire[: values.numel()])

    def close(self) -> None:
        """Leave the group; Python workers serve many segments, and the next one makes a group of its own."""
        dist.destroy_process_group()
