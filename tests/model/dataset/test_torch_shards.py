"""TorchShards: each example once an epoch over all ranks and loader workers, in another order each epoch."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from shardmean.model.dataset import torch_shards
from shardmean.model.dataset.reader import Dataset
from shardmean.model.dataset.torch_shards import TorchShards
from shardmean.model.errors import UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NUM_ROWS = 60


@pytest.fixture(scope="module")
def dataset(make_dataset, tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("set")
    return make_dataset(folder, rows={"train": NUM_ROWS, "test": 5}, shape=(3, 4, 5), shard_bytes=60 * 7)


def of_first_shards(dataset: Dataset, number: int) -> Dataset:
    return Dataset(dataset.uri, dataset.manifest.model_copy(update={"shards": dataset.manifest.shards[:number]}))


def published(dataset: Dataset, split: str = "train") -> list[tuple[bytes, int]]:
    parts = [dataset.read(shard, 0, shard.num_examples) for shard in dataset.manifest.shards_of(split)]
    images = [image.tobytes() for part in parts for image in part.features_NCHW]
    return list(zip(images, (int(label) for part in parts for label in part.labels_N), strict=True))


def examples(items: Iterable[Any], *, batched: bool) -> list[tuple[bytes, int]]:
    if batched:
        items = ((image, int(label)) for images, labels in items for image, label in zip(images, labels, strict=True))
    return [(image.numpy().tobytes(), label) for image, label in items]


@contextmanager
def loader_worker(index: int, num_loaders: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_shards, "get_worker_info", lambda: SimpleNamespace(id=index, num_workers=num_loaders))
        yield


@given(
    num_shards=st.integers(0, 9),
    num_ranks=st.integers(1, 4),
    num_loaders=st.integers(1, 4),
    batch_size=st.none() | st.integers(1, 9),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
    buffer_bytes=st.integers(1, 60 * 70),
)
def test_each_example_once_an_epoch_over_all_ranks_and_loader_workers(
    dataset, num_shards, num_ranks, num_loaders, batch_size, shuffle, epoch, buffer_bytes
):
    some = of_first_shards(dataset, num_shards)
    num_items = -(-some.manifest.num_examples("train") // (batch_size or 1))
    counts, seen = [], []
    for rank in range(num_ranks):
        shards = TorchShards(
            some, shuffle=shuffle, batch_size=batch_size, rank=rank, num_ranks=num_ranks, buffer_bytes=buffer_bytes
        )
        shards.set_epoch(epoch)
        for index in range(num_loaders):
            with loader_worker(index, num_loaders):
                if shuffle and num_items < num_ranks * num_loaders:
                    with pytest.raises(UserError, match=f"are more than the {num_items} .*use fewer loader workers"):
                        iter(shards)
                    return
                counts.append(len(items := list(shards)))
                seen += examples(items, batched=batch_size is not None)
        assert len(shards) == sum(counts[-num_loaders:])
    assert Counter(seen) == Counter(published(some))
    assert max(counts) - min(counts) <= 1
    if not shuffle:
        assert seen == published(some), "in the manifest's order"


def test_an_item_is_an_example_or_a_minibatch(dataset):
    image, label = next(iter(TorchShards(dataset)))
    assert (image.shape, image.dtype, type(label)) == ((3, 4, 5), torch.uint8, int)
    batches = list(TorchShards(dataset.uri, batch_size=7))
    assert sorted(len(labels) for _, labels in batches) == [4, 7, 7, 7, 7, 7, 7, 7, 7]
    images, labels = batches[0]
    assert (images.shape[1:], images.dtype, labels.dtype) == ((3, 4, 5), torch.uint8, torch.int64)
    images[0] = 0  # a step may change them in place
    assert examples(TorchShards(dataset, split="test", shuffle=False), batched=False) == published(dataset, "test")


def test_an_order_follows_from_seed_and_epoch(dataset):
    def order(seed: int, epoch: int) -> list[tuple[bytes, int]]:
        shards = TorchShards(dataset, seed=seed)
        shards.set_epoch(epoch)
        return examples(shards, batched=False)

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))
    assert order(1, 1) == orders[3]
    assert orders[0] != published(dataset)


def test_an_iterator_keeps_the_epoch_that_was_set_when_it_began(dataset):
    shards = TorchShards(dataset)
    expected = examples(shards, batched=False)
    begun = iter(shards)
    shards.set_epoch(1)
    assert examples(begun, batched=False) == expected


@pytest.mark.parametrize("batch_size", [None, 4])
def test_persistent_loader_workers_follow_set_epoch(dataset, batch_size):
    shards = TorchShards(dataset, batch_size=batch_size)
    options = {"batch_size": None} if batch_size else {"batch_size": 4}
    loader = DataLoader(shards, num_workers=2, persistent_workers=True, **options)
    orders = []
    for epoch in (0, 1, 0):
        shards.set_epoch(epoch)
        orders.append(examples(loader, batched=True))
        assert Counter(orders[-1]) == Counter(published(dataset))
    assert orders[0] == orders[2] != orders[1]


def test_a_loader_worker_that_is_spawned_reads_its_ranks_part_of_the_epoch_that_is_set(dataset):
    shards = TorchShards(dataset, batch_size=4, rank=1, num_ranks=2)
    loader = DataLoader(shards, None, num_workers=1, persistent_workers=True, multiprocessing_context="spawn")
    for epoch in (0, 1):
        shards.set_epoch(epoch)
        assert examples(loader, batched=True) == examples(shards, batched=True)


def test_a_store_is_read_by_loader_workers_that_are_forked_after_this_process_read_it(dataset, new_bucket):
    uri = filesystem.join(new_bucket(), "set")
    for file in Path(dataset.uri).rglob("*"):
        if file.is_file():
            target = filesystem.join(uri, *file.relative_to(dataset.uri).parts)
            filesystem.write_bytes(target, file.read_bytes())
    shards = TorchShards(uri, batch_size=4)
    here = examples(shards, batched=True)
    # Without files and threads of their own the workers would wait for ever.
    loader = DataLoader(shards, None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert Counter(examples(loader, batched=True)) == Counter(here) == Counter(published(dataset))


def test_too_few_examples_to_shuffle_are_an_error_and_else_leave_readers_without(dataset):
    few = of_first_shards(dataset, 1)
    loader = DataLoader(TorchShards(few, batch_size=7), None, num_workers=2)
    with pytest.raises(
        UserError, match=r"1 ranks x 2 loader workers are more than the 1 minibatches of 7 of split tra"
    ):
        list(loader)
    in_order = DataLoader(TorchShards(few, batch_size=7, shuffle=False), None, num_workers=2)
    assert examples(in_order, batched=True) == published(few)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split is 'valid', expected one of train, validation, test"),
        ({"rank": 1}, "rank is 1 and num_ranks is None: give both or neither"),
        ({"rank": 2, "num_ranks": 2}, "rank is 2, expected 0 to num_ranks - 1, and num_ranks is 2"),
        ({"batch_size": 0}, "batch_size is 0 .*expected 1 or more"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"buffer_bytes": 0}, "buffer_bytes is 0: expected 1 or more"),
    ],
)
def test_wrong_arguments_are_the_callers_mistake(dataset, arguments, message):
    with pytest.raises(UserError, match=message):
        TorchShards(dataset, **arguments)


def _read_as_rank(rank: int, uri: str, folder: Path) -> None:
    shards = TorchShards(uri, batch_size=4)
    assert len(shards) == 15, "alone, until the group is there"
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=2)
    pickled = pickle.dumps(shards)  # as for a loader worker that is spawned
    loader = DataLoader(shards, None, num_workers=1, multiprocessing_context="fork")
    found = len(shards), examples(loader, batched=True)
    dist.destroy_process_group()
    (folder / str(rank)).write_bytes(pickle.dumps((*found, examples(pickle.loads(pickled), batched=True))))


def test_ranks_are_those_of_torch_distributed(dataset, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_read_as_rank, args=(rank, dataset.uri, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    (first, seen, spawned), (second, others, _) = (pickle.loads((tmp_path / str(n)).read_bytes()) for n in (0, 1))
    assert (first, second) == (7, 8)
    assert Counter(seen + others) == Counter(published(dataset))
    assert spawned == seen


def test_a_copy_of_a_dataset_opens_its_files_anew(dataset):
    before = published(dataset)
    assert published(pickle.loads(pickle.dumps(dataset))) == before


def test_a_process_that_is_forked_has_a_store_client_of_its_own(new_bucket):
    uri = new_bucket()
    client = filesystem.locate(uri)[0]
    assert filesystem.locate(uri)[0] is client
    child = os.fork()
    if not child:
        os._exit(int(filesystem.locate(uri)[0] is client))
    assert os.waitpid(child, 0)[1] == 0
