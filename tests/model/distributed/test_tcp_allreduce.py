"""All-reduce over TCP: sums in the order of ranks, strangers refused, lost and missing peers named."""

from __future__ import annotations

import copy
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmean.model.distributed import handshake
from shardmean.model.distributed.store import Address, WorkerStore
from shardmean.model.distributed.tcp_allreduce import TcpAllReduce
from shardmean.model.errors import AbortedError, MissingPeersError

if TYPE_CHECKING:
    from collections.abc import Callable


ADDRESS = Address("127.0.0.1", 1, "segment", "secret")


class FakeStore:
    """A segment's keys for threads of one process."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()

    def seen_by(self, rank: int, timeout_s: float) -> FakeStore:
        """The same keys, as one worker's store."""
        store = copy.copy(self)
        store.address, store.rank, store.timeout_s = ADDRESS, rank, timeout_s
        return store

    def set(self, key: str, value: str) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, 10)
            return self._values[key]

    def raise_if_aborted(self) -> None:
        """Nobody aborts this segment."""


def connected(
    store: FakeStore | WorkerStore, rank: int, num_workers: int, *, own_host: str = "127.0.0.1", timeout_s: float = 10
) -> TcpAllReduce:
    if isinstance(store, FakeStore):
        store = store.seen_by(rank, timeout_s)
    return TcpAllReduce(store, num_workers=num_workers, own_host=own_host, on_bytes=lambda: None)


def together(num_workers: int, work: Callable[[int, TcpAllReduce], Any], timeout_s: float = 10) -> list[Any]:
    """Do `work` as every worker at once; results or errors by rank."""
    store = FakeStore()

    def one(rank: int) -> Any:
        reducer = connected(store, rank, num_workers, timeout_s=timeout_s)
        try:
            return work(rank, reducer)
        except RuntimeError as error:
            return error
        finally:
            reducer.close()

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(one, range(num_workers)))


@settings(max_examples=25, deadline=None)
@given(num_workers=st.integers(2, 6), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_sum_is_that_in_the_order_of_ranks_to_the_bit(num_workers, size, seed):
    values = np.random.default_rng(seed).normal(size=(num_workers, size)).astype(np.float32)

    def work(rank: int, reducer: TcpAllReduce) -> torch.Tensor:
        mine = torch.from_numpy(values[rank].copy())
        reducer.all_reduce(mine)
        return mine

    expected = values[0].copy()
    for row in values[1:]:
        expected += row
    for found in together(num_workers, work):
        np.testing.assert_array_equal(found.numpy(), expected)


def test_sums_larger_than_any_buffer_and_of_changing_size():
    sizes = (5_000_000, 3, 1_000_000, 0)

    def work(rank: int, reducer: TcpAllReduce) -> list[float]:
        sums = []
        for size in sizes:
            values = torch.full((size,), float(rank + 1))
            reducer.all_reduce(values)
            sums.append(values.double().mean().item() if size else 6.0)
        return sums

    assert together(3, work) == [[6.0] * len(sizes)] * 3


def test_a_peer_that_leaves_is_named_at_once():
    def work(rank: int, reducer: TcpAllReduce) -> None:
        if rank == 1:
            return
        reducer.all_reduce(torch.ones(10))

    errors = together(3, work, timeout_s=60)
    assert errors[1] is None
    assert {str(errors[0]), str(errors[2])} <= {"worker 1 left", "worker 1 was lost: Connection reset by peer",
                                                "worker 0 left", "worker 2 left"}  # fmt: skip
    assert any("worker 1" in str(error) for error in errors)


class Slow:
    """A connection that sends a few bytes at a time, with a pause before each."""

    def __init__(self, connection: socket.socket, num_bytes: int, pause_s: float) -> None:
        self._connection = connection
        self._num_bytes = num_bytes
        self._pause_s = pause_s
        self.fileno, self.recv_into, self.close = connection.fileno, connection.recv_into, connection.close

    def send(self, data: memoryview) -> int:
        time.sleep(self._pause_s)
        return self._connection.send(data[: self._num_bytes])


def test_a_sum_may_take_longer_than_the_limit_while_bytes_move():
    def work(rank: int, reducer: TcpAllReduce) -> float:
        if rank == 1:
            reducer._peers[0] = Slow(reducer._peers[0], 500, 0.1)
        values = torch.ones(2000)
        started = time.monotonic()
        reducer.all_reduce(values)
        assert time.monotonic() - started > 1, "twice the limit"
        return values.sum().item()

    assert together(2, work, timeout_s=0.5) == [4000.0] * 2


def test_a_peer_that_is_silent_is_named_after_the_time():
    done = threading.Event()

    def work(rank: int, reducer: TcpAllReduce) -> None:
        if rank == 1:
            done.wait(20)
            return
        try:
            reducer.all_reduce(torch.ones(10))
        finally:
            done.set()

    assert str(together(2, work, timeout_s=0.5)[0]) == "not a byte to or from worker 1 for 0.5 s"


def sums(store: FakeStore, num_workers: int, own_host: str = "127.0.0.1") -> list[float]:
    """Each worker's sum of ones after they connected by `store`."""

    def work(rank: int) -> float:
        reducer = connected(store, rank, num_workers, own_host=own_host)
        values = torch.ones(2)
        reducer.all_reduce(values)
        reducer.close()
        return values[0].item()

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(work, range(num_workers)))


