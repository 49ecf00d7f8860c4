"""Parameter averaging: the weighted mean of all workers' states, and the outer optimizer's step from mean to mean.

The mean is over everything that is state. Parameters, float buffers (BatchNorm statistics) and, by policy, the
optimizer's slots (its values for each parameter) are averaged in float32; frozen parameters are left alone. Counters
(integer buffers, the optimizer's step numbers) advance by the weighted mean of the workers' own advances, rounded to
the nearest integer. Synchronous steps average gradients instead.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import DivergedError, LostPeersError, PeerDivergedError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..config.training import AveragingConfig
    from ..distributed.rendezvous import WorkerGroup


class Averager:
    """Averages one worker's model and optimizer in place with those of its peers, once a round."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: AveragingConfig,
        group: WorkerGroup,
        outer_momentum: Tensor | None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._config = config
        self._group = group
        # Frozen parameters are equal on all workers, and an average would round them.
        self._params = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
        self._buffers = _changing_buffers(model)
        self._previous = None if config.outer.is_plain else _flat(self._params)
        self.outer_momentum = outer_momentum
        self._counters_before = _joined(self._tensors()[1])
        self._dtype = torch.bfloat16 if config.comm_dtype == "bfloat16" else torch.float32
        self._message = torch.empty(0)
        self._floats_before = None if self._dtype == torch.float32 else _flat(self._tensors()[0])
        self._is_settled = config.optimizer_state != "average"

    def average(self, weight: float, *, rank: int, round_index: int, loss: float = 0.0) -> None:
        """Replace this worker's state by the weighted mean over all workers, then take the outer step.

        `weight` is this worker's share; all workers' shares sum to 1. Raises DivergedError when this worker's state or
        `loss` is not finite and PeerDivergedError when another's is; then nothing was changed. Raises DivergedError
        when the outer step's result is not finite. Raises UserError where workers have optimizer state of different
        parameters.
        """
        self._check_states(rank=rank, round_index=round_index)
        floats, counters = self._tensors()
        counts = _joined(counters)
        counts_before = _extended(self._counters_before, len(counts))
        values, tail = self._room(floats, len(counts))
        _flat(floats, out=values)
        # From the second average on, changes travel in place of values: bfloat16 rounds those by less.
        before = None if self._floats_before is None else _extended(self._floats_before, len(values))
        if before is not None:
            values -= before
        tail.copy_((counts - counts_before) * weight)
        # Parameters may still be finite, as where the network itself makes a score -inf.
        wrong = "" if math.isfinite(loss) else "training loss was"
        self._sum(values, weight, wrong, rank=rank, round_index=round_index)
        if before is not None:
            values += before
        _unflat(values, floats)
        self._counters_before = counts_before + tail.double().cpu().round()
        _unflat(self._counters_before, counters)
        self._take_outer_step(rank=rank, round_index=round_index)
        if before is not None:
            self._floats_before = _flat(floats)

    def average_gradients(self, weight: float, *, rank: int, round_index: int) -> None:
        """Replace the gradients by the weighted mean over all workers; one without a minibatch has weight 0.

        Errors as `average`.
        """
        params = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        for parameter in params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in params if parameter.grad is not None]
        values, _ = self._room(gradients, 0)
        _flat(gradients, out=values)
        self._sum(values, weight, "", rank=rank, round_index=round_index)
        _unflat(values, gradients)

    def _room(self, floats: list[Tensor], num_counters: int) -> tuple[Tensor, Tensor]:
        """The parts of the message for values and counters; a flag follows them.

        The message is kept from round to round, since memory that is new to the process costs more than the sum.
        """
        num_values = sum(tensor.numel() for tensor in floats)
        if self._message.numel() != num_values + num_counters + 1 or self._message.device != floats[0].device:
            self._message = torch.empty(num_values + num_counters + 1, device=floats[0].device)
        return self._message[:num_values], self._message[num_values:-1]

    def _sum(self, values: Tensor, weight: float, wrong: str, *, rank: int, round_index: int) -> None:
        """Replace `values` by their weighted mean over all workers, and the rest of the message by its sum.

        Values that are not finite are never sent. `wrong` says what else of this worker is not finite, if anything.
        """
        wrong = wrong if _all_finite(values) else "parameters were"
        self._message[-1] = bool(wrong)
        if wrong:
            values.zero_()
        else:
            values *= weight
        sent = self._message.to(self._group.sums_on)
        with _translate_errors(rank, round_index):
            if self._dtype == torch.float32:
                self._group.all_reduce(sent)
            else:
                self._group.all_reduce(sent[: values.numel()], dtype=self._dtype)
                self._group.all_reduce(sent[values.numel() :])
        if wrong:
            raise _diverged(rank, round_index, wrong)
        if sent[-1] > 0:
            raise PeerDivergedError(
                f"worker {rank} stopped in round {round_index}: a peer's state or loss is not finite"
            )
        if sent is not self._message:
            self._message.copy_(sent)

    def _check_states(self, *, rank: int, round_index: int) -> None:
        """Raise UserError unless all workers' optimizers have state of the same parameters.

        An optimizer makes it when a parameter first has a gradient, which may be later on one worker than on another.
        Messages would then hold different things, and be summed all the same.
        """
        if self._is_settled:
            return
        named = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        own = [bool(self._optimizer.state.get(parameter)) for _, parameter in named]
        with _translate_errors(rank, round_index):
            *counts, num_workers = self._sum_of([*own, True])
            for index, count in enumerate(counts):
                if 0 < count < num_workers:
                    raise self._unlike(named[index][0], own[index], rank, num_workers, round_index)
        # An optimizer that has no state after a round never makes any.
        self._is_settled = all(counts) or not any(counts)

    def _unlike(self, name: str, is_own: bool, rank: int, num_workers: int, round_index: int) -> UserError:
        has_state = self._sum_of([is_own and peer == rank for peer in range(num_workers)])
        return UserError(
            f"optimizer states can't be averaged in round {round_index}: worker {has_state.index(1)} has one of "
            f"parameter {name}, worker {has_state.index(0)} has none yet, since its minibatches gave no gradient; set "
            "averaging.optimizer_state to keep or reset, or let each step of the network use all its parameters"
        )

    def _sum_of(self, own: list[bool]) -> list[int]:
        sums = torch.tensor(own, dtype=torch.float32, device=self._group.sums_on)
        self._group.all_reduce(sums)
        return [int(value) for value in sums.tolist()]

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        floats = list(self._params)
        counters: list[Tensor] = []
        for buffer in self._buffers:
            (floats if buffer.is_floating_point() else counters).append(buffer)
        if self._config.optimizer_state == "average":
            for state in (self._optimizer.state[p] for p in self._model.parameters() if p in self._optimizer.state):
                floats += [value for key, value in sorted(state.items()) if _is_slot(key, value)]
                counters += [value for key, value in sorted(state.items()) if key == "step"]
        return floats, counters

    def _take_outer_step(self, *, rank: int, round_index: int) -> None:
        if self._previous is None:
            return
        outer = self._config.outer
        step = delta = self._previous - _flat(self._params)
        if self.outer_momentum is not None:
            step = delta + outer.momentum * self.outer_momentum.to(step)
        self.outer_momentum = step
        if outer.nesterov:
            step = delta + outer.momentum * step
        self._previous = self._previous - outer.learning_rate * step
        if not torch.isfinite(self._previous).all():
            # All workers take the same step, so all stop here.
            raise _diverged(rank, round_index, "parameters, by the outer step, were", "averaging.outer or ")
        _unflat(self._previous, self._params)


