"""A small pile of images that a test lets grow, and the DataSet that runs in this process make of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from shardmean.jobs.config.job import SourceConfig, VectorizeJob
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.config.image import ImageConfig, SplitConfig

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 4
SPLIT = SplitConfig(train=0.6, validation=0.2, test=0.2)
GONE, EMPTY = None, -1


def picture(content: int) -> bytes:
    """A PPM file of its own pixels for each number; none for EMPTY."""
    if content == EMPTY:
        return b""
    return b"P5 %d %d 255\n" % (SIZE, SIZE) + np.random.default_rng(content).bytes(SIZE * SIZE)


@dataclass
class Pile:
    """A folder of small images, and the DataSet that runs in this process make of it."""

    home: Path
    settings: dict[str, object] = field(default_factory=dict)
    clock_s: int = 10**9

    def __post_init__(self) -> None:
        # Whatever the test does, there are two classes and something to train on.
        self.write(
            {
                f"{name}/always {number}": 1000 + 10 * place + number
                for place, name in enumerate("ab")
                for number in range(6)
            }
        )

    def write(self, files: dict[str, int | None]) -> None:
        for path, content in files.items():
            file = self.home / "images" / f"{path}.ppm"
            if content is GONE:
                file.unlink(missing_ok=True)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(content))
            self.touch(path)

    def touch(self, path: str) -> None:
        self.clock_s += 1
        os.utime(self.home / "images" / f"{path}.ppm", (self.clock_s, self.clock_s))

    def job(self, name: str = "set", **changes) -> VectorizeJob:
        source = SourceConfig(uri=str(self.home / "images"), **changes.pop("source", {}))
        base = {
            "source": source, "dataset_uri": str(self.home / name), "image": ImageConfig(height_px=SIZE, width_px=SIZE),
            "split": SPLIT, "shard_bytes": 1024, "max_rejected_fraction": 1,
        }  # fmt: skip
        return VectorizeJob(**(base | self.settings | changes))

    def run(self, name: str = "set", **changes):
        return vectorize(self.job(name, **changes), runner=LocalRunner())

    @property
    def uri(self) -> str:
        return str(self.home / "set")
