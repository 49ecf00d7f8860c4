"""A worker's minibatches: read from the shards in planned order, and prepared ahead of the steps that take them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from .shards import Dataset, Examples

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from numpy.typing import NDArray

    from .accounting import Clock
    from .manifest import Split
    from .plan import Window

T = TypeVar("T")


def minibatches(
    dataset: Dataset,
    windows: Iterable[Window],
    split: Split,
    *,
    batch_size: int,
    with_names: bool,
    with_keys: bool = False,
    prefetch_batches: int = 0,
    pin: bool = False,
    clock: Clock | None = None,
) -> Generator[Examples]:
    """The minibatches of some windows of a plan; memory holds one window at a time.

    With `prefetch_batches` one thread makes that many minibatches ahead, and another reads one window ahead, so that
    memory holds up to three windows; `clock` then gets their seconds of reading. With `pin` they lie in memory that
    a GPU can copy from by itself.
    """
    reading = _windows(dataset, windows, split, with_names=with_names, with_keys=with_keys)
    if prefetch_batches == 0:
        batches = _cut(reading, batch_size)
    else:
        batches = _cut(ahead(reading if clock is None else clock.timing("read", reading), 1), batch_size)
    prepared = (_pinned(batch) for batch in batches) if pin else batches
    return ahead(prepared, prefetch_batches) if prefetch_batches else prepared


def _windows(
    dataset: Dataset, windows: Iterable[Window], split: Split, **wanted: bool
) -> Generator[tuple[Examples, NDArray[np.int64]]]:
    shards = dataset.manifest.shards_of(split)
    for window in windows:
        pieces = [
            piece
            for rows in window.ranges
            for piece in dataset.read(shards[rows.shard_index], rows.start, rows.stop, **wanted)
        ]
        yield _joined(pieces), window.order


def _cut(windows: Generator[tuple[Examples, NDArray[np.int64]]], batch_size: int) -> Generator[Examples]:
    for joined, order in windows:
        for first in range(0, len(order), batch_size):
            yield joined.take(order[first : first + batch_size])


def _pinned(batch: Examples) -> Examples:
    features, labels = (torch.from_numpy(part).pin_memory().numpy() for part in (batch.features_NCHW, batch.labels_N))
    return replace(batch, features_NCHW=features, labels_N=labels)


def _joined(pieces: list[Examples]) -> Examples:
    if len(pieces) == 1:
        return pieces[0]
    keys = [piece.keys_N for piece in pieces if piece.keys_N is not None]
    return Examples(
        np.concatenate([piece.features_NCHW for piece in pieces]),
        np.concatenate([piece.labels_N for piece in pieces]),
        [name for piece in pieces for name in piece.ids],
        [path for piece in pieces for path in piece.paths],
        np.concatenate(keys) if keys else None,
    )


def ahead(items: Generator[T], num_ahead: int) -> Generator[T]:
    """The same items, made in a thread that runs up to `num_ahead` ahead; its errors are raised here."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        made: deque[Future[Any]] = deque(pool.submit(next, items, end) for _ in range(num_ahead))
        try:
            while (item := made.popleft().result()) is not end:
                made.append(pool.submit(next, items, end))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
            items.close()