@contextmanager
def _translate_errors(rank: int, round_index: int) -> Iterator[None]:
    """Add the worker and the round to the error for lost peers."""
    try:
        yield
    except LostPeersError as error:
        raise LostPeersError(f"worker {rank} lost a peer in round {round_index}: {error}") from error


def _diverged(rank: int, round_index: int, what: str, also: str = "") -> DivergedError:
    return DivergedError(
        f"worker {rank} diverged: its {what} not finite after round {round_index}; "
        f"lower {also}optimizer.learning_rate (or check the images: a constant channel, wrong labels)"
    )


def _changing_buffers(model: nn.Module) -> list[Tensor]:
    held = {id(buffer) for module in model.modules() if not module.training for buffer in module.buffers(recurse=False)}
    # By identity: a module that is used twice has its tensors in the state under both names.
    state = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    others = held | {id(parameter) for parameter in model.parameters()}
    return [tensor for key, tensor in state.items() if key not in others]


def _is_slot(key: str, value: object) -> bool:
    return key != "step" and isinstance(value, Tensor) and value.is_floating_point()


def _flat(tensors: list[Tensor], *, out: Tensor | None = None) -> Tensor:
    # NAdam keeps a float on the CPU beside its slots on the GPU.
    device = tensors[0].device
    return torch.cat([tensor.reshape(-1).float().to(device) for tensor in tensors], out=out)


def _joined(counters: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0).double(), *(counter.reshape(-1).double().cpu() for counter in counters)])


def _extended(earlier: Tensor, size: int) -> Tensor:
    # Optimizers make their state at the first step: before, it counts as zero.
    return nn.functional.pad(earlier, (0, size - len(earlier)))


def _all_finite(values: Tensor) -> bool:
    # The sum alone is cheaper, and not finite if a value is not. It may also overflow: then look at all.
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())


def _unflat(flat: Tensor, tensors: list[Tensor]) -> None:
    first = 0
    for tensor in tensors:
        tensor.copy_(flat[first : first + tensor.numel()].reshape(tensor.shape))
        first += tensor.numel()
