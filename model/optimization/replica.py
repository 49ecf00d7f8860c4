"""A worker's replica: its network and optimizer, and the local steps between two averagings.

Shapes: B examples, C channels, H and W pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..dataset.loader import on_device
from ..errors import UserError
from ..networks.classifier import Classifier, build_classifier
from .fine_tuning import freeze
from .forward import Compute
from .optimizers import build_optimizer

if TYPE_CHECKING:
    from torch import Tensor

    from ..augmentation.augmenter import Augmenter
    from ..config.optimizer import ScheduleConfig
    from ..config.training import TrainingConfig
    from ..dataset.manifest import Manifest
    from ..dataset.reader import Examples


def normalization(config: TrainingConfig, manifest: Manifest) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel: the config's, else the DataSet's. Raises UserError."""
    given, channels = config.normalization, manifest.image.channels
    if given.mean and len(given.mean) != channels:
        raise UserError(
            f"normalization.mean has {len(given.mean)} values and images have {channels} channels: give one for each"
        )
    return (given.mean, given.std) if given.mean else (manifest.mean, manifest.std)


def build_model(config: TrainingConfig, manifest: Manifest) -> Classifier:
    """The network of a config for a DataSet's images and classes, newly initialized, some parameters frozen."""
    mean, std = normalization(config, manifest)
    model = build_classifier(
        config.network,
        layers=config.layers,
        shape=manifest.image.shape,
        num_classes=len(manifest.class_names),
        mean=mean,
        std=std,
    )
    freeze(model, config.fine_tuning.freeze)
    return model


def rate_factor(config: ScheduleConfig, num_examples: int, total_examples: int) -> float:
    """Share of the learning rate after `num_examples` of `total_examples` of the training, of all workers together."""
    if num_examples < config.warmup_examples:
        return num_examples / config.warmup_examples
    if config.name == "constant":
        return 1.0
    progress = (num_examples - config.warmup_examples) / max(1, total_examples - config.warmup_examples)
    left = 1 - progress if config.name == "linear" else (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return config.final_fraction + (1 - config.final_fraction) * max(0.0, left)


def class_weights(manifest: Manifest) -> Tensor:
    """Weights (K,), inversely proportional to the classes' examples in the training split; their mean over it is 1.

    As scikit-learn's "balanced": examples / (classes x examples of the class), for the classes that have examples.
    """
    counts_K = torch.tensor(manifest.num_per_class("train"), dtype=torch.float64)
    num_classes = torch.count_nonzero(counts_K)
    return torch.where(counts_K > 0, counts_K.sum() / (num_classes * counts_K.clamp_min(1)), 0).float()


class Replica:
    """A model and its optimizer on one device."""

    def __init__(
        self, config: TrainingConfig, manifest: Manifest, device: str, augmenter: Augmenter | None = None
    ) -> None:
        self._config = config
        self._augmenter = augmenter
        self.device = torch.device(device)
        self.model = build_model(config, manifest).to(self.device)
        self._compute = Compute(config.compute, self.model, network=config.network, device=self.device)
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self._weights_K = class_weights(manifest).to(self.device) if config.class_weights == "balanced" else None
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.num_examples = 0

    def backward(self, batch: Examples | None) -> None:
        """Compute the gradients of a minibatch's mean cross-entropy; without a minibatch there are none.

        With class weights, an example counts by the weight of its class.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if batch is None:
            return
        images_BCHW, labels_B = on_device(batch, self.device)
        if self._augmenter is not None:
            assert batch.keys_N is not None, "augmentation is drawn from the examples' keys"
            images_BCHW = self._augmenter(images_BCHW, batch.keys_N)
        loss = self._loss(self._compute.scores(images_BCHW), labels_B)
        torch.autograd.backward(loss)
        self._loss_sum += loss.detach() * len(labels_B)
        self.num_examples += len(labels_B)

    def _loss(self, scores_BK: Tensor, labels_B: Tensor) -> Tensor:
        if self._weights_K is None:
            return nn.functional.cross_entropy(scores_BK, labels_B)
        # By the number of examples, not by the sum of their weights as torch's own mean: so the mean of workers'
        # gradients, weighted by examples, is the gradient of their joint minibatch.
        total = nn.functional.cross_entropy(scores_BK, labels_B, weight=self._weights_K, reduction="sum")
        return total / len(labels_B)

    def update(self, rate_factor: float) -> None:
        """Take an optimizer step with the current gradients, at a share of the learning rate."""
        optimizer = self._config.optimizer
        if optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = optimizer.learning_rate * rate_factor
        self.optimizer.step()

    def reset_optimizer(self) -> None:
        """Reset the optimizer's state, as if no step had been taken."""
        self.optimizer = build_optimizer(self._config.optimizer, self.model)

    @property
    def mean_loss(self) -> float:
        """Mean training loss of the examples that this replica has seen, each at the time it was seen."""
        return float(self._loss_sum) / max(1, self.num_examples)
