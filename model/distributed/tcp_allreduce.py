"""All-reduce over plain TCP connections, one for every two workers, in the calling thread.

A worker owns a part of the values: all others send it theirs, it adds them in the order of ranks, and sends the sum
back. That is as little traffic as a ring's, two hops for any number of workers, and the bits of the sum do not depend
on which part arrives first. No helper thread takes part: where every core computes, waking one takes milliseconds, and
a round of a small network is not much longer.
"""

from __future__ import annotations

import selectors
import socket
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch

from ..errors import LostPeersError, MissingPeersError
from . import handshake

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .store import WorkerStore

T = TypeVar("T")
_BUFFER_BYTES = 4 * 2**20
_SLICE_S = 1.0
_BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE


class TcpAllReduce:
    """One worker's connections to all others of its segment. Errors are RuntimeErrors that name the peer."""

    def __init__(self, store: WorkerStore, *, num_workers: int, own_host: str, on_bytes: Callable[[], None]) -> None:
        """Connect to all others, whose addresses are in `store`; each side proves that it is of the segment.

        The store's timeout limits the connecting, and later the time without a byte to or from any peer. `on_bytes` is
        called whenever some were sent or received, many times in a large sum.

        Raises MissingPeersError when one does not come, AbortedError when the segment was aborted, RetryableError when
        the store holds an address that no worker of the segment wrote.
        """
        self._store = store
        self._num_workers = num_workers
        self._on_bytes = on_bytes
        self._inbox = torch.empty((0, 0))
        self._peers: dict[int, socket.socket] = {}
        try:
            self._connect(own_host)
        except OSError as error:
            missing = sorted({*range(num_workers)} - {store.rank, *self._peers})
            self.close()
            raise missing_peers(store.rank, missing, error) from error
        except BaseException:
            self.close()
            raise

    def all_reduce(self, values: Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        """Sum float32 values on the CPU over all workers, in place; they travel as `dtype` and are added in float32."""
        wire = values if dtype == torch.float32 else values.to(dtype)
        bounds = [rank * wire.numel() // self._num_workers for rank in range(self._num_workers + 1)]
        parts = [wire[start:stop] for start, stop in pairwise(bounds)]
        own = parts[self._store.rank]
        if self._inbox.shape != (self._num_workers, own.numel()) or self._inbox.dtype != dtype:
            self._inbox = torch.empty((self._num_workers, own.numel()), dtype=dtype)
        self._inbox[self._store.rank] = own
        self._transfer({peer: parts[peer] for peer in self._peers}, {peer: self._inbox[peer] for peer in self._peers})
        total = self._inbox[0].float()
        for contribution in self._inbox[1:]:
            total += contribution
        own.copy_(total)
        self._transfer(dict.fromkeys(self._peers, own), {peer: parts[peer] for peer in self._peers})
        if wire is not values:
            values.copy_(wire)

    def close(self, *, broken: bool = False) -> None:  # noqa: ARG002 - a connection is closed in one way
        """Close all connections; peers that wait for this worker see it at once."""
        for peer in self._peers.values():
            peer.close()
        self._peers = {}

    def _connect(self, own_host: str) -> None:
        # Each worker dials those of lower rank. So no two wait for each other's answer.
        deadline = time.monotonic() + self._store.timeout_s
        family = socket.AF_INET6 if ":" in own_host else socket.AF_INET
        with socket.create_server((own_host, 0), family=family, backlog=self._num_workers) as server:
            endpoint = f"{own_host} {server.getsockname()[1]}"
            self._store.set(f"peer/{self._store.rank}", endpoint)
            for peer in range(self._store.rank):
                self._dial(peer, deadline)
            server.settimeout(_SLICE_S)
            while len(self._peers) < self._num_workers - 1:
                connection, _ = self._in_slices(deadline, server.accept)
                self._accept(connection, endpoint, deadline)
        for connection in self._peers.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            connection.setblocking(False)

    def _dial(self, peer: int, deadline: float) -> None:
        try:
            endpoint = self._store.get(f"peer/{peer}")
            host, port = endpoint.split()
            connect = partial(socket.create_connection, (host, int(port)), _SLICE_S)
            self._peers[peer] = connection = self._in_slices(deadline, connect)
            first_byte = partial(connection.recv, 1, socket.MSG_PEEK)
            handshake.introduce(
                self._store.address,
                connection,
                rank=self._store.rank,
                listener=peer,
                endpoint=endpoint,
                await_answer=lambda: self._in_slices(deadline, first_byte),
            )
        except OSError as error:
            raise missing_peers(self._store.rank, [peer], error) from error

    def _accept(self, connection: socket.socket, endpoint: str, deadline: float) -> None:
        # A stranger, such as a port scanner that stays silent, costs a few seconds and not the segment.
        expected = {*range(self._store.rank + 1, self._num_workers)} - {*self._peers}
        address, rank = self._store.address, self._store.rank
        peer = handshake.accept(address, connection, rank=rank, endpoint=endpoint, expected=expected)
        if peer is None:
            connection.close()
            self._raise_if_over(deadline)
        else:
            self._peers[peer] = connection

    def _in_slices(self, deadline: float, attempt: Callable[[], T]) -> T:
        """Repeat what takes a second at most until it succeeds, the deadline passes or the segment is aborted."""
        while True:
            try:
                return attempt()
            except TimeoutError:
                self._raise_if_over(deadline)

    def _raise_if_over(self, deadline: float) -> None:
        self._store.raise_if_aborted()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no connection after {self._store.timeout_s:g} s")

    def _transfer(self, outgoing: dict[int, Tensor], incoming: dict[int, Tensor]) -> None:
        """Send and receive with all peers at once, so that nobody's full buffers block anybody.

        However long it takes, it goes on as long as bytes move.
        """
        to_send = {peer: _bytes_of(part) for peer, part in outgoing.items() if part.numel()}
        to_receive = {peer: _bytes_of(part) for peer, part in incoming.items() if part.numel()}
        with selectors.DefaultSelector() as selector:
            for peer in to_send.keys() | to_receive.keys():
                selector.register(self._peers[peer], _BOTH, peer)
            while to_send or to_receive:
                ready = selector.select(self._store.timeout_s)
                if not ready:
                    late = sorted(to_receive.keys() | to_send.keys())
                    raise LostPeersError(f"not a byte to or from {_names(late)} for {self._store.timeout_s:g} s")
                for key, events in ready:
                    self._move(key.data, events, to_send, to_receive)
                    wanted = (key.data in to_receive and selectors.EVENT_READ) | (
                        key.data in to_send and selectors.EVENT_WRITE
                    )
                    if not wanted:
                        selector.unregister(key.fileobj)
                    elif wanted != key.events:
                        selector.modify(key.fileobj, wanted, key.data)
                self._on_bytes()

    def _move(self, peer: int, events: int, to_send: dict[int, memoryview], to_receive: dict[int, memoryview]) -> None:
        connection = self._peers[peer]
        try:
            if events & selectors.EVENT_WRITE and peer in to_send:
                _advance(to_send, peer, connection.send(to_send[peer]))
            if events & selectors.EVENT_READ and peer in to_receive:
                count = connection.recv_into(to_receive[peer])
                if count == 0:
                    raise LostPeersError(f"{_names([peer])} left")
                _advance(to_receive, peer, count)
        except BlockingIOError:
            return
        except OSError as error:
            raise LostPeersError(f"{_names([peer])} was lost: {error.strerror}") from error


def _bytes_of(part: Tensor) -> memoryview:
    return memoryview(part.view(torch.uint8).numpy().data)


def _advance(pending: dict[int, memoryview], peer: int, count: int) -> None:
    pending[peer] = pending[peer][count:]
    if not pending[peer]:
        del pending[peer]


def missing_peers(rank: int, peers: list[int], error: Exception) -> MissingPeersError:
    """The error for peers that did not come."""
    return MissingPeersError(f"worker {rank} could not reach {_names(peers)}: {error}")


def _names(peers: list[int]) -> str:
    return f"worker{'s' if len(peers) > 1 else ''} {', '.join(map(str, peers))}"
