"""How a replica computes scores on its device: precision, memory format, compilation, and what `auto` stands for.

Shapes: B examples, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..config.network import ZOO
from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from ..config.training import ComputeConfig

# As measured (docs/networks.md). No GPU was at hand, so there `auto` leaves all as PyTorch has it.
FASTER_CHANNELS_LAST_ON_A_CPU = ZOO
_COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch")


class Compute:
    """Scores of a model for training, by the settings of a config."""

    def __init__(self, config: ComputeConfig, model: nn.Module, *, network: str, device: torch.device) -> None:
        """Put `model`, which is on `device`, into the memory format that was chosen.

        Raises UserError for CUDA graphs where there is no CUDA.
        """
        if config.compile == "cuda_graphs" and device.type != "cuda":
            raise UserError(f"compute.compile is cuda_graphs, but a worker computes on its {device.type}: use always")
        self._device = device
        self._is_bfloat16 = config.precision == "bfloat16"
        is_faster = device.type == "cpu" and network in FASTER_CHANNELS_LAST_ON_A_CPU
        self._is_channels_last = config.channels_last == "always" or (config.channels_last == "auto" and is_faster)
        if self._is_channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compile = config.compile
        self._model = model

    def scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores (B, K) in float32; raises UserError when torch cannot compile the network here."""
        if self._is_channels_last:
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            scores_BK = self._forward(images_BCHW)
        return scores_BK.float()

    @cached_property
    def _forward(self) -> Callable[[Tensor], Tensor]:
        # Made at the first step: an evaluation takes none.
        if self._compile in ("auto", "never"):
            return self._model
        mode = "reduce-overhead" if self._compile == "cuda_graphs" else None
        return _told(torch.compile(self._model, mode=mode, dynamic=False))

    def _autocast(self) -> AbstractContextManager[object]:
        # Casts are not kept from one product to the next: compiled graphs would hold on to them.
        return (
            torch.autocast(self._device.type, torch.bfloat16, cache_enabled=False)
            if self._is_bfloat16
            else nullcontext()
        )


def _told(compiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(images_BCHW: Tensor) -> Tensor:
        try:
            return compiled(images_BCHW)
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILER):
                raise
            first = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"torch.compile failed ({type(error).__name__}: {first}): it needs a C++ compiler, "
                "and on a GPU Triton: install them on all workers, or set compute.compile to never"
            ) from error

    return forward
