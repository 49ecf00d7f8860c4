"""What augmentation costs: CPU milliseconds of one batch on one thread, by setting; also making the examples' keys.

python -m benchmarks.augmentation_cost [--repeats 15]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from shardmean.model.augmentation.augmenter import Augmenter
from shardmean.model.config.augmentation import AugmentationConfig
from shardmean.model.dataset.hashing import example_keys

if TYPE_CHECKING:
    from collections.abc import Callable

BATCHES = [(32, 1, 28, 28), (64, 3, 224, 224)]
PLACES = {"rotate_degrees": 10, "translate_fraction": 0.1, "scale_min": 0.9, "scale_max": 1.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "flip": {"flip_horizontal": 0.5},
    "flip, shift by 4 px": {"flip_horizontal": 0.5, "translate_px": 4},
    "rotate, translate, scale": PLACES,
    "the same for 1 example in 4": {**PLACES, "probability": 0.25},
    "perspective": {"warp_fraction": 0.2},
    "brightness, contrast": {"brightness": 0.3, "contrast": 0.3},
    "erase 1 in 4": {"erase": 0.25},
    "blur 1 in 10": {"blur": 0.1},
    "equalize 1 in 10": {"equalize": 0.1},
}
COLORS = {
    "random crop, flip": {"crop_area_min": 0.08, "crop_aspect_max": 4 / 3, "flip_horizontal": 0.5},
    "brightness, contrast, saturation": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
    "hue": {"hue": 0.1},
}


def main() -> None:
    """Print the machine's versions and one row per batch shape and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, kornia {version('kornia')}"
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}")
    ids = pa.array([f"{number:032x}-{number:08x}" for number in range(5350)])
    print(f"keys of {len(ids)} examples (a row group of 28 x 28): {measured(lambda: example_keys(ids), repeats)}")
    for shape in BATCHES:
        images_BCHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        keys_B = example_keys(ids[: shape[0]])
        for name, settings in (SETTINGS | (COLORS if shape[1] == 3 else {})).items():
            augmenter = Augmenter(AugmentationConfig(**settings), seed=0, epoch=0, mean=[0.5] * shape[1])
            cost = measured(lambda a=augmenter, i=images_BCHW, k=keys_B: a(i, k), repeats)  # type: ignore[misc]
            print(f"{' x '.join(map(str, shape)):16} {name:33} {cost}")


def measured(work: Callable[[], object], repeats: int) -> str:
    """Median and least time of `work`, after one that is not counted. CPU time, which other programs disturb less."""
    work()
    times_ms = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times_ms.append(1000 * (time.process_time() - started))
    return f"{statistics.median(times_ms):8.2f} ms (least {min(times_ms):.2f})"


if __name__ == "__main__":
    main()
