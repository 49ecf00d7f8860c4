"""Shards back into torch tensors, by one thread, from the page cache: gigabytes of pixels a second of one core.

python -m benchmarks.etl_reading [--images 2000] [--repeats 5] [--work /tmp/shardmean-benchmarks]

Sides: as training reads from its second epoch on, pixels and labels alone; the same with ids and paths, as evaluation
reads; and a first reading, which checks each shard's BLAKE3 hash. By CPU seconds, as there is nothing to wait for.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from benchmarks.etl_ours import Ours
from benchmarks.etl_photographs import IMAGE
from benchmarks.etl_sides import print_aims
from benchmarks.fashion import fashion_dataset
from benchmarks.measure import in_turn, parsed, parser, print_compared
from benchmarks.pictures import photograph_folder
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

MIN_BYTES = 2 * 10**8
TRAINING, WITH_NAMES, FIRST = "as training reads", "with ids and paths", "first reading, with BLAKE3"


def main() -> None:
    """Measure and print the tables."""
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=2_000, help="photographs; Fashion-MNIST has 60,000 images")
    given = parsed(options)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    torch.set_num_threads(1)
    datasets = {
        "28 x 28 gray": fashion_dataset(given.work),
        "224 x 224 RGB": photograph_dataset(given.work, given.images),
    }
    for name, dataset in datasets.items():
        sides = {
            TRAINING: partial(rate, dataset, with_names=False),
            WITH_NAMES: partial(rate, dataset, with_names=True),
            FIRST: lambda dataset=dataset: rate(dataset, with_names=False, is_first=True),
        }
        metrics = in_turn(sides, given.repeats)
        num = dataset.manifest.num_examples("train")
        print(f"{num:,} examples of {name}, {num * dataset.manifest.image.example_bytes / 1e9:.2f} GB of pixels:")
        print_compared(metrics, "GB/s", base=TRAINING)
        print_aims({**metrics, "1 GB/s": [1]}, [(TRAINING, "1 GB/s", 1)])


def rate(dataset: Dataset, *, with_names: bool, is_first: bool = False) -> float:
    """GB of pixels for each CPU second, over whole readings of the training split."""
    num_bytes, started = 0, time.process_time()
    while num_bytes < MIN_BYTES:
        if is_first:
            dataset = Dataset(dataset.uri, dataset.manifest)
        num_bytes += read_all(dataset, with_names=with_names)
    return num_bytes / (time.process_time() - started) / 1e9


def read_all(dataset: Dataset, *, with_names: bool) -> int:
    """Read the training split; its bytes of pixels."""
    num_bytes = 0
    for shard in dataset.manifest.shards_of("train"):
        examples = dataset.read(shard, 0, shard.num_examples, with_names=with_names)
        pixels_NCHW, labels_N = torch.from_numpy(examples.features_NCHW), torch.from_numpy(examples.labels_N)
        assert len(pixels_NCHW) == len(labels_N)
        num_bytes += pixels_NCHW.nbytes
    return num_bytes


def photograph_dataset(work: Path, num: int) -> Dataset:
    """The ETL's DataSet of photographs, made once."""
    uri = work / f"photographs-set-{num}"
    try:
        return Dataset(str(uri), load_manifest(str(uri)))
    except UserError:  # not published yet
        with Ours(photograph_folder(work, num), uri, IMAGE) as ours:
            ours.afresh()
    return Dataset(str(uri), load_manifest(str(uri)))


if __name__ == "__main__":
    main()
