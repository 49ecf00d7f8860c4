"""An epoch of parameter averaging on Spark against two bare PyTorch processes that take the same steps.

python -m benchmarks.epoch_time [--repeats 5] [--work /tmp/shardmean-benchmarks]

Workload: the LeNet recipe on Fashion-MNIST, batch 32, two workers of one thread. Ours: from the driver's call to the
new state in the driver's hands (Spark job, rendezvous, reading from shards, averaging), epochs after the first; no
split is held out, so nothing is evaluated. Bare: data in memory as normalized floats, no exchange, the slower process
counts. All are run in turn; medians are compared.
"""

from __future__ import annotations

from functools import partial

from benchmarks.fashion import fashion_dataset
from benchmarks.measure import in_turn, parsed, parser, print_compared, print_table, seconds
from benchmarks.ours import ACCOUNT, BATCH, Epochs, recipe
from benchmarks.processes import Processes, bare
from shardmean.jobs.spark.barrier import BarrierLauncher, driver_host
from shardmean.jobs.spark.session import open_session
from shardmean.model.distributed.rendezvous import Rendezvous
from shardmean.model.training.trainer import Trainer

WORKERS = 2


def main() -> None:
    """Measure and print the table."""
    options = parsed(parser(__doc__))
    dataset = fashion_dataset(options.work)
    with (
        open_session("epoch time", {"spark.master": f"local[{WORKERS}]"}) as session,
        Processes(bare, WORKERS, BATCH) as processes,
    ):
        launcher = BarrierLauncher(session, Rendezvous(driver_host(session)), WORKERS)
        ours = {
            f"averaging every {frequency}": Epochs(
                Trainer(recipe(averaging={"frequency": frequency}), dataset, launcher)
            )
            for frequency in (5, "epoch")
        }
        epochs = {"bare": partial(processes.ask, "epoch"), **ours}
        sides = {name: partial(seconds, epoch) for name, epoch in epochs.items()}
        print_compared(in_turn(sides, options.repeats), "s", base="bare")
        print("where the time of the last epoch went, s (workers' mean; average holds the wait for the slower one):")
        print_table(["", *ACCOUNT], [[name, *epoch.account()] for name, epoch in ours.items()])


if __name__ == "__main__":
    main()
