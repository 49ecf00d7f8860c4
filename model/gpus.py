"""GPUs of the workers of one segment: whether all or none have them, each its own; sums by a process group."""

from __future__ import annotations

import socket
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.distributed import Store  # type: ignore[attr-defined] # its stubs name it elsewhere

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a worker computes: its host, the kind of its device and, for a GPU, its UUID and the CUDA of its torch."""

    host: str
    kind: str
    gpu: str = ""
    cuda: str = ""


def place_of(device: str) -> Place:
    """The running process's."""
    host, kind = socket.gethostname(), torch.device(device).type
    if kind == "cpu":
        return Place(host, kind)
    return Place(host, kind, f"{torch.cuda.get_device_properties(device).uuid}", f"{torch.version.cuda}")


def check_alike(places: list[Place]) -> None:
    """Raise UserError that names hosts unless all workers compute on one kind of device, by torch for one CUDA."""
    kinds = _ranks_by([place.kind for place in places])
    if len(kinds) > 1:
        raise UserError(
            f"workers compute on different kinds of device ({_found(kinds, places)}) and can't average: give each a "
            "GPU and a torch for CUDA, or set device=cpu"
        )
    versions = _ranks_by([place.cuda for place in places])
    if len(versions) > 1:
        raise UserError(
            f"the workers' torch was built for different versions of CUDA ({_found(versions, places)}): install one "
            "build on all"
        )


def check_distinct(places: list[Place], *, allow_shared: bool) -> bool:
    """Whether every worker has a GPU of its own.

    Raises UserError that names the workers of one GPU, unless sharing is allowed.
    """
    shared = [ranks for ranks in _ranks_by([(place.host, place.gpu) for place in places]).values() if len(ranks) > 1]
    if shared and not allow_shared:
        place = places[shared[0][0]]
        raise UserError(
            f"workers {', '.join(map(str, shared[0]))} on {place.host} share the GPU {place.gpu}: give each its own "
            "(let Spark hand them out by spark.executor.resource.gpu.amount, one Spark worker per machine), lower "
            "num_workers, or set allow_shared_gpu=true"
        )
    return not shared


def _ranks_by(values: Sequence[T]) -> dict[T, list[int]]:
    ranks: dict[T, list[int]] = defaultdict(list)
    for rank, value in enumerate(values):
        ranks[value].append(rank)
    return ranks


def _found(ranks: dict[str, list[int]], places: list[Place]) -> str:
    """Each value with the first worker that has it and that worker's host."""
    return "; ".join(f"{value} for worker {first} on {places[first].host}" for value, (first, *_) in ranks.items())


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
