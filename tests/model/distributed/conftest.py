"""What the tests of distributed share: a driver's store, and an address at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shardmean.model.distributed.rendezvous import Rendezvous

if TYPE_CHECKING:
    from shardmean.model.distributed.store import Address


@pytest.fixture
def rendezvous() -> Rendezvous:
    """The driver's store, which ends with this object."""
    return Rendezvous()


@pytest.fixture
def address(rendezvous) -> Address:
    """The address of a segment."""
    return rendezvous.new_address()
