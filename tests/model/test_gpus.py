"""Whether workers share a GPU, and sums by a process group (of gloo here: the calls are those of NCCL)."""

from __future__ import annotations

import multiprocessing
import socket
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from model.errors import UserError
from model.gpus import GroupExchange, Place, check_alike, check_distinct, place_of
from model.meeting import Meeting

if TYPE_CHECKING:
    from model.board import Address

NUM_WORKERS = 2


def places(*names: str) -> list[Place]:
    """Places of workers, from a host and a GPU each."""
    return [Place(host, "cuda", gpu, "13.0") for host, gpu in (name.split() for name in names)]


def test_workers_with_gpus_of_their_own_are_distinct():
    assert check_distinct(places("a GPU-1", "a GPU-2", "b GPU-1"), allow_shared=False)
    assert check_distinct([], allow_shared=False)


def test_workers_of_one_gpu_are_refused_by_name():
    with pytest.raises(UserError) as refused:
        check_distinct(places("a GPU-1", "b GPU-3", "a GPU-1"), allow_shared=False)
    for part in ("workers 0, 2 on a share the GPU GPU-1", "lower num_workers", "allow_shared_gpu=true"):
        assert part in str(refused.value)


def test_workers_of_one_gpu_may_be_allowed():
    assert not check_distinct(places("a GPU-1", "a GPU-1"), allow_shared=True)


def test_workers_on_gpus_need_torch_of_one_cuda():
    check_alike(places("a GPU-1", "b GPU-1"))
    with pytest.raises(
        UserError, match=r"CUDA \(13\.0 for worker 0 on a; 12\.8 for worker 1 on c\): install one build"
    ):
        check_alike([*places("a GPU-1"), Place("c", "cuda", "GPU-1", "12.8")])


def test_workers_on_cpus_may_have_any_build_of_torch():
    place = place_of("cpu")
    assert (place.host, place.kind) == (socket.gethostname(), "cpu")
    check_alike([place, place])


def values_of(rank: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(rank))


def _sums(address: Address, rank: int) -> list[torch.Tensor]:
    """What a worker gets from two groups, one after the other, as in two segments."""
    from torch.distributed import PrefixStore, TCPStore

    client = TCPStore(address.host, address.port, None, False)
    results = []
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        store = PrefixStore(f"{address.prefix}/{number}", client)
        exchange = GroupExchange(store, backend="gloo", device="cpu", rank=rank, num_workers=NUM_WORKERS, timeout_s=60)
        try:
            for size in (1, 7, 1000):
                values = values_of(rank, size)
                exchange.all_reduce(values, dtype=dtype)
                results.append(values)
        finally:
            exchange.close()
    return results


def test_a_group_sums_in_float32_and_leaves_no_group_behind():
    meeting = Meeting()
    address = meeting.new_address()
    with ProcessPoolExecutor(NUM_WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        ours, theirs = [future.result(90) for future in [pool.submit(_sums, address, rank) for rank in (0, 1)]]
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other), "all workers hold the same bits"
    for whole, halves, size in zip(ours[:3], ours[3:], (1, 7, 1000), strict=True):
        exact = sum(values_of(rank, size).double() for rank in range(NUM_WORKERS))
        torch.testing.assert_close(whole.double(), exact, rtol=1e-6, atol=1e-6)
        parts = sum(values_of(rank, size).abs() for rank in range(NUM_WORKERS))
        assert ((halves.double() - exact).abs() <= 2**-7 * parts).all()
