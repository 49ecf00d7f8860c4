"""Averaging inside the workers against averaging by a Spark job per round, as Deeplearning4j did it.

python -m benchmarks.spark_round [--repeats 5] [--rounds 188] [--work /tmp/shardmean-benchmarks]

The second side is a small model of `ParameterAveragingTrainingMaster` with `RDDTrainingApproach.Export`, its default:
minibatches were exported to files before (not timed); each round the driver broadcasts parameters and updater state,
an RDD of the round's files goes through mapPartitions, each worker fits its `averagingFrequency` minibatches, and a
tree aggregation sums parameters and updater state on the driver, which divides. The network, AdaGrad, the minibatch of
32, two workers and frequency 5 are the same on both sides, and so is Spark. With fewer `--rounds` than an epoch's its
time is scaled up to the epoch, and the table says so.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.fashion import DEFAULT_SOURCE, MEAN, STD, fashion_dataset, read_idx
from benchmarks.measure import in_turn, parsed, parser, print_compared, seconds
from benchmarks.ours import BATCH, Epochs, recipe
from benchmarks.processes import RATE, WEIGHT_DECAY
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.networks.classifier import lenet
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pyspark import Broadcast, SparkContext
    from torch import nn

    State = tuple[NDArray[np.float32], NDArray[np.float32]]
    Sum = tuple[NDArray[np.float32], NDArray[np.float32], int]

WORKERS, FREQUENCY, DEPTH = 2, 5, 2
OURS = "averaging in the workers"


def main() -> None:
    """Measure and print the table."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="rounds to time of the Spark side; default: an epoch's")
    given = parsed(options)
    files = exported(given.work / "fashion-minibatches")
    per_round = WORKERS * FREQUENCY
    num_rounds = -(-len(files) // per_round)
    num_timed = min(given.rounds or num_rounds, num_rounds)
    with open_session("spark round", {"spark.master": f"local[{WORKERS}]"}) as session:
        launcher = BarrierLauncher(session, Rendezvous(driver_host(session)), WORKERS)
        config = recipe(averaging={"frequency": FREQUENCY})
        ours = Epochs(Trainer(config, fashion_dataset(given.work), launcher))
        theirs = JobPerRound(session.sparkContext, files[: num_timed * per_round])
        scale = num_rounds / num_timed
        name = "a Spark job per round" + (f" ({num_timed} of {num_rounds} rounds timed)" if scale > 1 else "")
        sides = {OURS: partial(seconds, ours), name: lambda: scale * seconds(theirs.epoch)}
        print_compared(in_turn(sides, given.repeats), "s", base=OURS)


class JobPerRound:
    """The driver of the modelled trainer: parameters and updater state, and the rounds over the exported files."""

    def __init__(self, context: SparkContext, files: Sequence[str]) -> None:
        self._context = context
        self._files = files
        torch.manual_seed(0)
        model, optimizer = _replica()
        self._state: State = _gathered(model, optimizer)

    def epoch(self) -> None:
        """One pass over the files, a Spark job for each round."""
        order = np.random.default_rng(0).permutation(len(self._files))
        for first in range(0, len(order), WORKERS * FREQUENCY):
            files = [self._files[place] for place in order[first : first + WORKERS * FREQUENCY]]
            broadcast = self._context.broadcast(self._state)
            rdd = self._context.parallelize(files, WORKERS).mapPartitions(partial(fitted, broadcast))
            parameters, updater, count = rdd.treeReduce(added, DEPTH)
            self._state = parameters / count, updater / count
            broadcast.destroy()


def fitted(broadcast: Broadcast[State], files: Iterable[str]) -> Iterator[Sum]:
    """A worker's part of a round: fit each minibatch; yields parameters, updater state and 1, or nothing if empty."""
    torch.set_num_threads(1)
    model, optimizer = _replica()
    _scatter(broadcast.value, model, optimizer)
    is_empty = True
    for file in files:
        is_empty = False
        with np.load(file) as minibatch:
            images_BCHW, labels_B = torch.from_numpy(minibatch["features"]), torch.from_numpy(minibatch["labels"])
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images_BCHW), labels_B).backward()
        optimizer.step()
    if not is_empty:
        yield *_gathered(model, optimizer), 1


def added(one: Sum, other: Sum) -> Sum:
    """The sum of two workers' results."""
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def exported(folder: Path) -> list[str]:
    """Files of one minibatch each, normalized float32 images as in Deeplearning4j's DataSet; written once."""
    images_NHW, labels_N = read_idx(DEFAULT_SOURCE, "train")
    files = [folder / f"{first:05d}.npz" for first in range(0, len(labels_N), BATCH)]
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            rows = slice(number * BATCH, (number + 1) * BATCH)
            features_BCHW = ((images_NHW[rows, None] / 255 - MEAN) / STD).astype(np.float32)
            np.savez(file, features=features_BCHW, labels=labels_N[rows].astype(np.int64))
        (folder / "done").touch()
    return [str(file) for file in files]


def _replica() -> tuple[nn.Module, Any]:
    model = lenet((1, 28, 28), 10)
    return model, torch.optim.Adagrad(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)


def _gathered(model: nn.Module, optimizer: Any) -> State:
    sums = [optimizer.state[parameter]["sum"] for parameter in model.parameters()]
    return _flat(list(model.parameters())), _flat(sums)


def _flat(tensors: list[torch.Tensor]) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy()
    return flat


def _scatter(state: State, model: nn.Module, optimizer: Any) -> None:
    first = 0
    with torch.no_grad():
        for parameter in model.parameters():
            last = first + parameter.numel()
            for target, flat in zip((parameter, optimizer.state[parameter]["sum"]), state, strict=True):
                target.copy_(torch.from_numpy(flat[first:last].copy()).reshape(target.shape))
            first = last


if __name__ == "__main__":
    main()
