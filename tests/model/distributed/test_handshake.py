"""The handshake of two workers: it admits who knows the secret, and what it sends helps nobody else to get in."""

from __future__ import annotations

import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from torch.distributed import TCPStore

from shardmean.model.distributed import handshake
from shardmean.model.distributed.store import Address, WorkerStore
from shardmean.model.distributed.tcp_allreduce import TcpAllReduce
from shardmean.model.errors import MissingPeersError, RetryableError

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS = Address("127.0.0.1", 1, "segment", "0123456789abcdef")
ENDPOINT = "10.0.0.1 4711"
HELLO_BYTES, ANSWER_BYTES, PROOF_BYTES = 36, 96, 64


def introduce(
    connection: socket.socket, address: Address = ADDRESS, *, rank: int = 2, listener: int = 1, endpoint: str = ENDPOINT
) -> bool:
    """Whether the dialer accepted what is at the other end."""
    try:
        handshake.introduce(
            address, connection, rank=rank, listener=listener, endpoint=endpoint, await_answer=lambda: None
        )
    except ConnectionError:
        connection.close()
        return False
    return True


def accept(
    connection: socket.socket, address: Address = ADDRESS, *, rank: int = 1, endpoint: str = ENDPOINT
) -> int | None:
    """The rank that the listener admitted; what it refuses it hangs up on."""
    admitted = handshake.accept(address, connection, rank=rank, endpoint=endpoint, expected={2, 3})
    if admitted is None:
        connection.close()
    return admitted


def received(connection: socket.socket, size: int) -> bytes:
    return connection.recv(size, socket.MSG_WAITALL)


def through(
    relay: Callable[[socket.socket, socket.socket], object],
    listener: Callable[[socket.socket], int | None],
    dialer: Callable[[socket.socket], bool] = introduce,
) -> tuple[bool, int | None]:
    """What dialer and listener make of each other where `relay` stands between them."""
    dialing, from_dialer = socket.socketpair()
    to_listener, listening = socket.socketpair()
    with ThreadPoolExecutor(3) as pool, dialing, from_dialer, to_listener, listening:
        results = pool.submit(dialer, dialing), pool.submit(listener, listening)
        with suppress(OSError):
            relay(from_dialer, to_listener)
        from_dialer.shutdown(socket.SHUT_WR)
        to_listener.shutdown(socket.SHUT_WR)
        return results[0].result(), results[1].result()


def forward(from_dialer: socket.socket, to_listener: socket.socket) -> list[bytes]:
    """Pass each message on as it is."""
    passed = [received(from_dialer, HELLO_BYTES)]
    to_listener.sendall(passed[0])
    passed.append(received(to_listener, ANSWER_BYTES))
    from_dialer.sendall(passed[1])
    passed.append(received(from_dialer, PROOF_BYTES))
    to_listener.sendall(passed[2])
    return passed


def test_two_workers_of_a_segment_admit_each_other_and_send_no_secret():
    passed = []
    assert through(lambda *ends: passed.extend(forward(*ends)), accept) == (True, 2)
    assert [len(message) for message in passed] == [HELLO_BYTES, ANSWER_BYTES, PROOF_BYTES]
    secret = ADDRESS.secret.encode()
    assert not any(part in b"".join(passed) for part in (secret, bytes.fromhex(ADDRESS.secret)))


@pytest.mark.parametrize(
    "differs",
    [
        {"address": replace(ADDRESS, secret="fedcba9876543210")},
        {"address": replace(ADDRESS, prefix="another segment")},
        {"rank": 0},
        {"endpoint": "10.0.0.2 4711"},
    ],
)
def test_a_handshake_relayed_to_another_worker_segment_or_address_fails_on_both_sides(differs):
    def listener(connection: socket.socket) -> int | None:
        return accept(connection, **differs)

    assert through(forward, listener) == (False, None)


def test_a_dialer_cannot_be_passed_off_as_another():
    def as_worker_3(from_dialer: socket.socket, to_listener: socket.socket) -> None:
        to_listener.sendall(struct.pack(">I", 3) + received(from_dialer, HELLO_BYTES)[4:])
        from_dialer.sendall(received(to_listener, ANSWER_BYTES))
        to_listener.sendall(received(from_dialer, PROOF_BYTES))

    assert through(as_worker_3, accept) == (False, None)


def test_a_listeners_answer_is_no_proof_of_a_dialer():
    def reflect(from_dialer: socket.socket, to_listener: socket.socket) -> None:
        to_listener.sendall(received(from_dialer, HELLO_BYTES))
        answer = received(to_listener, ANSWER_BYTES)
        to_listener.sendall(answer[-PROOF_BYTES:])

    assert through(reflect, accept) == (False, None)


def test_a_dialers_own_bytes_are_no_answer():
    def reflect(from_dialer: socket.socket, to_listener: socket.socket) -> None:
        hello = received(from_dialer, HELLO_BYTES)
        from_dialer.sendall((hello * 3)[:ANSWER_BYTES])

    assert through(reflect, accept)[0] is False


