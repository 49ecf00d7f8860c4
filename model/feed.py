"""A worker's minibatches, read from the shards in planned order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .shards import Dataset, Examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .manifest import Split
    from .plan import EpochPlan


def minibatches(dataset: Dataset, plan: EpochPlan, rank: int, split: Split, *, with_names: bool) -> Iterator[Examples]:
    """A worker's minibatches of an epoch in planned order; memory holds one window of the plan at a time."""
    shards = dataset.manifest.shards_of(split)
    for window in plan.windows(rank):
        pieces = [
            piece
            for rows in window.ranges
            for piece in dataset.read(shards[rows.shard_index], rows.start, rows.stop, with_names=with_names)
        ]
        joined = _joined(pieces)
        for first in range(0, len(window.order), plan.batch_size):
            yield joined.take(window.order[first : first + plan.batch_size])


def _joined(pieces: list[Examples]) -> Examples:
    if len(pieces) == 1:
        return pieces[0]
    return Examples(
        np.concatenate([piece.features_NCHW for piece in pieces]),
        np.concatenate([piece.labels_N for piece in pieces]),
        [name for piece in pieces for name in piece.ids],
        [path for piece in pieces for path in piece.paths],
    )
