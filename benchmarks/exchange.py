"""The exchange of one round between two processes on loopback, against gloo's all_reduce of the same bytes.

python -m benchmarks.exchange [--repeats 5] [--rounds 40] [--work /tmp/shardmean-benchmarks]

A round's figure is the time from when the slower process comes to when the last one leaves with the sum, so waiting
for the slower is not in it. `sum` is the all-reduce alone (WorkerGroup.all_reduce); `averaging` is all that a
round adds: gathering the state, the check for finite values, the sum, and putting the mean back (Averager).
Rounds come at once, or after 20 ms of computing on both cores as in training. A repeat's figure is the median of its
rounds; the sides of one repeat are run in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

from benchmarks.measure import in_turn, parsed, parser, print_compared
from benchmarks.processes import Processes
from shardmean.model.config.training import AveragingConfig
from shardmean.model.distributed.rendezvous import Rendezvous, WorkerGroup
from shardmean.model.distributed.store import WorkerStore
from shardmean.model.networks.classifier import lenet
from shardmean.model.optimization.averaging import Averager

if TYPE_CHECKING:
    from benchmarks.processes import Answer
    from shardmean.model.distributed.store import Address

WORKERS = 2
NUM_LENET, NUM_LARGE = 135_560, 25_000_000
COMPUTING_S = 0.02
LARGE_ROUNDS = 5
GLOO, SUM, AVERAGING = "gloo", "sum", "averaging"


def main() -> None:
    """Measure and print a table per message."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=40, help="rounds of each side in a repeat")
    given = parsed(options)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Rendezvous()
        with Processes(rounds, WORKERS, rendezvous.new_address(), f"file://{folder}/gloo") as processes:
            for computing_s, when in (
                (0.0, "at once"),
                (COMPUTING_S, f"after {1000 * COMPUTING_S:.0f} ms of computing"),
            ):
                print(f"LeNet with AdaGrad's state, {NUM_LENET:,} floats, {when}:")
                sides = {
                    kind: partial(_median_ms, processes, kind, NUM_LENET, given.rounds, computing_s)
                    for kind in (GLOO, SUM, AVERAGING)
                }
                print_compared(in_turn(sides, given.repeats), "ms", base=GLOO)
            print(f"{NUM_LARGE:,} floats, at once:")
            sides = {kind: partial(_median_ms, processes, kind, NUM_LARGE, LARGE_ROUNDS, 0.0) for kind in (GLOO, SUM)}
            print_compared(in_turn(sides, given.repeats), "ms", base=GLOO)


def _median_ms(processes: Processes, kind: str, num_floats: int, num_rounds: int, computing_s: float) -> float:
    ranks = processes.ask((kind, num_floats, num_rounds, computing_s))
    return statistics.median(beyond_waiting_ms(*spans) for spans in zip(*ranks, strict=True))


def beyond_waiting_ms(*spans: tuple[float, float]) -> float:
    """Time from the last arrival to the last leave; a span is a process's arrival and leave in seconds."""
    return 1000 * (max(leave for _, leave in spans) - max(arrival for arrival, _ in spans))


def rounds(rank: int, num: int, address: Address, gloo: str) -> Answer:
    """For `Processes`: arrival and leave of each round asked for, on the clock that all processes share."""
    distributed.init_process_group("gloo", init_method=gloo, rank=rank, world_size=num)
    member = WorkerGroup(WorkerStore(address, rank=rank, timeout_s=300), num_workers=num)
    averager = _lenet_averager(member)

    def answer(question: tuple[str, int, int, float]) -> list[tuple[float, float]]:
        kind, num_floats, num_rounds, computing_s = question
        values = torch.zeros(num_floats)
        work = {
            GLOO: partial(distributed.all_reduce, values),
            SUM: partial(member.all_reduce, values),
            AVERAGING: partial(averager.average, 1 / num, rank=rank, round_index=0),
        }[kind]
        spans = []
        for _ in range(num_rounds):
            compute(computing_s)
            arrival = time.perf_counter()
            work()
            spans.append((arrival, time.perf_counter()))
        return spans

    return answer


def _lenet_averager(member: WorkerGroup) -> Averager:
    model = lenet((1, 28, 28), 10)
    optimizer = torch.optim.Adagrad(model.parameters())
    nn.functional.cross_entropy(model(torch.zeros(1, 1, 28, 28)), torch.zeros(1, dtype=torch.int64)).backward()
    optimizer.step()
    return Averager(model, optimizer, AveragingConfig(), member, None)


def compute(duration_s: float) -> None:
    """Keep this core busy with what training does, matrix products, for a while."""
    matrix = torch.ones(200, 200)
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        matrix = (matrix @ matrix).clamp_max(1)


if __name__ == "__main__":
    main()
