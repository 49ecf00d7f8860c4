"""A worker's minibatches: read from the shards in planned order, and prepared ahead of the steps that take them."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from ..training.phase_timer import PhaseTimer
    from .manifest import Split
    from .reader import Dataset, Examples
    from .sampler import Window

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
    timer: PhaseTimer | None = None,
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
        batches = _cut(prefetch(reading if timer is None else timer.timing("read", reading), 1), batch_size)
    prepared = (_pinned(batch) for batch in batches) if pin else batches
    return prefetch(prepared, prefetch_batches) if prefetch_batches else prepared


def _windows(
    dataset: Dataset, windows: Iterable[Window], split: Split, **wanted: bool
) -> Generator[tuple[Examples, NDArray[np.int64]]]:
    shards = dataset.manifest.shards_of(split)
    for window in windows:
        read = (dataset.read(shards[rows.shard_index], rows.start, rows.stop, **wanted) for rows in window.ranges)
        num_rows = sum(rows.stop - rows.start for rows in window.ranges)
        yield _joined((piece for pieces in read for piece in pieces), num_rows), window.order


def _cut(windows: Generator[tuple[Examples, NDArray[np.int64]]], batch_size: int) -> Generator[Examples]:
    for joined, order in windows:
        for first in range(0, len(order), batch_size):
            yield joined.take(order[first : first + batch_size])
        # Before the next window is read, or memory would hold both.
        del joined


def _pinned(batch: Examples) -> Examples:
    features, labels = (torch.from_numpy(part).pin_memory().numpy() for part in (batch.features_NCHW, batch.labels_N))
    return replace(batch, features_NCHW=features, labels_N=labels)


def _joined(pieces: Iterator[Examples], num_rows: int) -> Examples:
    """All pieces as one; each is let go when it is copied, so that memory holds the images once."""
    first = next(pieces)
    if len(first.labels_N) == num_rows:
        return first
    whole = replace(
        first, features_NCHW=np.empty((num_rows, *first.features_NCHW.shape[1:]), np.uint8), ids=[], paths=[]
    )
    labels, keys, done = [], [], 0
    for piece in itertools.chain([first], pieces):
        whole.features_NCHW[done : done + len(piece.labels_N)] = piece.features_NCHW
        done += len(piece.labels_N)
        labels.append(piece.labels_N)
        keys += [] if piece.keys_N is None else [piece.keys_N]
        whole.ids.extend(piece.ids)
        whole.paths.extend(piece.paths)
    assert done == num_rows, "a window's ranges are read whole"
    return replace(whole, labels_N=np.concatenate(labels), keys_N=np.concatenate(keys) if keys else None)


def prefetch(items: Generator[T], num_ahead: int) -> Generator[T]:
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


def on_device(batch: Examples, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images uint8 (B, C, H, W) and labels int64 (B,) of a minibatch on a device."""
    images_BCHW, labels_B = torch.from_numpy(batch.features_NCHW), torch.from_numpy(batch.labels_N)
    # From pinned memory (see model/feed.py) the copies run beside the GPU's work on the minibatch before.
    return images_BCHW.to(device, non_blocking=True), labels_B.to(device, non_blocking=True)
