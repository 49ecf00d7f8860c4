"""Examples to shards, one after the other, where nobody plans which example goes into which shard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardmean.model.dataset.shard_writer import ShardWriter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from shardmean.model.dataset.manifest import Shard, Split


class DatasetWriter:
    """Collects examples one by one and writes a shard whenever a split has `shard_bytes` of them."""

    def __init__(self, dataset_uri: str, *, shard_bytes: int) -> None:
        self._dataset_uri = dataset_uri
        self._shard_bytes = shard_bytes
        self._rows: dict[Split, list[tuple[NDArray[np.uint8], int, str, str]]] = {}
        self.shards: list[Shard] = []

    def add(self, split: Split, pixels_CHW: NDArray[np.uint8], label: int, example_id: str, path: str) -> None:
        """Take one example into its split's next shard."""
        rows = self._rows.setdefault(split, [])
        rows.append((pixels_CHW, label, example_id, path))
        if len(rows) * pixels_CHW.nbytes >= self._shard_bytes:
            self._flush(split)

    def close(self) -> list[Shard]:
        """Write what is left and return all shards written."""
        for split in list(self._rows):
            self._flush(split)
        return self.shards

    def _flush(self, split: Split) -> None:
        rows = self._rows.pop(split)
        channels, height, width = rows[0][0].shape
        with ShardWriter(self._dataset_uri, split, shape=(channels, height, width)) as shard:
            for row in rows:
                shard.add(*row)
            self.shards.append(shard.publish())
