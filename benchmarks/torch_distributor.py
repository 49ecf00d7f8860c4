"""The whole training to 88 % test accuracy on Fashion-MNIST: parameter averaging against Spark's TorchDistributor.

python -m benchmarks.torch_distributor [--repeats 5] [--target 0.88] [--search] [--work /tmp/shardmean-benchmarks]

Both train the same LeNet with Adam and two processes of one thread each, on data in memory or the page cache, and test
on all 10,000 test images after every epoch. TorchDistributor runs DistributedDataParallel over gloo, once as Spark
tasks and once with `local_mode` (its processes under the driver). Time counts from the call, on a Spark session that is
warm but has not trained; `ours, again` is a second training in the same session, whose workers stand. Each side has the
best of its own settings that `--search` tries; repeats differ in their seed. All sides are run in turn.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed, nn

from benchmarks.fashion import DEFAULT_SOURCE, MEAN, STD, read_idx, write_dataset
from benchmarks.measure import parsed, parser, print_compared, print_table
from benchmarks.ours import recipe
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.dataset.reader import Dataset
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.errors import UserError
from shardmean.model.networks.classifier import lenet
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from pyspark.sql import SparkSession

WORKERS = 2
MAX_EPOCHS = 12
OURS = {"learning_rate": 0.002, "batch": 32, "frequency": 5}
DDP = {"learning_rate": 0.004, "batch": 128}
# What --search tries: Adam's learning rates, minibatches per worker, and for ours averaging frequencies.
RATES = (0.001, 0.002, 0.004)
BATCHES = (32, 128)
FREQUENCIES = (5, 20)

Settings = dict[str, Any]


def main() -> None:
    """Search, or measure and print the table."""
    options = parser(__doc__)
    options.add_argument("--target", type=float, default=0.88, help="test accuracy at which a training ends")
    options.add_argument("--search", action="store_true", help="try settings for both sides, one training each")
    given = parsed(options)
    in_memory(given.work)
    if given.search:
        _search(given)
        return
    metrics: dict[str, list[float]] = {}
    ends: dict[str, list[int]] = {}
    for seed in range(given.repeats + 1):
        with _warm_session() as session:
            sides = {
                "TorchDistributor, Spark tasks": partial(ddp_side, DDP, local_mode=False),
                "TorchDistributor, local_mode": partial(ddp_side, DDP, local_mode=True),
                "ours": partial(our_side, session, OURS),
                "ours, again": partial(our_side, session, OURS),
            }
            for name, side in sides.items():
                duration_s, num_epochs = _timed(side, given, seed)
                if seed:
                    metrics.setdefault(name, []).append(duration_s)
                    ends.setdefault(name, []).append(num_epochs)
    print(f"ours: {OURS}; TorchDistributor: {DDP}; batch is per process")
    print_compared(metrics, "s", base="TorchDistributor, Spark tasks", places=1)
    print("epochs: " + ", ".join(f"{name} {statistics.median(values):g}" for name, values in ends.items()))


def _timed(side: Callable[..., int], given: argparse.Namespace, seed: int) -> tuple[float, int]:
    started = time.perf_counter()
    num_epochs = side(work=given.work, target=given.target, seed=seed)
    return time.perf_counter() - started, num_epochs


def _search(given: argparse.Namespace) -> None:
    rows = []
    with _warm_session() as session:
        for batch, rate in itertools.product(BATCHES, RATES):
            settings = {"learning_rate": rate, "batch": batch}
            tried = [("DDP", settings, partial(ddp_side, settings, local_mode=True))]
            for frequency in FREQUENCIES:
                ours = settings | {"frequency": frequency}
                tried.append(("ours", ours, partial(our_side, session, ours)))
            for kind, one, side in tried:
                duration_s, num_epochs = _timed(side, given, seed=0)
                rows.append([kind, *(one.get(key, "") for key in OURS), num_epochs, f"{duration_s:.1f}"])
                print(json.dumps(rows[-1]), flush=True)
    print(f"epochs: to {given.target:.0%} test accuracy, {MAX_EPOCHS} at most")
    print_table(["", *OURS, "epochs", "s"], rows)


@contextmanager
def _warm_session() -> Iterator[SparkSession]:
    """A session that has run a barrier job, but nothing that imports torch."""
    with open_session("torch distributor", {"spark.master": f"local[{WORKERS}]"}) as session:
        session.sparkContext.parallelize(range(WORKERS), WORKERS).barrier().mapPartitions(list).collect()
        yield session


def in_memory(work: Path) -> dict[str, Path]:
    """All images and labels as plain arrays, which a process maps at once."""
    files = {f"{part}-{kind}": work / f"fashion-{part}-{kind}.npy" for part in ("train", "t10k") for kind in ("x", "y")}
    for part in ("train", "t10k"):
        if not files[f"{part}-y"].exists():
            images_NHW, labels_N = read_idx(DEFAULT_SOURCE, part)
            np.save(files[f"{part}-x"], images_NHW)
            np.save(files[f"{part}-y"], labels_N)
    return files


def our_side(session: SparkSession, settings: Settings, *, work: Path, target: float, seed: int) -> int:
    """Train by parameter averaging to the target; the number of epochs."""
    uri = str(work / "fashion-60000")
    try:
        dataset = Dataset(uri, load_manifest(uri))
    except UserError:  # not published yet
        # The test images stand as the validation split, which is evaluated inside each epoch's job.
        rows = {"train": read_idx(DEFAULT_SOURCE, "train"), "validation": read_idx(DEFAULT_SOURCE, "t10k")}
        dataset = write_dataset(uri, rows)
    config = recipe(
        optimizer={"name": "adam", "learning_rate": settings["learning_rate"]},
        averaging={"frequency": settings["frequency"]},
        batch_size_per_worker=settings["batch"],
        seed=seed,
    )
    training = Trainer(config, dataset, BarrierLauncher(session, Rendezvous(driver_host(session)), WORKERS))
    state = training.first_state()
    while state.epoch < MAX_EPOCHS:
        state = training.next_state(state)
        if state.history[-1]["validation_accuracy"] >= target:
            break
    return state.epoch


def ddp_side(settings: Settings, *, local_mode: bool, work: Path, target: float, seed: int) -> int:
    """Train by TorchDistributor to the target; the number of epochs."""
    from pyspark.ml.torch.distributor import TorchDistributor

    distributor = TorchDistributor(num_processes=WORKERS, local_mode=local_mode, use_gpu=False)
    num_epochs: int = distributor.run(ddp_training, str(work), settings, target, seed)
    return num_epochs


def ddp_training(work: str, settings: Settings, target: float, seed: int) -> int:
    """What each of TorchDistributor's processes runs."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    distributed.init_process_group("gloo")
    rank, num = distributed.get_rank(), distributed.get_world_size()
    files = in_memory(Path(work))
    images_NCHW, labels_N = _loaded(files, "train")
    test_NCHW, test_labels_N = (tensor[rank::num] for tensor in _loaded(files, "t10k"))
    model = nn.parallel.DistributedDataParallel(lenet((1, 28, 28), 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    for epoch in range(1, MAX_EPOCHS + 1):
        # The same order in both processes; each takes every second row, so none has a step more.
        order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(seed * 1000 + epoch))[rank::num]
        for rows_B in order_N.split(settings["batch"]):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(images_NCHW[rows_B]), labels_N[rows_B]).backward()
            optimizer.step()
        if _accuracy(model.module, test_NCHW, test_labels_N) >= target:
            break
    distributed.destroy_process_group()
    return epoch


def _loaded(files: dict[str, Path], part: str) -> tuple[torch.Tensor, torch.Tensor]:
    images_NHW, labels_N = np.load(files[f"{part}-x"]), np.load(files[f"{part}-y"])
    images_NCHW = (torch.from_numpy(images_NHW).float()[:, None] / 255 - MEAN) / STD
    return images_NCHW, torch.from_numpy(labels_N).long()


def _accuracy(model: nn.Module, images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> float:
    with torch.no_grad():
        parts = zip(images_NCHW.split(256), labels_N.split(256), strict=True)
        num_right = sum((model(images).argmax(1) == labels).sum() for images, labels in parts)
    counts = torch.tensor([float(num_right), float(len(labels_N))])
    distributed.all_reduce(counts)
    return float(counts[0] / counts[1])


if __name__ == "__main__":
    main()