class VisitedStore(FakeStore):
    """A store where strangers read worker 0's address before the others do, and connect to it."""

    def __init__(self, visit: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._visit = visit
        self._strangers: list[socket.socket] = []

    def set(self, key: str, value: str) -> None:
        if key == "peer/0":
            host, port = value.split()
            self._strangers.append(socket.create_connection((host, int(port))))
            self._visit(self._strangers[0])
        super().set(key, value)


def reset(stranger: socket.socket) -> None:
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stranger.close()


@pytest.mark.parametrize("visit", [
    socket.socket.close,
    reset,
    lambda stranger: stranger.sendall(b"GET / HTTP/1.1\r\nHost: worker\r\nAccept: */*\r\n\r\n"),
    lambda stranger: stranger.sendall(b"\0\0\0\1" + bytes(32) + b"0" * 64),
    lambda stranger: None,
], ids=["hangs up", "resets", "speaks HTTP", "claims a rank and guesses", "stays silent"])  # fmt: skip
def test_a_stranger_takes_nobodys_place_and_fails_no_segment(monkeypatch, visit):
    monkeypatch.setattr("shardmean.model.distributed.handshake.LIMIT_S", 0.5)
    assert sums(VisitedStore(visit), 2) == [2.0, 2.0]


def test_strangers_that_keep_coming_do_not_put_off_the_timeout():
    store, is_over = FakeStore(), threading.Event()

    def visit() -> None:
        host, port = store.get("peer/0").split()
        while not is_over.wait(0.05):
            with suppress(OSError):
                socket.create_connection((host, int(port)), 1).close()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(visit)
        try:
            with pytest.raises(
                MissingPeersError, match=r"^worker 0 could not reach worker 1: no connection after 0\.3"
            ):
                connected(store, 0, 2, timeout_s=0.3)
        finally:
            is_over.set()


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_workers_connect_by_ipv6():
    assert sums(FakeStore(), 2, "::1") == [2.0, 2.0]


def test_workers_that_do_not_come_are_named(monkeypatch):
    monkeypatch.setattr("shardmean.model.distributed.tcp_allreduce._SLICE_S", 0.1)
    with pytest.raises(MissingPeersError, match=r"worker 0 could not reach workers 1, 2: no connection after 0\.2 s"):
        connected(FakeStore(), 0, 3, timeout_s=0.2)


class FailingStore(FakeStore):
    """A store where an address can't be read."""

    def __init__(self, key: str, error: Exception) -> None:
        super().__init__()
        self._failing = key, error

    def get(self, key: str) -> str:
        if key == self._failing[0]:
            raise self._failing[1]
        return super().get(key)


@pytest.mark.parametrize(
    ("rank", "store"),
    [
        (2, FailingStore("peer/1", OSError("no route to host"))),
        (2, FailingStore("peer/1", KeyError("a bug"))),
        (1, FakeStore()),  # worker 2 does not come
    ],
)
def test_a_group_that_cannot_be_built_leaves_no_connection_open(rank, store):
    """Though whoever catches the error holds on to it: peers that wait must see at once that this worker left."""
    peer = socket.create_server(("127.0.0.1", 0))
    store.set("peer/0", "{} {}".format(*peer.getsockname()))

    def listen() -> bytes:
        connection, _ = peer.accept()
        with connection:
            assert handshake.accept(ADDRESS, connection, rank=0, endpoint=store.get("peer/0"), expected={rank}) == rank
            connection.settimeout(10)
            return connection.recv(1)

    with ThreadPoolExecutor(1) as pool, peer:
        left = pool.submit(listen)
        with pytest.raises((MissingPeersError, KeyError)) as held:
            connected(store, rank, 3, timeout_s=0.5)
        assert left.result(15) == b""
        host, port = store.get(f"peer/{rank}").split()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
    assert held.value.__traceback__ is not None


def test_a_worker_that_waits_for_another_sees_that_the_segment_is_aborted(rendezvous, address, monkeypatch):
    monkeypatch.setattr("shardmean.model.distributed.tcp_allreduce._SLICE_S", 0.1)
    for rank in (0, 1):  # one waits for a connection, the other for an address
        address = rendezvous.new_address()
        rendezvous.abort(address, "worker 1 found no data")
        with pytest.raises(AbortedError, match=f"worker {rank} was stopped: worker 1 found no data"):
            connected(WorkerStore(address, rank=rank, timeout_s=60), rank, 2 + rank)
