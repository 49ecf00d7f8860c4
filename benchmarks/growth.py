"""What grows with workers, with the size of the network and with the size of the DataSet, and what must not.

python -m benchmarks.growth [workers] [networks] [datasets] [--repeats 5] [--work /tmp/shardmean-benchmarks]

Workers: an epoch of the LeNet recipe on Spark with 1, 2 and 4 workers beside as many bare processes; the overhead is
the difference. Network: one averaging of plain networks of 0.07 to 25 million parameters with SGD between two
processes, beyond waiting for the slower. DataSet: the peak memory of a worker process (VmHWM, mapped shards counted)
in an epoch over 60,000 and 600,000 examples with a shuffle buffer of 8 MiB.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from benchmarks.exchange import beyond_waiting_ms
from benchmarks.fashion import DEFAULT_SOURCE, fashion_dataset, read_idx, write_dataset
from benchmarks.measure import in_turn, parsed, parser, peak_mib, print_compared, print_table, seconds
from benchmarks.ours import BATCH, Epochs, recipe
from benchmarks.processes import Processes, bare
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.model.config.training import AveragingConfig
from shardmean.model.distributed.rendezvous import Rendezvous, WorkerGroup
from shardmean.model.distributed.store import WorkerStore
from shardmean.model.optimization.averaging import Averager
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.processes import Answer
    from shardmean.model.distributed.store import Address

NUM_WORKERS = (1, 2, 4)
MILLIONS_OF_PARAMETERS = (0.07, 1, 10, 25)
AVERAGINGS = 5
COPIES = (1, 10)
BUFFER_BYTES = 8 * 2**20


def main() -> None:
    """Measure and print the tables of the parts asked for, or of all."""
    options = parser(__doc__)
    options.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"of {', '.join(PARTS)}")
    given = parsed(options)
    for part in given.parts or PARTS:
        PARTS[part](given.work, given.repeats)


def _workers(work: Path, repeats: int) -> None:
    dataset = fashion_dataset(work)
    rows = []
    with open_session("growth", {"spark.master": f"local[{max(NUM_WORKERS)}]"}) as session:
        for num_workers in NUM_WORKERS:
            launcher = BarrierLauncher(session, Rendezvous(driver_host(session)), num_workers)
            ours = Epochs(Trainer(recipe(num_workers=num_workers), dataset, launcher))
            with Processes(bare, num_workers, BATCH) as processes:
                sides = {"bare": partial(seconds, partial(processes.ask, "epoch")), "ours": partial(seconds, ours)}
                metrics = in_turn(sides, repeats)
            bare_s, ours_s = (statistics.median(metrics[name]) for name in ("bare", "ours"))
            rows.append(
                [num_workers, f"{bare_s:.2f}", f"{ours_s:.2f}", f"{ours_s - bare_s:.2f}", f"{ours_s / bare_s:.3f}"]
            )
    print("An epoch of 60,000 examples, averaging every 5 minibatches of 32:")
    print_table(["workers", "bare, s", "ours, s", "overhead, s", "x bare"], rows)


def _networks(_work: Path, repeats: int) -> None:
    rendezvous = Rendezvous()
    with Processes(averagings, 2, rendezvous.new_address()) as processes:

        def median_ms(num_parameters: int) -> float:
            ranks = processes.ask(num_parameters)
            return statistics.median(beyond_waiting_ms(*spans) for spans in zip(*ranks, strict=True))

        sides = {f"{m:g} M parameters": partial(median_ms, round(m * 1e6)) for m in MILLIONS_OF_PARAMETERS}
        print("One averaging between two processes:")
        print_compared(in_turn(sides, repeats), "ms", base=next(iter(sides)))


def averagings(rank: int, num: int, address: Address) -> Answer:
    """For `Processes`: arrival and leave of each averaging of a plain network with about as many parameters."""
    member = WorkerGroup(WorkerStore(address, rank=rank, timeout_s=300), num_workers=num)

    def answer(num_parameters: int) -> list[tuple[float, float]]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, num_parameters // 795), nn.ReLU(), nn.LazyLinear(10))
        model(torch.zeros(1, 1, 28, 28))
        averager = Averager(model, torch.optim.SGD(model.parameters(), lr=0.1), AveragingConfig(), member, None)
        spans = []
        for round_index in range(AVERAGINGS):
            arrival = time.perf_counter()
            averager.average(1 / num, rank=rank, round_index=round_index)
            spans.append((arrival, time.perf_counter()))
        return spans

    return answer


def _datasets(work: Path, _repeats: int) -> None:
    rows = []
    for copies in COPIES:
        with tempfile.TemporaryDirectory(prefix="shardmean-growth-", dir=work) as folder:
            dataset = write_dataset(folder, {"train": read_idx(DEFAULT_SOURCE, "train")}, copies=copies)
            size_mib = sum(shard.num_bytes for shard in dataset.manifest.shards) / 2**20
            with LocalLauncher(2) as launcher:
                config = recipe(averaging={"frequency": "epoch"}, shuffle_buffer_bytes=BUFFER_BYTES)
                Epochs(Trainer(config, dataset, launcher))()
                workers = [process.pid for process in psutil.Process().children() if _is_worker(process)]
                peaks_mib = [peak_mib(pid) for pid in workers]
            rows.append([f"{dataset.manifest.num_examples('train'):,}", f"{size_mib:.0f}", f"{max(peaks_mib):.0f}"])
    print("One epoch, two workers, a shuffle buffer of 8 MiB:")
    print_table(["examples", "shards, MiB", "peak of a worker, MiB"], rows)


def _is_worker(process: psutil.Process) -> bool:
    # Python's resource tracker is a child too.
    return "spawn_main" in " ".join(process.cmdline())


PARTS = {"workers": _workers, "networks": _networks, "datasets": _datasets}


if __name__ == "__main__":
    main()
