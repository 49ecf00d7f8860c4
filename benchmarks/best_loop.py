"""The fastest PyTorch loop that we can write by hand for LeNet on Fashion-MNIST, alone or with gloo's all-reduce.

Several processes share an epoch: each takes its part of a permutation that is the same in all. Images stay uint8 in
memory, are permuted once an epoch and then read in order; memory is channels last, numbers below 1e-38 count as zero,
AdaGrad is fused. With an address for gloo, parameters and AdaGrad's sums are averaged every few minibatches and at the
end of an epoch. Shapes: N examples, B of a minibatch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import distributed, nn

from benchmarks.fashion import DEFAULT_SOURCE, MEAN, STD, read_idx
from benchmarks.processes import RATE, WEIGHT_DECAY
from shardmean.model.networks.classifier import lenet

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.processes import Answer


def best_loop(rank: int, num: int, batch: int, gloo: str | None = None, frequency: int = 5) -> Answer:
    """For `Processes`: a question is an epoch, its answer the mean loss of this process's examples."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)  # the same initial parameters and permutations in all processes
    images_NHW, labels_N = (torch.from_numpy(array.copy()) for array in read_idx(DEFAULT_SOURCE, "train"))
    images_NCHW, labels_N = images_NHW[:, None], labels_N.to(torch.int64)
    assert len(labels_N) % num == 0, "all processes take as many minibatches, and average as often"
    mine = slice(rank * len(labels_N) // num, (rank + 1) * len(labels_N) // num)
    model = lenet((1, 28, 28), 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adagrad(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY, fused=True)
    average = _averaging(model, optimizer, rank, num, gloo) if gloo else None

    def step(images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        normal_BCHW = images_BCHW.float().mul_(1 / (255 * STD)).sub_(MEAN / STD)
        scores_BK = model(normal_BCHW.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(scores_BK, labels_B)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach() * len(labels_B)

    def epoch(_question: object) -> float:
        order_N = torch.randperm(len(labels_N))[mine]
        images, labels = images_NCHW[order_N].split(batch), labels_N[order_N].split(batch)
        loss_sum = torch.zeros((), dtype=torch.float64)
        for number, (images_BCHW, labels_B) in enumerate(zip(images, labels, strict=True), start=1):
            loss_sum += step(images_BCHW, labels_B)
            if average is not None and (number % frequency == 0 or number == len(labels)):
                average()
        return float(loss_sum) / len(order_N)

    return epoch


def _averaging(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, num: int, gloo: str
) -> Callable[[], None]:
    distributed.init_process_group("gloo", init_method=gloo, rank=rank, world_size=num)
    parameters = [parameter.detach() for parameter in model.parameters()]
    tensors = [*parameters, *(optimizer.state[parameter]["sum"] for parameter in model.parameters())]
    flat = torch.empty(sum(tensor.numel() for tensor in tensors))
    pieces = flat.split([tensor.numel() for tensor in tensors])
    parts = [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    def average() -> None:
        for part, tensor in zip(parts, tensors, strict=True):
            part.copy_(tensor)
        distributed.all_reduce(flat)
        flat.div_(num)
        for part, tensor in zip(parts, tensors, strict=True):
            tensor.copy_(part)

    return average
