"""An epoch of parameter averaging on Spark against two bare PyTorch processes that take the same steps.

python -m benchmarks.epoch_time [--repeats 5] [--work /tmp/shardmean-benchmarks]

Workload: the LeNet recipe on Fashion-MNIST, batch 32, two workers of one thread. Ours: from the driver's call to the
new state in the driver's hands (Spark job, rendezvous, reading from shards, averaging), epochs after the first; no
split is held out, so nothing is evaluated. Bare: data in memory as normalised floats, no exchange, the slower process
counts. All are run in turn, `repeats` times; medians are compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyspark
import torch

from benchmarks.fashion import DEFAULT_SOURCE, fashion_dataset, read_idx
from jobs.cluster import BarrierTransport, driver_host, open_session
from model.meeting import Meeting
from model.networks import lenet
from model.training import Training
from model.training_config import TrainingConfig

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from model.shards import Dataset

BATCH, WORKERS = 32, 2


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/tmp/shardmean-benchmarks"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    dataset = fashion_dataset(options.work)
    seconds: dict[str, list[float]] = {"bare": [], "frequency 5": [], "frequency epoch": []}
    with open_session("epoch time", {"spark.master": f"local[{WORKERS}]"}) as session:
        transport = BarrierTransport(session, Meeting(driver_host(session)), WORKERS)
        ours = {f"frequency {f}": _training(dataset, transport, f) for f in (5, "epoch")}
        states = {name: training.first_state() for name, training in ours.items()}
        bare = Bare()
        for repeat in range(options.repeats + 1):
            bare_s = bare.epoch()
            if repeat:
                seconds["bare"].append(bare_s)
            for name, training in ours.items():
                started = time.perf_counter()
                states[name] = training.next_state(states[name])
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
        bare.close()
    _report(seconds)


def _training(dataset: Dataset, transport: BarrierTransport, frequency: int | str) -> Training:
    config = TrainingConfig.model_validate(
        {
            "optimizer": {"name": "adagrad", "learning_rate": 0.02, "weight_decay": 5e-4},
            "averaging": {"frequency": frequency},
            "num_epochs": 100,
            "num_workers": WORKERS,
            "batch_size_per_worker": BATCH,
            "device": "cpu",
        }
    )
    return Training(config, dataset, transport)


def _report(seconds: dict[str, list[float]]) -> None:
    names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, pyspark {pyspark.__version__}"
    print(f"{os.cpu_count()} x{names[0] if names else ' ?'}, {versions}")
    base = statistics.median(seconds["bare"])
    print(f"{'':18}{'median s':>10}{'min':>8}{'max':>8}{'x bare':>9}")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:18}{median:10.2f}{min(values):8.2f}{max(values):8.2f}{median / base:9.3f}")


class Bare:
    """Two processes that train on data in memory and exchange nothing."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends = []
        self._processes = []
        for rank in range(WORKERS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare_worker, args=(rank, theirs), daemon=True)
            process.start()
            self._ends.append(ours)
            self._processes.append(process)
        for end in self._ends:
            end.recv()

    def epoch(self) -> float:
        """Seconds of an epoch, until the slower process is done."""
        started = time.perf_counter()
        for end in self._ends:
            end.send("epoch")
        for end in self._ends:
            end.recv()
        return time.perf_counter() - started

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join()


def _bare_worker(rank: int, end: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    images_NHW, labels_N = read_idx(DEFAULT_SOURCE, "train")
    mine = slice(rank * len(labels_N) // WORKERS, (rank + 1) * len(labels_N) // WORKERS)
    images_NCHW = torch.from_numpy(images_NHW[mine].astype(np.float32)[:, None] / 255 - 0.286) / 0.353
    labels = torch.from_numpy(labels_N[mine].astype(np.int64))
    model = lenet((1, 28, 28), 10)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.02, weight_decay=5e-4)
    end.send("ready")
    while end.recv():
        order = torch.randperm(len(labels))
        for first in range(0, len(labels), BATCH):
            rows = order[first : first + BATCH]
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(images_NCHW[rows]), labels[rows]).backward()
            optimizer.step()
        end.send("done")


if __name__ == "__main__":
    main()
