"""An epoch of parameter averaging on Spark against the best PyTorch loops that we can write by hand.

python -m benchmarks.epoch_time [--repeats 5] [--work /tmp/shardmean-benchmarks]

Workload: the LeNet recipe on Fashion-MNIST, batch 32, two workers of one thread, all 60,000 images in each epoch. The
best loops (benchmarks/best_loop.py) are two processes without Spark, each of which takes half of the images from
memory: one trains two networks apart, the other averages parameters and AdaGrad's state by gloo's all-reduce every 5
minibatches. `bare` is a plain loop: normalized floats picked at random, the default memory format, no averaging. Of
several processes the slowest counts. Ours: from the driver's call to the new state in the driver's hands (Spark job,
rendezvous, reading from shards, averaging), epochs after the first, with the default settings; no split is held out,
so nothing is evaluated. All are run in turn; medians are compared. The training losses show that all of them learn.
"""

from __future__ import annotations

import tempfile
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

from benchmarks.best_loop import best_loop
from benchmarks.fashion import fashion_dataset
from benchmarks.measure import in_turn, parsed, parser, print_compared, print_table, seconds
from benchmarks.ours import ACCOUNT, BATCH, Epochs, recipe
from benchmarks.processes import Processes, bare
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardmean.model.dataset.reader import Dataset

WORKERS, FREQUENCY = 2, 5
BEST = "best bare loop"


def main() -> None:
    """Measure and print the tables."""
    options = parsed(parser(__doc__))
    dataset = fashion_dataset(options.work)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session("epoch time", {"spark.master": f"local[{WORKERS}]"}) as session,
        Processes(bare, WORKERS, BATCH) as plain,
        Processes(best_loop, WORKERS, BATCH) as best,
        Processes(best_loop, WORKERS, BATCH, f"file://{folder}/gloo", FREQUENCY) as averaged,
    ):
        launcher = BarrierLauncher(session, Rendezvous(driver_host(session)), WORKERS)
        loops = {
            "bare": Loop(plain),
            BEST: Loop(best),
            f"best loop with all-reduce every {FREQUENCY}": Loop(averaged),
        }
        ours = {
            f"averaging every {FREQUENCY}": _ours(FREQUENCY, dataset, launcher),
            "averaging once an epoch": _ours("epoch", dataset, launcher),
        }
        sides: dict[str, Callable[[], float]] = {
            name: partial(seconds, epoch) for name, epoch in (loops | ours).items()
        }
        print_compared(in_turn(sides, options.repeats), "s", base=BEST)
        losses = {name: loop.losses for name, loop in loops.items()}
        losses |= {name: [epoch["train_loss"] for epoch in epochs.state.history] for name, epochs in ours.items()}
        print_table(
            ["training loss", "first epoch", "last epoch"],
            [[name, f"{found[0]:.3f}", f"{found[-1]:.3f}"] for name, found in losses.items()],
        )
        print("where the time of the last epoch went, s (workers' mean; average holds the wait for the slower one):")
        print_table(["", *ACCOUNT], [[name, *epochs.account()] for name, epochs in ours.items()])


class Loop:
    """Each call is one more epoch of a loop in several processes."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.losses: list[float] = []

    def __call__(self) -> None:
        """Until the slowest process is done."""
        self.losses.append(mean(self._processes.ask("epoch")))


def _ours(frequency: int | str, dataset: Dataset, launcher: BarrierLauncher) -> Epochs:
    config = recipe(averaging={"frequency": frequency}, compute={"channels_last": "auto"})
    return Epochs(Trainer(config, dataset, launcher))


if __name__ == "__main__":
    main()
