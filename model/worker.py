"""One replica: its network and optimizer, the local steps between two averagings, and its part of an evaluation.

Shapes: B examples, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .evaluation import Evaluation, Mistake
from .networks import Classifier, build_classifier
from .shards import Dataset, Examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .config import OptimizerConfig, ScheduleConfig, TrainingConfig
    from .manifest import Manifest, Split
    from .plan import EpochPlan

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


def build_model(config: TrainingConfig, manifest: Manifest) -> Classifier:
    """The network of a config for a DataSet's images and classes, with fresh parameters."""
    return build_classifier(
        config.network,
        shape=manifest.image.shape,
        num_classes=len(manifest.class_names),
        mean=manifest.mean,
        std=manifest.std,
    )


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a config over all parameters of a model."""
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.name in ("sgd", "rmsprop"):
        options["momentum"] = config.momentum
    return OPTIMIZERS[config.name](model.parameters(), **options)


def minibatches(dataset: Dataset, plan: EpochPlan, rank: int, split: Split, *, with_names: bool) -> Iterator[Examples]:
    """A worker's minibatches of an epoch in planned order; memory holds one window of the plan at a time."""
    shards = dataset.manifest.shards_of(split)
    for window in plan.windows(rank):
        pieces = [
            piece
            for rows in window.ranges
            for piece in dataset.read(shards[rows.shard_index], rows.start, rows.stop, with_names=with_names)
        ]
        joined = _joined(pieces)
        for first in range(0, len(window.order), plan.batch_size):
            yield joined.take(window.order[first : first + plan.batch_size])


def _joined(pieces: list[Examples]) -> Examples:
    if len(pieces) == 1:
        return pieces[0]
    return Examples(
        np.concatenate([piece.features_NCHW for piece in pieces]),
        np.concatenate([piece.labels_N for piece in pieces]),
        [name for piece in pieces for name in piece.ids],
        [path for piece in pieces for path in piece.paths],
    )


def rate_factor(config: ScheduleConfig, num_examples: int, total_examples: int) -> float:
    """Share of the learning rate after `num_examples` of a training of `total_examples`, all workers' together."""
    if num_examples < config.warmup_examples:
        return num_examples / config.warmup_examples
    if config.name == "constant":
        return 1.0
    way = (num_examples - config.warmup_examples) / max(1, total_examples - config.warmup_examples)
    left = 1 - way if config.name == "linear" else (1 + math.cos(math.pi * min(1.0, way))) / 2
    return config.final_fraction + (1 - config.final_fraction) * max(0.0, left)


class Replica:
    """A model and its optimizer on one device."""

    def __init__(self, config: TrainingConfig, manifest: Manifest, device: str) -> None:
        self._config = config
        self.device = torch.device(device)
        self.model = build_model(config, manifest).to(self.device)
        self.optimizer = build_optimizer(config.optimizer, self.model)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.num_examples = 0

    def step(self, batch: Examples, rate_factor: float = 1.0) -> None:
        """One optimizer step on a minibatch, at a share of the learning rate; the loss is its mean cross-entropy."""
        images_BCHW, labels_B = _on_device(batch, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.model(images_BCHW), labels_B)
        torch.autograd.backward(loss)
        optimizer = self._config.optimizer
        if optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = optimizer.learning_rate * rate_factor
        self.optimizer.step()
        self._loss_sum += loss.detach() * len(labels_B)
        self.num_examples += len(labels_B)

    def reset_optimizer(self) -> None:
        """Forget the optimizer's state, as if no step had been taken."""
        self.optimizer = build_optimizer(self._config.optimizer, self.model)

    @property
    def mean_loss(self) -> float:
        """Mean training loss of the examples seen by this replica, each at the time it was seen."""
        return float(self._loss_sum) / max(1, self.num_examples)


@torch.inference_mode()
def evaluate(
    model: Classifier,
    dataset: Dataset,
    plan: EpochPlan,
    rank: int,
    split: Split,
    *,
    num_mistakes: int,
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """A worker's part of an evaluation: counts and losses of its rows, and its worst mistakes with their pixels.

    `beat` is called after each minibatch.
    """
    device = next(model.parameters()).device
    part = Evaluation.empty(len(dataset.manifest.class_names))
    model.eval()
    for batch in minibatches(dataset, plan, rank, split, with_names=True):
        images_BCHW, labels_B = _on_device(batch, device)
        scores_BK = model(images_BCHW)
        losses_B = nn.functional.cross_entropy(scores_BK, labels_B, reduction="none")
        predicted_B = scores_BK.argmax(dim=1)
        part.add(labels_B.cpu().numpy(), predicted_B.cpu().numpy(), losses_B.double().cpu().numpy())
        part.keep_worst(_mistakes(batch, scores_BK, losses_B), num_mistakes)
        beat()
    model.train()
    return part


def _mistakes(batch: Examples, scores_BK: Tensor, losses_B: Tensor) -> list[Mistake]:
    probabilities_BK = scores_BK.softmax(dim=1).cpu()
    predicted_B = probabilities_BK.argmax(dim=1)
    wrong = (predicted_B != torch.from_numpy(batch.labels_N)).nonzero().flatten().tolist()
    return [
        Mistake(
            path=batch.paths[row],
            label=int(batch.labels_N[row]),
            predicted=int(predicted_B[row]),
            probability=float(probabilities_BK[row, predicted_B[row]]),
            loss=float(losses_B[row]),
            pixels_CHW=batch.features_NCHW[row],
        )
        for row in wrong
    ]


def _on_device(batch: Examples, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.features_NCHW).to(device), torch.from_numpy(batch.labels_N).to(device)
