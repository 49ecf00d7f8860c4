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
    shard = dataset.manifest.shards_of("train")[0]
    rows = np.linspace(0, shard.num_examples - 1, min(NUM_EXAMPLES, shard.num_examples)).astype(int)
    examples = [dataset.read(shard, row, row + 1, with_names=False, with_keys=True)[0] for row in rows.tolist()]
    images_NCHW = np.concatenate([example.features_NCHW for example in examples])
    keys_N = np.concatenate([example.keys_N for example in examples if example.keys_N is not None])
    columns = [images_NCHW]
    for epoch in range(min(NUM_EPOCHS, config.num_epochs)):
        augmenter = new_augmenter(config, dataset.manifest, epoch)
        assert augmenter is not None, "the caller has seen that augmentation is on"
        columns.append(augmenter(torch.from_numpy(images_NCHW), keys_N).numpy())
    return np.stack(columns, axis=1)
