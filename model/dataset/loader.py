"""A worker's minibatches: read from the shards in planned order, and prepared ahead of the steps that take them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from torch import Tensor

    from .epoch_layout import Window
    from .manifest import Split
    from .reader import Dataset, Examples

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
    timed: Callable[[Generator[Examples]], Generator[Examples]] = lambda windows: windows,
) -> Generator[Examples]:
    """The minibatches of some windows of a plan; memory holds one window at a time.

    With `prefetch_batches` one thread makes that many minibatches ahead, and another reads one window ahead, so that
    memory holds up to three windows; `timed` then wraps the reading. With `pin` they lie in memory that a GPU can copy
    from by itself.
    """
    read = (dataset.take(split, *window.rows(), with_names=with_names, with_keys=with_keys) for window in windows)
    batches = _cut(prefetch(timed(read), 1) if prefetch_batches else read, batch_size)
    prepared = (_pinned(batch) for batch in batches) if pin else batches
    return prefetch(prepared, prefetch_batches) if prefetch_batches else prepared


def _cut(windows: Generator[Examples], batch_size: int) -> Generator[Examples]:
    for window in windows:
        for first in range(0, len(window.labels_N), batch_size):
            yield window[first : first + batch_size]
        # Before the next window is read, or memory would hold both.
        del window


def _pinned(batch: Examples) -> Examples:
    features, labels = (torch.from_numpy(part).pin_memory().numpy() for part in (batch.features_NCHW, batch.labels_N))
    return replace(batch, features_NCHW=features, labels_N=labels)


def prefetch(items: Generator[T], num_ahead: int) -> Generator[T]:
    """The same items, made in a thread that runs up to `num_ahead` ahead; its errors are raised here."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
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
    # From pinned memory the copies run beside the GPU's work on the minibatch before.
    return images_BCHW.to(device, non_blocking=True), labels_B.to(device, non_blocking=True)
