"""What the tests of averaging share: groups of workers that have met, and a network that each worker copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from shardmean.model.distributed.rendezvous import Rendezvous
from tests.model.optimization.workers import group_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.model.distributed.rendezvous import WorkerGroup


@pytest.fixture(scope="module")
def groups() -> Iterator[dict[int, list[WorkerGroup]]]:
    """Groups of 1, 2 and 3 workers; made once a module, because torch asks the name server at every connection."""
    rendezvous = Rendezvous()
    groups = {num_workers: group_of(rendezvous, num_workers) for num_workers in (1, 2, 3)}
    yield groups
    for worker in (worker for group in groups.values() for worker in group):
        worker.__exit__(None, None, None)


@pytest.fixture(scope="module")
def template() -> nn.Module:
    """A small network with BatchNorm, which each worker of an averaging copies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
