"""What the tests of networks and trainings share: small ones of both, plans and minibatches made by hand, bits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.epoch_layout import ShardRows
from shardmean.model.dataset.sampler import EpochPlan, plan_epoch
from shardmean.model.networks.classifier import Classifier, build_classifier
from shardmean.model.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.model.dataset.reader import Dataset
    from shardmean.model.training.checkpoint import Checkpoint

BATCH, BUFFER_ROWS = 8, 24


def training(dataset: Dataset, launchers, *, optimizer: dict[str, Any], num_workers: int = 1, **other) -> Trainer:
    config = TrainingConfig(
        network="lenet" if dataset.manifest.image.height_px == 18 else "small_cnn",
        optimizer={"learning_rate": 0.01} | optimizer,
        num_workers=num_workers,
        batch_size_per_worker=BATCH,
        seed=11,
        shuffle_buffer_bytes=BUFFER_ROWS * dataset.manifest.image.example_bytes,
        timeout_s=120,
        **other,
    )
    return Trainer(config, dataset, launchers[num_workers])


def fit(trained: Trainer, start: Checkpoint | None = None) -> Checkpoint:
    return trained.fit(start, lambda state: None)


def plan_of(dataset: Dataset, *, num_workers: int, epoch: int, frequency: int = 5) -> EpochPlan:
    return plan_epoch(
        ShardRows.of(dataset.manifest.shards_of("train")),
        num_workers=num_workers,
        batch_size=BATCH,
        frequency=frequency,
        seed=11,
        epoch=epoch,
        buffer_rows=BUFFER_ROWS,
        example_bytes=dataset.manifest.image.example_bytes,
    )


def batches_by_hand(dataset: Dataset, plan: EpochPlan, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A worker's minibatches, read without any code of model.shards."""
    shards = dataset.manifest.shards_of("train")
    for window in plan.windows(rank):
        rows = []
        for index, start, stop in window.ranges_R3.tolist():
            table = pq.read_table(f"{dataset.uri}/shards/{shards[index].name}")
            rows += table.to_pylist()[start:stop]
        mixed = [rows[place] for place in window.order]
        for first in range(0, len(mixed), BATCH):
            batch = mixed[first : first + BATCH]
            pixels = np.stack([np.frombuffer(row["features"], np.uint8) for row in batch])
            shaped = pixels.reshape(len(batch), *dataset.manifest.image.shape)
            yield torch.from_numpy(shaped), torch.tensor([row["label"] for row in batch])


def built(network: str, *, shape=(3, 32, 32), num_classes: int = 10, layers: list[dict[str, Any]] = ()) -> Classifier:
    """A network with the same first parameters at every call."""
    config = TrainingConfig(network=network, layers=list(layers))
    normal = {"mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return build_classifier(network, layers=config.layers, shape=shape, num_classes=num_classes, **normal)


def fresh_lenet(dataset: Dataset) -> nn.Module:
    """The first parameters of a training, channels last, as on a CPU by default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        m = dataset.manifest
        model = build_classifier("lenet", shape=m.image.shape, num_classes=3, mean=m.mean, std=m.std)
    return model.to(memory_format=torch.channels_last)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
    loss.backward()
    optimizer.step()
    return loss.item() * len(labels)


def bits(value: Any) -> Any:
    """A value in which tensors are bytes, so that == is equality to the bit."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, list | tuple) else value


def is_time(name: str) -> bool:
    return name.endswith(("_s", "seconds", "per_second"))


def state_bits(state: Checkpoint) -> dict[str, Any]:
    content = dataclasses.asdict(state)
    content["history"] = [{k: v for k, v in metrics.items() if not is_time(k)} for metrics in content["history"]]
    content["running"] = {k: v for k, v in content["running"].items() if not is_time(k)}
    del content["timeline"]
    return bits(content)
