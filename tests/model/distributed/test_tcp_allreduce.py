"""The workers' own collective: sums in the order of ranks, strangers sent away, lost peers named."""

from __future__ import annotations

import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.distributed.store import Progress, WorkerStore
from shardmean.model.distributed.tcp_allreduce import TcpAllReduce
from shardmean.model.errors import AbortedError, MissingPeersError

if TYPE_CHECKING:
    from collections.abc import Callable


class Notes:
    """A board for threads of one process."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self._notes[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._notes, 10)
            return self._notes[key]

    def raise_if_aborted(self) -> None:
        """Nobody gives this segment up."""


def together(num_workers: int, work: Callable[[int, TcpAllReduce], Any], timeout_s: float = 10) -> list[Any]:
    """Do `work` as every worker at once; results or errors by rank."""
    notes = Notes()

    def one(rank: int) -> Any:
        exchange = TcpAllReduce(
            notes, secret="secret", rank=rank, num_workers=num_workers, own_host="127.0.0.1", timeout_s=timeout_s
        )
        try:
            return work(rank, exchange)
        except RuntimeError as error:
            return error
        finally:
            exchange.close()

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(one, range(num_workers)))


@settings(max_examples=25, deadline=None)
@given(num_workers=st.integers(2, 6), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_sum_is_that_in_the_order_of_ranks_to_the_bit(num_workers, size, seed):
    values = np.random.default_rng(seed).normal(size=(num_workers, size)).astype(np.float32)

    def work(rank: int, exchange: TcpAllReduce) -> torch.Tensor:
        mine = torch.from_numpy(values[rank].copy())
        exchange.all_reduce(mine)
        return mine

    expected = values[0].copy()
    for row in values[1:]:
        expected += row
    for found in together(num_workers, work):
        np.testing.assert_array_equal(found.numpy(), expected)


def test_sums_larger_than_any_buffer_and_of_changing_size():
    sizes = (5_000_000, 3, 1_000_000, 0)

    def work(rank: int, exchange: TcpAllReduce) -> list[float]:
        sums = []
        for size in sizes:
            values = torch.full((size,), float(rank + 1))
            exchange.all_reduce(values)
            sums.append(values.double().mean().item() if size else 6.0)
        return sums

    assert together(3, work) == [[6.0] * len(sizes)] * 3


def test_a_peer_that_leaves_is_named_at_once():
    def work(rank: int, exchange: TcpAllReduce) -> None:
        if rank == 1:
            return
        exchange.all_reduce(torch.ones(10))

    errors = together(3, work, timeout_s=60)
    assert errors[1] is None
    assert {str(errors[0]), str(errors[2])} <= {"worker 1 left", "worker 1 was lost: Connection reset by peer",
                                                "worker 0 left", "worker 2 left"}  # fmt: skip
    assert any("worker 1" in str(error) for error in errors)


def test_a_peer_that_is_silent_is_named_after_the_time():
    done = threading.Event()

    def work(rank: int, exchange: TcpAllReduce) -> None:
        if rank == 1:
            done.wait(20)
            return
        try:
            exchange.all_reduce(torch.ones(10))
        finally:
            done.set()

    assert str(together(2, work, timeout_s=0.5)[0]) == "no word from worker 1 for 0 s"


@pytest.mark.parametrize("hello", [b"", b"wrong!\0\0\0\1", b"secret\0\0\0\0", b"secret\0\0\0\7", b"sec"])
def test_a_stranger_is_sent_away(hello):
    """Who does not know the secret, or claims a rank that is not awaited, takes nobody's place."""

    def work(rank: int, exchange: TcpAllReduce) -> float:
        values = torch.ones(2)
        exchange.all_reduce(values)
        return values[0].item()

    class Watched(Notes):
        def set(self, key: str, value: str) -> None:
            if key == "peer/0":
                host, port = value.split()
                with socket.create_connection((host, int(port))) as stranger:
                    stranger.sendall(hello)
            super().set(key, value)

    notes = Watched()
    meet = {"secret": "secret", "num_workers": 2, "own_host": "127.0.0.1", "timeout_s": 10}
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda rank: work(rank, TcpAllReduce(notes, rank=rank, **meet)), range(2))
        assert list(results) == [2.0, 2.0]


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_stranger_that_says_nothing_or_breaks_off_fails_no_segment(monkeypatch, is_silent):
    monkeypatch.setattr("shardmean.model.distributed.tcp_allreduce._HELLO_S", 0.1)
    strangers = []

    class Watched(Notes):
        def set(self, key: str, value: str) -> None:
            if key == "peer/0":
                host, port = value.split()
                strangers.append(socket.create_connection((host, int(port))))
                if not is_silent:  # closing sends a reset
                    strangers[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    strangers[0].close()
            super().set(key, value)

    assert met(Watched(), 2, "127.0.0.1") == [2.0, 2.0]
    strangers[0].close()


def met(notes: Notes, num_workers: int, own_host: str) -> list[float]:
    """Each worker's sum of ones after they met by `notes`."""

    def work(rank: int) -> float:
        meet = {"secret": "secret", "num_workers": num_workers, "own_host": own_host, "timeout_s": 10}
        exchange = TcpAllReduce(notes, rank=rank, **meet)
        values = torch.ones(2)
        exchange.all_reduce(values)
        exchange.close()
        return values[0].item()

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(work, range(num_workers)))


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_workers_meet_by_ipv6():
    assert met(Notes(), 2, "::1") == [2.0, 2.0]


def test_workers_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr("shardmean.model.distributed.tcp_allreduce._SLICE_S", 0.1)
    with pytest.raises(MissingPeersError, match=r"worker 0 could not meet workers 1, 2: no connection for 0\.2 s"):
        TcpAllReduce(Notes(), secret="secret", rank=0, num_workers=3, own_host="127.0.0.1", timeout_s=0.2)


def test_who_waits_for_a_worker_hears_that_the_segment_was_given_up(monkeypatch):
    monkeypatch.setattr("shardmean.model.distributed.tcp_allreduce._SLICE_S", 0.1)
    rendezvous = Rendezvous()
    for rank in (0, 1):  # one waits for a connection, the other for a word
        address = rendezvous.new_address()
        rendezvous.abort(address, "worker 1 found no data")
        with pytest.raises(AbortedError, match=f"worker {rank} was told to stop: worker 1 found no data"):
            TcpAllReduce(
                WorkerStore(address, rank=rank, timeout_s=60),
                secret="secret", rank=rank, num_workers=2 + rank, own_host="127.0.0.1", timeout_s=60,
            )  # fmt: skip


def test_progress_reaches_the_driver_by_rank():
    rendezvous = Rendezvous()
    address = rendezvous.new_address()
    assert rendezvous.progress(address, 2) == {}
    told = Progress("host", round_index=3)
    WorkerStore(address, rank=1, timeout_s=5).publish_progress(told)
    assert rendezvous.progress(address, 2) == {1: told}
    assert rendezvous.progress(rendezvous.new_address(), 2) == {}, "each segment has words of its own"
