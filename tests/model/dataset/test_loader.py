"""Minibatches made ahead are those made in turn; errors arrive, threads end, and memory stays within the buffer."""

from __future__ import annotations

import threading
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from shardmean.model.dataset.epoch_layout import ShardRows
from shardmean.model.dataset.loader import minibatches, prefetch
from shardmean.model.dataset.sampler import plan_epoch
from shardmean.model.errors import RetryableError
from shardmean.model.training.phase_timer import PhaseTimer
from tests.model.fitting import bits, fit, plan_of, training

if TYPE_CHECKING:
    from collections.abc import Generator


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def counting(made: list[int], limit: int = 100) -> Generator[int]:
    for number in range(limit):
        made.append(number)
        yield number


@pytest.mark.parametrize("num_ahead", [1, 3, 200])
def test_items_come_in_order_and_no_more_are_made_than_asked_for(num_ahead):
    made: list[int] = []
    taken = 0
    for item in prefetch(counting(made), num_ahead):
        assert item == taken
        taken += 1
        assert len(made) <= taken + num_ahead
    assert taken == len(made) == 100
    assert feed_threads() == []


def test_an_error_of_the_source_is_raised_at_its_place():
    def failing() -> Generator[int]:
        yield 1
        yield 2
        raise RetryableError("the store is away")

    items = prefetch(failing(), 5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(RetryableError, match="the store is away"):
        next(items)
    assert feed_threads() == []


def test_closing_ends_the_threads_and_the_source():
    made: list[int] = []
    source = counting(made, 10**9)
    items = prefetch(prefetch(source, 2), 2)
    next(items)
    items.close()
    assert feed_threads() == []
    assert len(made) < 10
    assert next(source, None) is None, "the source was closed"


@pytest.mark.parametrize("prefetch_batches", [1, 4])
def test_prefetched_minibatches_are_the_same(tiny_data, prefetch_batches):
    plan, timer = plan_of(tiny_data, num_workers=2, epoch=0), PhaseTimer()

    def made(**options) -> list[tuple[bytes, bytes]]:
        feed = minibatches(tiny_data, plan.windows(1), "train", batch_size=8, with_names=False, **options)
        return [(batch.features_NCHW.tobytes(), batch.labels_N.tobytes()) for batch in feed]

    assert made(prefetch_batches=prefetch_batches, timed=partial(timer.timing, "read")) == made()
    assert timer.seconds["read"] > 0


def test_a_training_with_prefetch_ends_with_the_same_bits(tiny_data, launchers):
    def parameters(prefetch_batches):
        config = {"optimizer": {"name": "adam"}, "num_epochs": 2, "num_workers": 2}
        return bits(fit(training(tiny_data, launchers, prefetch_batches=prefetch_batches, **config)).model)

    assert parameters(0) == parameters(3)


def test_memory_holds_windows_not_the_dataset(make_dataset, tmp_path):
    """No window, and so no piece of memory, is larger than the buffer, however large the DataSet."""
    dataset = make_dataset(tmp_path, rows={"train": 300}, shape=(1, 8, 8), shard_bytes=64 * 40)
    plan = plan_of(dataset, num_workers=1, epoch=0)
    sizes = [len(window.rows()[0]) for window in plan.windows(0)]
    assert max(sizes) == 24, "BUFFER_ROWS"
    assert sum(sizes) == 300
    seen = np.concatenate(
        [b.labels_N for b in minibatches(dataset, plan.windows(0), "train", batch_size=8, with_names=False)]
    )
    assert len(seen) == 300


@pytest.mark.parametrize(("prefetch_batches", "most"), [(0, 1.5), (4, 3)])
def test_the_images_of_a_window_are_held_once(make_dataset, tmp_path, prefetch_batches, most):
    dataset = make_dataset(tmp_path, rows={"train": 400}, shape=(3, 64, 64), shard_bytes=2**17)
    shards = ShardRows.of(dataset.manifest.shards_of("train"))
    example_bytes, buffer_rows = dataset.manifest.image.example_bytes, 100
    plan = plan_epoch(shards, num_workers=1, batch_size=4, frequency=5, seed=0, epoch=0, buffer_rows=buffer_rows)
    options = {"batch_size": 4, "with_names": False, "prefetch_batches": prefetch_batches}
    tracemalloc.start()
    try:
        assert sum(len(batch.labels_N) for batch in minibatches(dataset, plan.windows(0), "train", **options)) == 400
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < most * buffer_rows * example_bytes
