"""What a minibatch and a worker see does not depend on how a DataSet grew, and a row is read once an epoch.

Shapes: S shards, K classes.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from shardmean.model.dataset.epoch_layout import ShardRows
from shardmean.model.dataset.loader import minibatches
from shardmean.model.dataset.reader import Dataset
from shardmean.model.dataset.sampler import EpochPlan, plan_epoch
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_CLASSES, NUM_ROWS, BATCH = 10, 20_000, 32
# What the default buffer of 64 MiB holds of RGB images of 224 x 224.
BUFFER_ROWS = 445
SEEDS = range(20)


def shuffled(labels: NDArray[np.int64], num_shards: int) -> list[NDArray[np.int64]]:
    return np.array_split(np.random.default_rng(0).permutation(labels), num_shards)


def grown(labels: NDArray[np.int64], num_shards: int) -> list[NDArray[np.int64]]:
    """Published class by class; shards stand in the order of their hashes, so of no class."""
    shards = [part for label in range(NUM_CLASSES) for part in np.array_split(labels[labels == label], num_shards)]
    return [shards[index] for index in np.random.default_rng(1).permutation(len(shards))]


LABELS = np.repeat(np.arange(NUM_CLASSES), NUM_ROWS // NUM_CLASSES)
# The classes are not of one size: a fifth of the images are of the first.
UNEVEN = np.concatenate([np.zeros(NUM_ROWS // 10, np.int64), LABELS])
LAYOUTS = {
    "one publication": shuffled(LABELS, 40),
    "grown by class, a shard each": grown(LABELS, 1),
    "grown by class, ten shards each": grown(LABELS, 10),
    "grown by class, uneven": grown(UNEVEN, 4),
    "more shards than a window has rows": grown(LABELS, 50),
    "sorted by class": np.array_split(LABELS, 37),
    "sorted within each shard": [np.sort(shard) for shard in shuffled(LABELS, 40)],
}


def plan_of(shards: list[NDArray[np.int64]], *, num_workers: int, seed: int, **changes: int | None) -> EpochPlan:
    most_common = [int(np.bincount(shard).argmax()) for shard in shards]
    by_class = sorted(range(len(shards)), key=most_common.__getitem__)
    rows = ShardRows(tuple(len(shard) for shard in shards), tuple(by_class))
    options = {"batch_size": BATCH, "buffer_rows": BUFFER_ROWS, "example_bytes": 3 * 224 * 224, "frequency": 5}
    return plan_epoch(rows, num_workers=num_workers, seed=seed, epoch=3, **(options | changes))


def labels_of_workers(shards: list[NDArray[np.int64]], plan: EpochPlan) -> list[NDArray[np.int64]]:
    """The labels that each worker sees, in training order."""
    firsts = np.cumsum([0, *(len(shard) for shard in shards)])
    labels = np.concatenate(shards)
    seen = []
    for rank in range(plan.num_workers):
        rows = [firsts[index] + row for index, row in (window.rows() for window in plan.windows(rank))]
        seen.append(labels[np.concatenate(rows)])
    return seen


def chi_square(labels: NDArray[np.int64], shares_K: NDArray[np.float64]) -> float:
    """Mean over minibatches of the chi-square of their labels, per degree of freedom: 1 for independent draws."""
    batches = labels[: len(labels) // BATCH * BATCH].reshape(-1, BATCH)
    counts = (batches[:, :, None] == np.arange(NUM_CLASSES)).sum(axis=1)
    expected_K = BATCH * shares_K
    return float((((counts - expected_K) ** 2 / expected_K).sum(axis=1) / (NUM_CLASSES - 1)).mean())


def total_variation(labels: NDArray[np.int64], shares_K: NDArray[np.float64]) -> float:
    return float(np.abs(np.bincount(labels, minlength=NUM_CLASSES) / len(labels) - shares_K).sum() / 2)


def of_true_shuffles(labels: NDArray[np.int64], num_workers: int, shares_K: NDArray[np.float64]) -> float:
    generator = np.random.default_rng(2)
    parts = [generator.permutation(labels)[: len(labels) // num_workers] for _ in range(200)]
    return float(np.mean([total_variation(part, shares_K) for part in parts]))


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_minibatches_and_workers_see_what_a_true_shuffle_gives(layout, num_workers):
    shards = LAYOUTS[layout]
    everything = np.concatenate(shards)
    shares_K = np.bincount(everything, minlength=NUM_CLASSES) / len(everything)
    chi_squares, variations = [], []
    for seed in SEEDS:
        seen = labels_of_workers(shards, plan_of(shards, num_workers=num_workers, seed=seed))
        chi_squares += [chi_square(labels, shares_K) for labels in seen]
        variations += [total_variation(labels, shares_K) for labels in seen]
    assert np.mean(chi_squares) <= 1.1
    if num_workers == 1:
        assert max(variations) < 1e-12, "one worker sees all"
    else:
        assert np.mean(variations) <= 1.5 * of_true_shuffles(everything, num_workers, shares_K)


@pytest.mark.parametrize("num_workers", [2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_buffer_that_holds_everything_gives_workers_their_share_of_each_class_too(layout, num_workers):
    shards = LAYOUTS[layout]
    everything = np.concatenate(shards)
    shares_K = np.bincount(everything, minlength=NUM_CLASSES) / len(everything)
    variations = [
        total_variation(labels, shares_K)
        for seed in SEEDS
        for labels in labels_of_workers(
            shards, plan_of(shards, num_workers=num_workers, seed=seed, buffer_rows=10**6, example_bytes=784)
        )
    ]
    assert np.mean(variations) <= 1.5 * of_true_shuffles(everything, num_workers, shares_K)


@pytest.mark.parametrize(("mixed_batch", "least", "most"), [(256, 0.9, 1.1), (None, 1.3, 2)])
def test_single_examples_are_planned_for_minibatches_that_others_make_of_them(mixed_batch, least, most):
    shards = grown(np.repeat(LABELS, 10), 10)
    options = {"batch_size": 1, "mixed_batch": mixed_batch, "example_bytes": 784}
    seen = labels_of_workers(shards, plan_of(shards, num_workers=2, seed=0, **options))
    shares_K = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
    assert least < np.mean([chi_square(labels, shares_K) for labels in seen]) < most


def test_the_sampler_of_version_1_mixed_a_grown_dataset_badly():
    """The fault that the law above names; epochs that version began go on by it."""
    shards = LAYOUTS["grown by class, ten shards each"]
    seen = labels_of_workers(shards, plan_of(shards, num_workers=2, seed=0, version=1))
    shares_K = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
    assert min(chi_square(labels, shares_K) for labels in seen) > 5


class CountingFile(io.RawIOBase):
    """A file that counts the bytes that are read of it."""

    def __init__(self, file: pa.NativeFile, counts: list[int]) -> None:
        self._file = file
        self._counts = counts

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size if size >= 0 else None)
        self._counts.append(len(data))
        return data

    def size(self) -> int:
        return self._file.size()


@pytest.fixture
def read_bytes(monkeypatch) -> list[int]:
    """The bytes of each reading of a shard's file, local ones too."""
    counts: list[int] = []
    open_file = filesystem.open_file
    monkeypatch.setattr(
        filesystem, "open_file", lambda uri: pa.PythonFile(CountingFile(open_file(uri), counts), mode="r")
    )
    monkeypatch.setattr(Dataset, "_is_near", property(lambda _dataset: False))
    return counts


