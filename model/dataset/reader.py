"""A published DataSet and the rows of its shards.

Shapes: N examples, C channels, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RetryableError
from .hashing import example_keys
from .manifest import shard_uri
from .shard import REPAIR_HINT, damaged, features_of, has_hash, one_chunk, open_shard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .manifest import Manifest, Shard
    from .shard_cache import ShardCache


@dataclass(frozen=True)
class Examples:
    """Some rows: features uint8 (N, C, H, W), labels int64 (N,), and as many ids and paths, or none unless asked.

    `keys_N` are numbers made of the ids (see `draws.example_keys`), or None unless asked.
    """

    features_NCHW: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    ids: list[str]
    paths: list[str]
    keys_N: NDArray[np.uint64] | None = None

    def take(self, rows_N: NDArray[np.int64]) -> Examples:
        """The rows at the given places, in that order."""
        return Examples(
            self.features_NCHW[rows_N],
            self.labels_N[rows_N],
            [self.ids[row] for row in rows_N] if self.ids else [],
            [self.paths[row] for row in rows_N] if self.paths else [],
            None if self.keys_N is None else self.keys_N[rows_N],
        )


class Dataset:
    """A published DataSet, open for reading: `uri`, `manifest`, and rows by shard and place."""

    def __init__(self, uri: str, manifest: Manifest, cache: ShardCache | None = None) -> None:
        self.uri = uri
        self.manifest = manifest
        self._cache = cache
        self._open: tuple[str, pq.ParquetFile] | None = None
        self._group: tuple[tuple[str, int, bool, bool], Examples] | None = None
        self._verified: set[str] = set()

    def read(
        self, shard: Shard, start: int, stop: int, *, with_names: bool = True, with_keys: bool = False
    ) -> list[Examples]:
        """Rows `start` to `stop` of a shard, in pieces (one a row group). Raises RetryableError for a damaged shard.

        Ids and paths are strings of Python, which cost more than small images do: training does without. Keys cost
        the reading of the ids.
        """
        pieces = []
        file = self._file(shard)
        first = 0
        for index in range(file.metadata.num_row_groups):
            last = first + file.metadata.row_group(index).num_rows
            if first < stop and start < last:
                rows = np.arange(max(start, first) - first, min(stop, last) - first)
                group = self._row_group(shard, file, index, with_names=with_names, with_keys=with_keys)
                is_whole = len(rows) == len(group.labels_N)
                pieces.append(group if is_whole else group.take(rows))
            first = last
        return pieces

    def _file(self, shard: Shard) -> pq.ParquetFile:
        if self._open is None or self._open[0] != shard.name:
            self._open = (shard.name, self._checked(shard))
        return self._open[1]

    def _checked(self, shard: Shard) -> pq.ParquetFile:
        def fetch() -> pa.Buffer:
            content = open_shard(self.uri, shard)
            if not self._is_as_published(shard, content):
                raise damaged(self.uri, shard)
            return content

        if self._cache is None:
            content = fetch()
        else:
            content = self._cache.read(shard.name, fetch, lambda found: self._is_as_published(shard, found))
        return pq.ParquetFile(pa.BufferReader(content))

    def _is_as_published(self, shard: Shard, content: pa.Buffer) -> bool:
        # Once a process: a shard that is as published now stays so, and hashing costs as much as reading.
        if shard.name not in self._verified:
            if not has_hash(shard, content):
                return False
            self._verified.add(shard.name)
        return int(content.size) == shard.num_bytes

    def _row_group(
        self, shard: Shard, file: pq.ParquetFile, index: int, *, with_names: bool, with_keys: bool
    ) -> Examples:
        key = (shard.name, index, with_names, with_keys)
        if self._group is None or self._group[0] != key:
            columns = ["features", "label", *(["id"] if with_names or with_keys else []), *(["path"] * with_names)]
            table = file.read_row_group(index, columns).combine_chunks()
            examples = self._examples(table, shard, with_names=with_names)
            if with_keys:
                examples = replace(examples, keys_N=example_keys(one_chunk(table["id"])))
            self._group = (key, examples)
        return self._group[1]

    def _examples(self, table: pa.Table, shard: Shard, *, with_names: bool) -> Examples:
        image = self.manifest.image
        try:
            features_NB = features_of(table, image.example_bytes)
        except ValueError as error:
            raise RetryableError(f"{shard_uri(self.uri, shard.name)}: {error}; {REPAIR_HINT}") from error
        return Examples(
            features_NB.reshape(-1, *image.shape),
            table["label"].to_numpy(),
            table["id"].to_pylist() if with_names else [],
            table["path"].to_pylist() if with_names else [],
        )


WINDOW_BYTES = 4 * 2**20  # a row group


def pieces(dataset: Dataset, shard: Shard, num_rows: int) -> Iterator[Examples]:
    """The first rows of a shard, about a row group at a time."""
    step = max(1, WINDOW_BYTES // dataset.manifest.image.example_bytes)
    end = min(num_rows, shard.num_examples)
    for first in range(0, end, step):
        yield from dataset.read(shard, first, min(first + step, end))
