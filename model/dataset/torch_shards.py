"""A DataSet for a training loop of one's own: a torch IterableDataset that shards itself over ranks and loader workers.

Shapes: B examples of C channels, H and W pixels.
"""

from __future__ import annotations

import os
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import UserError
from .epoch_layout import ShardRows
from .loader import minibatches
from .manifest import SPLITS
from .reader import Dataset
from .sampler import plan_epoch, plan_evaluation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from .manifest import Split
    from .reader import Examples
    from .sampler import EpochPlan

# Where the minibatches of a DataLoader are not known: rows that are read at a time, and of which a mixture is wanted.
_TYPICAL_BATCH = 256


class TorchShards(IterableDataset[tuple[Any, Any]]):
    """One split of a DataSet for a `torch.utils.data.DataLoader`, each example exactly once an epoch.

    All ranks of a training, and all loader workers of a rank, get parts of an epoch that differ by at most one item:

        shards = TorchShards("s3://bucket/pets", batch_size=64)
        loader = DataLoader(shards, batch_size=None, num_workers=2, persistent_workers=True)
        for epoch in range(10):
            shards.set_epoch(epoch)
            for images_BCHW, labels_B in loader:
                ...

    An item is one example, (image uint8 (C, H, W), label int); or with `batch_size` a whole minibatch, (images uint8
    (B, C, H, W), labels int64 (B,)), for a DataLoader with `batch_size=None`: that is faster, and all minibatches but
    one of the epoch are full. Pixels are 0 to 255; labels are indices into `manifest.class_names`.

    Raises UserError for wrong arguments, and where there are fewer items to shuffle than readers (ranks x loader
    workers); RetryableError for a shard that is missing, damaged or cannot be read.
    """

    def __init__(
        self,
        dataset: Dataset | str,
        split: Split = "train",
        *,
        shuffle: bool = True,
        seed: int = 0,
        buffer_bytes: int = 64 * 2**20,
        batch_size: int | None = None,
        rank: int | None = None,
        num_ranks: int | None = None,
    ) -> None:
        """Of a DataSet, or of the current version at a URI.

        With `shuffle`, an epoch's order follows from `seed`, the epoch and the number of readers, each of which mixes
        the examples within `buffer_bytes` bytes of images; without, examples come in the manifest's order. `rank` and
        `num_ranks` are those of torch.distributed where it is initialized and they are not given, else 0 and 1.
        """
        super().__init__()
        if split not in SPLITS:
            raise UserError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
        if (rank is None) is not (num_ranks is None):
            raise UserError(f"rank is {rank} and num_ranks is {num_ranks}: give both or neither")
        if rank is not None and num_ranks is not None and not 0 <= rank < num_ranks:
            raise UserError(f"rank is {rank}, expected 0 to num_ranks - 1, and num_ranks is {num_ranks}")
        if seed < 0:
            raise UserError(f"seed is {seed}, expected 0 or more")
        if buffer_bytes < 1 or (batch_size is not None and batch_size < 1):
            raise UserError(f"batch_size is {batch_size} and buffer_bytes is {buffer_bytes}: expected 1 or more")
        self._dataset = Dataset(dataset) if isinstance(dataset, str) else dataset
        self._of_process: dict[int, Dataset] = {}
        self._split: Split = split
        self._shuffle = shuffle
        self._seed = seed
        self._buffer_bytes = buffer_bytes
        self._batch_size = batch_size
        self._position = None if rank is None or num_ranks is None else (rank, num_ranks)
        # Shared with loader workers, which live on from epoch to epoch where they are persistent.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next epoch, also for loader workers that run already. Call it before iterating."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Items of this rank in an epoch."""
        rank, num_ranks = self._rank_and_size()
        return (rank + 1) * self._num_items // num_ranks - rank * self._num_items // num_ranks

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        """This reader's items of the epoch that `set_epoch` chose."""
        worker = get_worker_info()
        index, num_loaders = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rank, num_ranks = self._rank_and_size()
        # Planned here and not at the first item, so that the epoch is that of this call.
        plan = self._plan(num_ranks, num_loaders)
        # A loader worker that is forked can use neither the files nor the threads of the process that it comes from.
        dataset = self._of_process.setdefault(os.getpid(), copy(self._dataset))
        batches = minibatches(
            dataset,
            plan.windows(rank * num_loaders + index),
            self._split,
            batch_size=self._batch_size or _TYPICAL_BATCH,
            with_names=False,
        )
        return map(_tensors, batches) if self._batch_size else (item for batch in batches for item in _items(batch))

    def __getstate__(self) -> dict[str, Any]:
        # A loader worker that is spawned, not forked, knows nothing of the process group.
        return {**self.__dict__, "_position": self._rank_and_size()}

    def _rank_and_size(self) -> tuple[int, int]:
        if self._position is None and dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return self._position or (0, 1)

    @property
    def _num_items(self) -> int:
        """Items of all ranks in an epoch."""
        return -(-self._dataset.manifest.num_examples(self._split) // (self._batch_size or 1))

    def _plan(self, num_ranks: int, num_loaders: int) -> EpochPlan:
        shards, num_readers = self._dataset.manifest.shards_of(self._split), num_ranks * num_loaders
        batch_size = self._batch_size or 1
        if not self._shuffle:
            rows, batches = [shard.num_examples for shard in shards], max(1, _TYPICAL_BATCH // batch_size)
            return plan_evaluation(rows, num_workers=num_readers, batch_size=batch_size, window_batches=batches)
        if self._num_items < num_readers:
            items = "examples" if self._batch_size is None else f"minibatches of {batch_size}"
            raise UserError(
                f"{num_ranks} ranks x {num_loaders} loader workers are more than the {self._num_items} {items} of "
                f"split {self._split}: use fewer loader workers, a smaller batch_size, or shuffle=False"
            )
        example_bytes = self._dataset.manifest.image.example_bytes
        return plan_epoch(
            ShardRows.of(shards),
            num_workers=num_readers,
            batch_size=batch_size,
            mixed_batch=self._batch_size or _TYPICAL_BATCH,
            frequency="epoch",
            seed=self._seed,
            epoch=int(self._epoch),
            buffer_rows=self._buffer_bytes // example_bytes,
            example_bytes=example_bytes,
        )


def _tensors(batch: Examples) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.features_NCHW), torch.from_numpy(batch.labels_N)


def _items(batch: Examples) -> Iterator[tuple[Tensor, int]]:
    return zip(torch.from_numpy(batch.features_NCHW), batch.labels_N.tolist(), strict=True)