@pytest.mark.parametrize("store", ["local", "s3"])
@pytest.mark.parametrize(("num_workers", "shape"), [(1, (1, 28, 28)), (2, (1, 28, 28)), (4, (3, 64, 64))])
def test_an_epoch_reads_little_more_than_the_dataset(
    make_dataset, tmp_path, new_bucket, read_bytes, store, num_workers, shape
):
    dataset = make_dataset(tmp_path, rows={"train": 1200}, shape=shape, shard_bytes=300 * int(np.prod(shape)))
    uri = dataset.uri
    if store == "s3":
        uri = filesystem.join(new_bucket(), "set")
        for file in tmp_path.rglob("*.parquet"):
            filesystem.write_bytes(filesystem.join(uri, "shards", file.name), file.read_bytes())
    shards = dataset.manifest.shards_of("train")
    plan = plan_epoch(
        ShardRows.of(shards), num_workers=num_workers, batch_size=BATCH, frequency=5, seed=0, epoch=0,
        buffer_rows=BUFFER_ROWS, example_bytes=dataset.manifest.image.example_bytes,
    )  # fmt: skip
    seen = 0
    for rank in range(num_workers):
        worker = Dataset(uri, dataset.manifest)  # of a process of its own
        for batch in minibatches(worker, plan.windows(rank), "train", batch_size=BATCH, with_names=False):
            seen += len(batch.labels_N)
    assert seen == 1200
    assert sum(read_bytes) <= 1.2 * sum(shard.num_bytes for shard in shards)
