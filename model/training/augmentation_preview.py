"""A look at augmentation: some training images, and what the first epochs will make of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .worker import new_augmenter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..config.training import TrainingConfig
    from ..dataset.reader import Dataset

NUM_EXAMPLES, NUM_EPOCHS = 6, 7


def preview(config: TrainingConfig, dataset: Dataset) -> NDArray[np.uint8]:
    """Pixels uint8 (N, 1 + epochs, C, H, W): N training images of the first shard, as given and in each epoch.

    `config` has augmentation on. Raises RetryableError for a damaged shard.
    """
    num_rows = dataset.manifest.shards_of("train")[0].num_examples
    rows = np.linspace(0, num_rows - 1, min(NUM_EXAMPLES, num_rows)).astype(np.int64)
    examples = dataset.take("train", np.zeros_like(rows), rows, with_names=False, with_keys=True)
    assert examples.keys_N is not None, "keys were asked for"
    columns = [examples.features_NCHW]
    for epoch in range(min(NUM_EPOCHS, config.num_epochs)):
        augmenter = new_augmenter(config, dataset.manifest, epoch)
        assert augmenter is not None, "the caller has seen that augmentation is on"
        columns.append(augmenter(torch.from_numpy(examples.features_NCHW), examples.keys_N).numpy())
    return np.stack(columns, axis=1)