def test_what_was_recorded_serves_on_no_later_connection():
    recorded: list[bytes] = []
    through(lambda *ends: recorded.extend(forward(*ends)), accept)
    hello, answer, proof = recorded

    def replay(from_dialer: socket.socket, to_listener: socket.socket) -> None:
        to_listener.sendall(hello + proof)
        received(from_dialer, HELLO_BYTES)
        from_dialer.sendall(answer)
        assert received(from_dialer, PROOF_BYTES) == b"", "the dialer gives no proof to who can't show one"

    assert through(replay, accept) == (False, None)


@pytest.mark.parametrize("hello", [b"", b"\0\0\0\2", b"\0\0\0\0" + bytes(32), b"\0\0\0\7" + bytes(32)])
def test_who_is_not_expected_learns_nothing(hello):
    """Who hangs up early, or claims a rank that is not awaited."""
    stranger, listening = socket.socketpair()
    with stranger, listening:
        stranger.sendall(hello)
        stranger.shutdown(socket.SHUT_WR)
        assert accept(listening) is None
        assert stranger.recv(1) == b""


@pytest.mark.parametrize("drips", [True, False])
def test_a_stranger_holds_the_listener_up_for_the_limit_and_no_longer(monkeypatch, drips):
    monkeypatch.setattr(handshake, "LIMIT_S", 0.3)
    stranger, listening = socket.socketpair()
    ended = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while drips and not ended.wait(0.05):
                stranger.sendall(b"\0")

    with stranger, listening, ThreadPoolExecutor(1) as pool:
        pool.submit(drip)
        started = time.monotonic()
        assert accept(listening) is None
        assert 0.2 < time.monotonic() - started < 1.5
        ended.set()


class Attacker:
    """Reaches the driver's store and listens itself; keeps what it is sent."""

    def __init__(self, address: Address) -> None:
        self._store = TCPStore(address.host, address.port, None, False)
        self._prefix = address.prefix
        self.server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1 {self.server.getsockname()[1]}"

    def write(self, key: str, value: str | bytes) -> None:
        self._store.set(f"{self._prefix}/{key}", value)

    def read(self, key: str) -> bytes:
        return self._store.get(f"{self._prefix}/{key}")

    def received(self) -> bytes:
        """All that was sent to it; nothing where nobody connected."""
        self.server.settimeout(0.5)
        with suppress(TimeoutError):
            connection, _ = self.server.accept()
            with connection:
                connection.settimeout(0.5)
                return received(connection, 1000)
        return b""


def joined(address: Address, rank: int, num_workers: int = 3, timeout_s: float = 5) -> TcpAllReduce:
    store = WorkerStore(address, rank=rank, timeout_s=timeout_s)
    return TcpAllReduce(store, num_workers=num_workers, own_host="127.0.0.1", on_bytes=lambda: None)


def forgeries(address: Address, attacker: Attacker) -> dict[str, str | bytes]:
    """Entries for worker 0's address that an attacker can write."""
    WorkerStore(address, rank=2, timeout_s=5).set("peer/2", attacker.endpoint)
    other = replace(address, secret="guessed")
    return {
        "unsigned": attacker.endpoint,
        "signed by another secret": f"{other.tag('entry', 'peer/0', attacker.endpoint).decode()} {attacker.endpoint}",
        "signed for another segment": (
            f"{replace(address, prefix='old').tag('entry', 'peer/0', attacker.endpoint).decode()} {attacker.endpoint}"
        ),
        "that of worker 2": attacker.read("peer/2"),
        "no text": b"\xff\xfe \xff",
        "empty": "",
    }


@pytest.mark.parametrize("kind", [
    "unsigned", "signed by another secret", "signed for another segment", "that of worker 2", "no text", "empty",
])  # fmt: skip
def test_a_forged_address_is_refused_by_name_and_nothing_is_sent_to_it(address, kind):
    attacker = Attacker(address)
    attacker.write("peer/0", forgeries(address, attacker)[kind])
    with pytest.raises(RetryableError) as refused:
        joined(address, rank=1)
    assert str(refused.value) == (
        f"worker 1 refused the entry peer/0 of the driver's store at 127.0.0.1 port {address.port}: worker 0 of this "
        "segment did not sign it, so somebody else writes to that store; keep others away from the driver's port"
    )
    assert attacker.received() == b""


def test_who_took_over_a_workers_port_gets_no_proof_and_is_refused_by_name(address):
    """As where that worker has died and another program of its machine listens there."""
    attacker = Attacker(address)
    WorkerStore(address, rank=0, timeout_s=5).set("peer/0", attacker.endpoint)
    got = []

    def answer() -> None:
        connection, _ = attacker.server.accept()
        with connection:
            got.append(received(connection, HELLO_BYTES))
            connection.sendall(bytes(ANSWER_BYTES))
            got.append(received(connection, 1000))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(answer)
        with pytest.raises(MissingPeersError, match=r"worker 1 could not reach worker 0: what answers at 127") as error:
            joined(address, rank=1)
    assert "does not know this segment's secret" in str(error.value)
    assert [len(part) for part in got] == [HELLO_BYTES, 0]
    assert address.secret.encode() not in got[0]
