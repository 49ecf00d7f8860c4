"""Processes that answer, for sides that need several at once; and a plain PyTorch loop as many would write it."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from benchmarks.fashion import DEFAULT_SOURCE, MEAN, STD, read_idx
from shardmean.model.networks.classifier import lenet

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from types import TracebackType

    from torch import Tensor

    Answer = Callable[[Any], Any]

RATE, WEIGHT_DECAY = 0.01, 5e-4


class Processes:
    """`make(rank, num, *arguments)` runs once in each new process and gives the function that answers there.

    A process has one thread for its computing, as a worker has.
    """

    def __init__(self, make: Callable[..., Answer], num: int, *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(num):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make, rank, num, *arguments), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)
        self._answers()

    def ask(self, question: object) -> list[Any]:
        """Every process's answer, all asked at once. Raises EOFError when a process died."""
        for end in self._ends:
            end.send(question)
        return self._answers()

    def _answers(self) -> list[Any]:
        return [end.recv() for end in self._ends]

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _serve(end: Connection, make: Callable[..., Answer], rank: int, num: int, *arguments: object) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    answer = make(rank, num, *arguments)
    end.send("ready")
    while True:
        try:
            question = end.recv()
        except EOFError:
            return
        end.send(answer(question))


def bare(rank: int, num: int, batch: int) -> Answer:
    """For `Processes`: a question is an epoch of LeNet with AdaGrad over a part of the data; answers the mean loss."""
    images_NCHW, labels_N = normalized("train")
    mine = slice(rank * len(labels_N) // num, (rank + 1) * len(labels_N) // num)
    images_NCHW, labels_N = images_NCHW[mine].clone(), labels_N[mine].clone()
    model = lenet((1, 28, 28), 10)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)

    def epoch(_question: object) -> float:
        order_N = torch.randperm(len(labels_N))
        loss_sum = torch.zeros((), dtype=torch.float64)
        for first in range(0, len(labels_N), batch):
            rows_B = order_N[first : first + batch]
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(images_NCHW[rows_B]), labels_N[rows_B])
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(rows_B)
        return float(loss_sum) / len(labels_N)

    return epoch


def normalized(part: str) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST in memory: float images (N, 1, 28, 28), int64 labels (N,)."""
    images_NHW, labels_N = read_idx(DEFAULT_SOURCE, part)
    images_NCHW = (torch.from_numpy(images_NHW.astype(np.float32))[:, None] / 255 - MEAN) / STD
    return images_NCHW, torch.from_numpy(labels_N.astype(np.int64))
