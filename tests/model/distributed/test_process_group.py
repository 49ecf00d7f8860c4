"""Whether workers share a GPU, and all-reduce by a process group (of gloo here: the calls are those of NCCL)."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from shardmean.model.distributed.process_group import (
    DeviceInfo,
    ProcessGroupAllReduce,
    check_alike,
    check_distinct,
    device_info,
)
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.distributed.store import WorkerStore
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardmean.model.distributed.store import Address

NUM_WORKERS = 2


def devices(*names: str) -> list[DeviceInfo]:
    """Devices of workers, from a host and a GPU each."""
    return [DeviceInfo(host, "cuda", gpu, "13.0") for host, gpu in (name.split() for name in names)]


def test_workers_with_gpus_of_their_own_are_distinct():
    assert check_distinct(devices("a GPU-1", "a GPU-2", "b GPU-1"), allow_shared=False)
    assert check_distinct([], allow_shared=False)


def test_workers_of_one_gpu_are_refused_by_name():
    with pytest.raises(UserError) as refused:
        check_distinct(devices("a GPU-1", "b GPU-3", "a GPU-1"), allow_shared=False)
    for part in ("workers 0, 2 on a share the GPU GPU-1", "lower num_workers", "allow_shared_gpu=true"):
        assert part in str(refused.value)


def test_workers_of_one_gpu_may_be_allowed():
    assert not check_distinct(devices("a GPU-1", "a GPU-1"), allow_shared=True)


def test_workers_on_gpus_need_torch_of_one_cuda():
    check_alike(devices("a GPU-1", "b GPU-1"))
    with pytest.raises(
        UserError, match=r"CUDA \(13\.0 for worker 0 on a; 12\.8 for worker 1 on c\): install one build"
    ):
        check_alike([*devices("a GPU-1"), DeviceInfo("c", "cuda", "GPU-1", "12.8")])


def test_workers_on_cpus_may_have_any_build_of_torch():
    device = device_info("cpu")
    assert (device.host, device.kind) == (socket.gethostname(), "cpu")
    check_alike([device, device])


def values_of(rank: int, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(rank))


@pytest.fixture(scope="module")
def in_processes() -> Iterator[Callable[[Callable[[Address, int], Any]], list[Any]]]:
    """What some work gives in a process of each rank; as Spark's Python workers they serve one after the other."""
    rendezvous = Rendezvous()
    with ProcessPoolExecutor(NUM_WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:

        def results(work: Callable[[Address, int], Any]) -> list[Any]:
            address = rendezvous.new_address()
            return [future.result(90) for future in [pool.submit(work, address, rank) for rank in range(NUM_WORKERS)]]

        yield results


def group(store: WorkerStore) -> ProcessGroupAllReduce:
    return ProcessGroupAllReduce(store, backend="gloo", device="cpu", num_workers=NUM_WORKERS)


def _sums(address: Address, rank: int) -> list[torch.Tensor]:
    """What a worker gets from two groups, one after the other, as in two segments."""
    results = []
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        store = WorkerStore(replace(address, prefix=f"{address.prefix}/{number}"), rank=rank, timeout_s=60)
        reducer = group(store)
        try:
            for size in (1, 7, 1000):
                values = values_of(rank, size)
                reducer.all_reduce(values, dtype=dtype)
                results.append(values)
        finally:
            reducer.close()
    return results


def test_a_group_sums_in_float32_and_leaves_no_group_behind(in_processes):
    ours, theirs = in_processes(_sums)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other), "all workers hold the same bits"
    for whole, halves, size in zip(ours[:3], ours[3:], (1, 7, 1000), strict=True):
        exact = sum(values_of(rank, size).double() for rank in range(NUM_WORKERS))
        torch.testing.assert_close(whole.double(), exact, rtol=1e-6, atol=1e-6)
        parts = sum(values_of(rank, size).abs() for rank in range(NUM_WORKERS))
        assert ((halves.double() - exact).abs() <= 2**-7 * parts).all()


def _waits_for_a_sum(address: Address, rank: int, *, fails: bool, dtype: torch.dtype = torch.float32) -> str:
    """The error of worker 0, which waits for a sum while worker 1 stays in the group and fails or hangs."""
    store = WorkerStore(address, rank=rank, timeout_s=60)
    store.timeout_s = 60 if fails else 1
    reducer = group(store)
    try:
        if rank == 1:
            if fails:
                store.abort(OSError("disk"))
            store.tcp_store.get("done/0")
            return ""
        reducer.all_reduce(torch.ones(10), dtype=dtype)
    except RuntimeError as error:
        store.set("done/0", "")
        return f"{type(error).__name__}: {error}"
    finally:
        reducer.close(broken=True)
        assert not torch.distributed.is_initialized()
    return "a sum"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_worker_that_waits_for_a_sum_sees_that_a_peer_failed(in_processes, dtype):
    error, _ = in_processes(partial(_waits_for_a_sum, fails=True, dtype=dtype))
    assert error == "AbortedError: worker 0 was stopped: disk"


def test_a_worker_that_waits_for_a_sum_gives_up_after_the_timeout(in_processes):
    error, _ = in_processes(partial(_waits_for_a_sum, fails=False))
    assert error == "LostPeersError: no sum with the other workers after 1 s"


class Sum:
    """A sum that takes a while, as a group's work."""

    def __init__(self, duration_s: float) -> None:
        self._end_s = time.monotonic() + duration_s
        self.num_checks = 0

    def is_completed(self) -> bool:
        self.num_checks += 1
        return time.monotonic() > self._end_s

    def wait(self) -> None:
        assert time.monotonic() > self._end_s


def test_waiting_for_long_takes_no_core():
    """For a short sum it checks without a pause."""
    reducer = ProcessGroupAllReduce.__new__(ProcessGroupAllReduce)
    reducer._store = SimpleNamespace(timeout_s=60)
    short, long = Sum(0.0001), Sum(0.5)
    reducer._wait(short)
    started = time.thread_time()
    reducer._wait(long)
    assert time.thread_time() - started < 0.1
    assert short.num_checks > 1
    assert long.num_checks < 5000


def test_nccl_raises_its_errors_and_the_environment_is_restored(monkeypatch):
    seen = []
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: seen.append(dict(os.environ)))
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    for before in (None, "1"):
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
        store = SimpleNamespace(tcp_store=None, rank=0, timeout_s=60)
        ProcessGroupAllReduce(store, backend="nccl", device="cuda:1", num_workers=2)
        assert os.environ.get(name) == before
    assert [environment[name] for environment in seen] == ["0", "0"]
