"""What precision, memory format and compilation do to a training step on one CPU thread: CPU milliseconds by network.

python -m benchmarks.precision [networks ...] [--compiled] [--repeats 5]

Measured is the mean CPU time, which other programs disturb less, of some steps of `Replica` (forward, backward, SGD
with momentum); the sides run in turn. Images are random: only speed is measured.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import random_dataset
from benchmarks.measure import in_turn, parsed, parser, print_compared
from shardmean.model.config.training import TrainingConfig
from shardmean.model.dataset.reader import Dataset, Examples
from shardmean.model.optimization.replica import Replica

# Network: images (C, H, W), batch, steps of a measurement.
WORKLOADS = {
    "lenet": ((1, 28, 28), 32, 60),
    "small_cnn": ((3, 32, 32), 32, 15),
    "vgg_small": ((3, 32, 32), 32, 2),
    "resnet18": ((3, 32, 32), 32, 2),
    "resnet50": ((3, 224, 224), 4, 1),
}
BASE = "float32"
SIDES = {
    BASE: {"precision": "float32", "channels_last": "never"},
    "float32, channels last": {"precision": "float32", "channels_last": "always"},
    "bfloat16": {"precision": "bfloat16", "channels_last": "never"},
    "bfloat16, channels last": {"precision": "bfloat16", "channels_last": "always"},
}


def main() -> None:
    """Print a table per network."""
    made = parser(__doc__)
    made.add_argument("networks", nargs="*", default=list(WORKLOADS), help="of the zoo")
    made.add_argument("--compiled", action="store_true", help="compiled steps too (minutes)")
    options = parsed(made)
    torch.set_num_threads(1)
    for network in options.networks:
        shape, batch_size, num_steps = WORKLOADS[network]
        sides = {name: {**side, "compile": "never"} for name, side in SIDES.items()}
        if options.compiled:
            sides |= {f"{name}, compiled": {**side, "compile": "always"} for name, side in SIDES.items()}
        with tempfile.TemporaryDirectory(prefix="shardmean-precision-", dir=options.work) as folder:
            dataset = random_dataset(folder, shape, num_examples=10)
            metrics = {name: step_ms(network, dataset, side, batch_size, num_steps) for name, side in sides.items()}
            print(f"{network}: {batch_size} x {' x '.join(map(str, shape))}")
            print_compared(in_turn(metrics, options.repeats), "ms", base=BASE)


def step_ms(network: str, dataset: Dataset, compute: dict[str, Any], batch_size: int, num_steps: int) -> Any:
    """A function that gives the mean time of a step, in milliseconds."""
    sgd = {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9}
    config = TrainingConfig.model_validate({"network": network, "optimizer": sgd, "compute": compute})
    replica = Replica(config, dataset.manifest, "cpu")
    generator = np.random.default_rng(0)
    images_NCHW = generator.integers(0, 256, (batch_size, *dataset.manifest.image.shape), dtype=np.uint8)
    batch = Examples(images_NCHW, generator.integers(0, 10, batch_size), [], [])

    def steps() -> None:
        for _ in range(num_steps):
            replica.backward(batch)
            replica.update(1.0)

    return partial(_mean_ms, steps, num_steps)


def _mean_ms(steps: Any, num_steps: int) -> float:
    started = time.process_time()
    steps()
    return 1000 * (time.process_time() - started) / num_steps


if __name__ == "__main__":
    main()
