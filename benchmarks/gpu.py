"""One worker on a GPU, fed from shards, against a loop by hand with its data on the GPU and CUDA graphs.

python -m benchmarks.gpu [--repeats 5] [--work /tmp/shardmean-benchmarks]

Ours is an epoch of `Trainer` with one worker in this process, from the call to the new state. By hand: all images on
the GPU before, the whole step (forward, backward, SGD with momentum) one CUDA graph, no evaluation, no state copied.
The share of waiting for data is that of our worker's thread, by its own account: the GPU may still compute meanwhile.
At the end two workers on one GPU train as two on the CPU do, and the largest difference of a parameter is printed.
Images are random: only speed is measured. Without a GPU it says so and ends.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from benchmarks.measure import in_turn, parsed, parser, print_compared, seconds
from benchmarks.ours import Epochs, recipe
from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.dataset.manifest import Manifest, Source, publish
from shardmean.model.dataset.reader import Dataset
from shardmean.model.networks.classifier import build_classifier
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer
from tests.model.dataset_writer import DatasetWriter

if TYPE_CHECKING:
    from collections.abc import Callable

RATE, MOMENTUM = 0.01, 0.9
MEAN, STD = 0.5, 0.29
SHARD_BYTES = 64 * 2**20
NUM_COMPARED = 1_280
BY_HAND = "by hand"


@dataclass(frozen=True)
class Workload:
    """A network, its images (C, H, W), and what the config must say beside the recipe."""

    name: str
    network: str
    shape: tuple[int, int, int]
    batch: int
    num_batches: int
    config: dict[str, Any] = field(default_factory=dict)
    is_bf16: bool = False


GRAPHS = {"compute": {"compile": "cuda_graphs"}}
BF16 = {"compute": {"precision": "bfloat16", "channels_last": "always"}}
BF16_GRAPHS = {"compute": BF16["compute"] | GRAPHS["compute"]}
# compute.compile is `never` where nothing else is said, and what `auto` means on a GPU waits for these numbers.
WORKLOADS = [
    Workload("LeNet, batch 32", "lenet", (1, 28, 28), 32, 1875),
    Workload("LeNet, batch 32, CUDA graphs", "lenet", (1, 28, 28), 32, 1875, GRAPHS),
    Workload("LeNet, batch 256", "lenet", (1, 28, 28), 256, 234),
    Workload("ResNet-18 for small images, batch 256", "resnet18", (3, 32, 32), 256, 195),
    Workload("ResNet-18 for small images, bf16, batch 256", "resnet18", (3, 32, 32), 256, 195, BF16, is_bf16=True),
    Workload("ResNet-50, bf16, channels last, batch 128", "resnet50", (3, 224, 224), 128, 40, BF16, is_bf16=True),
    Workload("The same, CUDA graphs", "resnet50", (3, 224, 224), 128, 40, BF16_GRAPHS, is_bf16=True),
]


def main() -> None:
    """Measure and print a table per workload, or say that no GPU was found."""
    options = parsed(parser(__doc__))
    if not torch.cuda.is_available():
        print("no GPU was found (torch.cuda.is_available() is false), so nothing was measured")
        return
    print(torch.cuda.get_device_name(), f"CUDA {torch.version.cuda}")
    for workload in WORKLOADS:
        with tempfile.TemporaryDirectory(prefix="shardmean-gpu-", dir=options.work) as folder:
            dataset = random_dataset(folder, workload.shape, workload.batch * workload.num_batches)
            _compare(workload, dataset, options.repeats)
    with tempfile.TemporaryDirectory(prefix="shardmean-gpu-", dir=options.work) as folder:
        difference = two_on_one_gpu(random_dataset(folder, (1, 28, 28), NUM_COMPARED))
    print(f"two workers on one GPU and two on the CPU: parameters differ by {difference:.1e} at most after an epoch")


def _compare(workload: Workload, dataset: Dataset, repeats: int) -> None:
    num_examples = dataset.manifest.num_examples("train")
    with LocalLauncher(1, device="cuda:0") as launcher:
        sgd = {"name": "sgd", "learning_rate": RATE, "momentum": MOMENTUM}
        config = recipe(
            network=workload.network, optimizer=sgd, averaging={"frequency": "epoch"}, num_workers=1,
            batch_size_per_worker=workload.batch, device="cuda", **workload.config,
        )  # fmt: skip
        ours = Epochs(Trainer(config, dataset, launcher))
        epochs = {BY_HAND: by_hand(workload, dataset), "ours": ours}
        rates = {name: partial(_rate, epoch, num_examples) for name, epoch in epochs.items()}
        print(f"{workload.name}: {num_examples:,} images an epoch")
        print_compared(in_turn(rates, repeats), "images/s", base=BY_HAND, places=0)
        last = ours.state.history[-1]
        print(f"ours waited for data {last['wait_s'] / last['epoch_seconds']:.1%} of the last epoch")


def _rate(epoch: Callable[[], None], num_examples: int) -> float:
    return num_examples / seconds(epoch)


def by_hand(workload: Workload, dataset: Dataset) -> Callable[[], None]:
    """An epoch of the loop that a person would write for speed."""
    shards = dataset.manifest.shards_of("train")
    pieces = [dataset.read(shard, 0, shard.num_examples, with_names=False) for shard in shards]
    images_NCHW = torch.from_numpy(np.concatenate([piece.features_NCHW for piece in pieces])).cuda()
    labels_N = torch.from_numpy(np.concatenate([piece.labels_N for piece in pieces])).cuda()
    channels = workload.shape[0]
    mean, std = [MEAN] * channels, [STD] * channels
    model = build_classifier(workload.network, shape=workload.shape, num_classes=10, mean=mean, std=std).cuda()
    if workload.is_bf16:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    images_BCHW, labels_B = images_NCHW[: workload.batch].clone(), labels_N[: workload.batch].clone()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        # Autocast's cache of weights would outlive the graph that filled it.
        with torch.autocast("cuda", torch.bfloat16, enabled=workload.is_bf16, cache_enabled=False):
            loss = nn.functional.cross_entropy(model(images_BCHW), labels_B)
        loss.backward()
        optimizer.step()

    replay = _captured(step)

    def epoch() -> None:
        order_N = torch.randperm(len(labels_N), device="cuda")
        for rows_B in order_N.split(workload.batch):
            torch.index_select(images_NCHW, 0, rows_B, out=images_BCHW)
            torch.index_select(labels_N, 0, rows_B, out=labels_B)
            replay()
        torch.cuda.synchronize()

    return epoch


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    # As PyTorch's notes on CUDA graphs say: first some steps on a stream of their own, then the capture.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def two_on_one_gpu(dataset: Dataset) -> float:
    """The largest difference of a parameter between two workers on a GPU and two on the CPU after one epoch."""
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # the workers inherit it; TF32 keeps 10 bits of a factor
    models = []
    for device in ("cpu", "cuda:0"):
        with LocalLauncher(2, device=device) as launcher:
            sgd = {"name": "sgd", "learning_rate": RATE, "momentum": MOMENTUM}
            config = recipe(optimizer=sgd, device=device.split(":")[0], allow_shared_gpu=True)
            epochs = Epochs(Trainer(config, dataset, launcher))
            epochs()
            models.append(epochs.state.model)
    return max(float((tensor - models[1][name]).abs().max()) for name, tensor in models[0].items())


def random_dataset(folder: str, shape: tuple[int, int, int], num_examples: int) -> Dataset:
    """Publish random images (C, H, W) of ten classes, all to train on."""
    generator = np.random.default_rng(0)
    writer = DatasetWriter(folder, shard_bytes=SHARD_BYTES)
    for row in range(num_examples):
        pixels_CHW = generator.integers(0, 256, shape, dtype=np.uint8)
        writer.add("train", pixels_CHW, row % 10, str(row), "")
    channels, height, width = shape
    manifest = Manifest(
        image=ImageConfig(height_px=height, width_px=width, channels=channels),
        split=SplitConfig(),
        class_names=[str(label) for label in range(10)],
        mean=[MEAN] * channels,
        std=[STD] * channels,
        shards=writer.close(),
        source=Source(uri="random", layout="random", fingerprint="random", num_files=num_examples),
    ).sealed()
    publish(manifest, str(Path(folder)))
    return Dataset(folder, manifest)


if __name__ == "__main__":
    main()
