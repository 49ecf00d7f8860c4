"""How two workers prove over a new connection that they know their segment's secret, without sending it.

Each answers a fresh nonce of the other with an HMAC over the segment, its own role, both ranks, the address that was
dialed and both nonces. So no answer can be replayed, sent back to who gave it, or passed on to a third worker.
"""

from __future__ import annotations

import hmac
import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Container

    from .store import Address

LIMIT_S = 5.0
_NONCE_BYTES = 32
_RANK_BYTES = 4
_TAG_BYTES = 64


def introduce(
    address: Address,
    connection: socket.socket,
    *,
    rank: int,
    listener: int,
    endpoint: str,
    await_answer: Callable[[], object],
) -> None:
    """The side that dials, as worker `rank`: make sure of the listener at `endpoint` before it is sent any proof.

    `await_answer` returns once the answer begins: a listener may be busy for long. Raises OSError when the listener is
    not worker `listener`, or hangs up.
    """
    own_nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(rank.to_bytes(_RANK_BYTES, "big") + own_nonce)
    await_answer()
    answer = _received(connection, _NONCE_BYTES + _TAG_BYTES, time.monotonic() + LIMIT_S)
    words = (rank, listener, endpoint, own_nonce.hex(), answer[:_NONCE_BYTES].hex())
    if not hmac.compare_digest(answer[_NONCE_BYTES:], address.tag("listener", *words)):
        raise ConnectionError(f"what answers at {endpoint} does not know this segment's secret")
    connection.sendall(address.tag("dialer", *words))


def accept(
    address: Address, connection: socket.socket, *, rank: int, endpoint: str, expected: Container[int]
) -> int | None:
    """The side that listens, as worker `rank` at `endpoint`: the dialer's rank, or None for a stranger."""
    deadline = time.monotonic() + LIMIT_S
    connection.settimeout(LIMIT_S)
    try:
        hello = _received(connection, _RANK_BYTES + _NONCE_BYTES, deadline)
        dialer, nonce = int.from_bytes(hello[:_RANK_BYTES], "big"), secrets.token_bytes(_NONCE_BYTES)
        if dialer not in expected:
            return None
        words = (dialer, rank, endpoint, hello[_RANK_BYTES:].hex(), nonce.hex())
        connection.sendall(nonce + address.tag("listener", *words))
        is_genuine = hmac.compare_digest(_received(connection, _TAG_BYTES, deadline), address.tag("dialer", *words))
    except OSError:
        return None
    return dialer if is_genuine else None


def _received(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes. Raises OSError when they do not come before the deadline, however slowly some do."""
    found = b""
    while len(found) < size:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        more = connection.recv(size - len(found))
        if not more:
            raise ConnectionError("the connection was closed")
        found += more
    return found
