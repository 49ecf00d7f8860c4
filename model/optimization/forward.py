"""The forward pass of a replica: precision, memory format, compilation, and what `auto` means for each.

Shapes: B examples, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..config.network import ZOO
from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..config.training import ComputeConfig

_COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch")


class Compute:
    """Computes the scores of a model for training, as a config says."""

    def __init__(self, config: ComputeConfig, model: nn.Module, *, network: str, device: torch.device) -> None:
        """Converts `model`, which is on `device`, to the memory format.

        Raises UserError for CUDA graphs without CUDA.
        """
        if config.compile == "cuda_graphs" and device.type != "cuda":
            raise UserError(f"compute.compile is cuda_graphs, but a worker computes on its {device.type}: use always")
        self._device = device
        self._is_bfloat16 = config.precision == "bfloat16"
        # As measured (docs/networks.md). On a GPU, where nothing was measured, `auto` is the default of PyTorch.
        is_faster = device.type == "cpu" and network in ZOO
        self._is_channels_last = config.channels_last == "always" or (config.channels_last == "auto" and is_faster)
        if self._is_channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compile = config.compile
        self._model = model

    def scores(self, images_BCHW: Tensor) -> Tensor:
        """Scores (B, K) in float32. Raises UserError when torch.compile fails."""
        if self._is_channels_last:
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        # No cache of casts: compiled graphs would keep them alive.
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_bfloat16, cache_enabled=False)
        try:
            with autocast:
                return self._forward(images_BCHW).float()
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILER):
                raise
            first = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"torch.compile failed ({type(error).__name__}: {first}): it needs a C++ compiler, "
                "and on a GPU Triton: install them on all workers, or set compute.compile to never"
            ) from error

    @cached_property
    def _forward(self) -> Callable[[Tensor], Tensor]:
        # Compiled at the first step, which an evaluation never takes.
        if self._compile in ("auto", "never"):
            return self._model
        mode = "reduce-overhead" if self._compile == "cuda_graphs" else None
        return torch.compile(self._model, mode=mode, dynamic=False)
