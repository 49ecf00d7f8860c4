"""Writes a shard: examples go to its file a row group at a time, so that few are in memory at once.

Shapes: N examples of B bytes each (channels x height x width), C channels, P pixels of one channel.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from ..storage import filesystem
from .manifest import Shard, shards_uri
from .shard import CHECKSUMS, SCHEMA, features_of, row_checksums, rows_table, schema_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..storage.filesystem import NewFile
    from .manifest import Split

ROW_GROUP_BYTES = 4 * 2**20
_MAX_SUMMED = 2**16  # squares of so many bytes add up to less than 2**32, and a block stays in the cache


class ShardWriter:
    """Add examples or write tables of them, then `publish`; a shard that is not published leaves nothing.

    Its name is the hash of its content, so that a task which runs twice writes the same file again. A `with` block
    around it raises RetryableError when the store refuses.
    """

    def __init__(
        self, dataset_uri: str, split: Split, *, shape: tuple[int, int, int], extra_columns: Sequence[str] = ()
    ) -> None:
        """For examples of one shape (channels, height, width), with further columns of text."""
        self._split: Split = split
        self._shape = shape
        self._extra_columns = extra_columns
        self._ends = ExitStack()
        self._file = self._ends.enter_context(filesystem.new_file(shards_uri(dataset_uri)))
        self._out = _Hashed(self._file)
        # Pixels hardly shrink and a reader must not wait for a decompressor; the text columns do and cost little.
        schema = schema_with(extra_columns)
        self._parquet = pq.ParquetWriter(
            self._out, schema, compression=dict.fromkeys(schema.names, "zstd") | {"features": "none"},
            use_dictionary=["label", *extra_columns], write_statistics=["label"],
        )  # fmt: skip
        num_bytes = int(np.prod(shape))
        self._rows_per_group = max(1, ROW_GROUP_BYTES // num_bytes)
        # Memory that is not written to costs nothing.
        self._pixels_NB = np.empty((self._rows_per_group, num_bytes), np.uint8)
        self._facts: list[tuple[int, str, str, Sequence[str | None]]] = []
        self._num_per_class: Counter[int] = Counter()
        self._checksums: list[NDArray[np.uint32]] = []
        self._sums_C, self._squares_C = np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)

    def add(
        self,
        pixels_CHW: NDArray[np.uint8],
        label: int,
        example_id: str,
        path: str,
        extra: Sequence[str | None] = (),
    ) -> None:
        """Append one example, with a value for each of the further columns."""
        self._pixels_NB[len(self._facts)] = pixels_CHW.reshape(-1)
        self._facts.append((label, example_id, path, extra))
        if len(self._facts) == self._rows_per_group:
            self._flush()

    def write(self, table: pa.Table) -> None:
        """Append the rows of a table."""
        self._flush()
        for first in range(0, table.num_rows, self._rows_per_group):
            rows = table.slice(first, self._rows_per_group)
            self._parquet.write_table(rows)
            self._file.flush()
            labels, counts = np.unique(rows["label"].to_numpy(), return_counts=True)
            self._num_per_class.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
            features_NB = features_of(rows, self._pixels_NB.shape[1])
            self._checksums.append(row_checksums(features_NB, rows["label"].to_pylist()))
            self._sum(features_NB)

    def publish(self) -> Shard:
        """Write what is left, and give the shard its name."""
        self._flush()
        checksums = base64.b64encode(np.concatenate(self._checksums).astype("<u4").tobytes())
        self._parquet.add_key_value_metadata({CHECKSUMS: checksums})
        self._out.footer = blake3()
        self._parquet.close()
        digest = self._out.hash.hexdigest()
        shard = Shard(
            name=f"{self._split}-{digest[:20]}.parquet",
            split=self._split,
            num_examples=self._num_per_class.total(),
            num_bytes=self._out.num_bytes,
            blake3=digest,
            footer_blake3=self._out.footer.hexdigest(),
            num_per_class=dict(sorted(self._num_per_class.items())),
            sums=self._sums_C.tolist(),
            squares=self._squares_C.tolist(),
        )
        self._file.publish(shard.name)
        return shard

    def _flush(self) -> None:
        if not self._facts:
            return
        labels, ids, paths, extras = zip(*self._facts, strict=True)
        columns = dict(zip(self._extra_columns, zip(*extras, strict=True), strict=True)) if self._extra_columns else {}
        self._facts = []
        self.write(rows_table(self._pixels_NB[: len(ids)], np.array(labels), ids, paths, columns))

    def _sum(self, features_NB: NDArray[np.uint8]) -> None:
        """Add up the values, and their squares, per channel: exactly."""
        planes_NCP = features_NB.reshape(len(features_NB), self._shape[0], -1)
        num_values = planes_NCP.shape[2]
        rows = max(1, _MAX_SUMMED // num_values)
        for first in range(0, len(planes_NCP), rows):
            for left in range(0, num_values, _MAX_SUMMED):
                block_NCP = planes_NCP[first : first + rows, :, left : left + _MAX_SUMMED].astype(np.uint32)
                self._sums_C += block_NCP.sum(axis=(0, 2), dtype=np.uint32)
                # Not by BLAS, whose threads would slow the other tasks down.
                self._squares_C += np.einsum("ncp,ncp->c", block_NCP, block_NCP)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        # Left open, it would write its footer when it is collected, to a file that is gone.
        with suppress(OSError, pa.ArrowException):
            self._parquet.close()
        return self._ends.__exit__(*error)


def write_shard(dataset_uri: str, split: Split, table: pa.Table, *, shape: tuple[int, int, int]) -> Shard:
    """Write a table of examples of one shape (channels, height, width) as a shard. Raises RetryableError."""
    extra_columns = table.column_names[len(SCHEMA) :]
    with ShardWriter(dataset_uri, split, shape=shape, extra_columns=extra_columns) as shard:
        shard.write(table)
        return shard.publish()


class _Hashed(io.RawIOBase):
    """Passes bytes on to a file, hashed while they are in the processor's cache."""

    def __init__(self, file: NewFile) -> None:
        self._file = file
        self.hash = blake3()
        self.footer: blake3 | None = None
        self.num_bytes = 0

    def writable(self) -> bool:
        """Whether it can be written to: what pyarrow asks of a file."""
        return True

    def write(self, data: Any) -> int:
        """Hash and append bytes."""
        self.hash.update(data)
        if self.footer is not None:
            self.footer.update(data)
        self._file.write(data)
        self.num_bytes += len(data)
        return len(data)
