"""One shard: rows as an Arrow table, and as the bytes of a Parquet file.

Shapes: N examples of B bytes each (channels x height x width), C channels, P pixels of one channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from . import storage
from .errors import WorldError
from .manifest import Shard, shard_uri

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from .manifest import Split

SCHEMA = pa.schema(
    [
        pa.field("features", pa.binary(), nullable=False, metadata={"layout": "uint8 CHW"}),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
    ]
)
ROW_GROUP_BYTES = 4 * 2**20
MEND = "the shard is damaged: restore the DataSet, or run vectorize with replace=true"
_MAX_SUMMED = 2**16  # squares of so many bytes add up to less than 2**32, and a block stays in the cache


def rows_table(
    features_NB: NDArray[np.uint8],
    labels_N: NDArray[np.int64],
    ids: Sequence[str],
    paths: Sequence[str],
    extras: Mapping[str, Sequence[str | None]] | None = None,
) -> pa.Table:
    """A table of examples. Contiguous features are not copied. `extras` are further columns of text by their names."""
    num_rows, num_bytes = features_NB.shape
    offsets = np.arange(num_rows + 1, dtype=np.int64) * num_bytes
    assert offsets[-1] < 2**31, "a column of binary values holds less than 2 GiB"
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(features_NB))]
    features = pa.Array.from_buffers(pa.binary(), num_rows, buffers)
    columns = [features, pa.array(labels_N, pa.int64()), pa.array(ids, pa.string()), pa.array(paths, pa.string())]
    schema = SCHEMA
    for name, values in (extras or {}).items():
        schema = schema.append(pa.field(name, pa.string()))
        columns.append(pa.array(values, pa.string()))
    return pa.table(columns, schema=schema)


def features_of(table: pa.Table, num_bytes: int) -> NDArray[np.uint8]:
    """The features (N, B) without a copy where they lie in one piece. Raises ValueError when not all are of B bytes."""
    column = one_chunk(table["features"])
    if not len(column):
        return np.zeros((0, num_bytes), np.uint8)
    starts = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    if (np.diff(starts) != num_bytes).any():
        raise ValueError(f"features of other than {num_bytes} bytes")
    return np.frombuffer(column.buffers()[2], np.uint8)[starts[0] : starts[-1]].reshape(-1, num_bytes)


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, without a copy where it is that already."""
    if column.num_chunks == 1:
        return column.chunk(0)
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def write_shard(dataset_uri: str, split: Split, table: pa.Table, *, shape: tuple[int, int, int]) -> Shard:
    """Write a table of examples of one shape (channels, height, width) as a shard, whole or not at all.

    Its name is the hash of its content, so that a task which runs twice writes the same file again. Raises WorldError.
    """
    features_NB = features_of(table, int(np.prod(shape)))
    sums, squares = _moments(features_NB, shape[0])
    data = _parquet(table, rows_per_group=max(1, ROW_GROUP_BYTES // features_NB.shape[1]))
    digest = blake3(data).hexdigest()
    shard = Shard(
        name=f"{split}-{digest[:20]}.parquet",
        split=split,
        num_examples=table.num_rows,
        num_bytes=data.size,
        blake3=digest,
        num_per_class=count_labels(table["label"].to_numpy()),
        sums=sums,
        squares=squares,
    )
    storage.write_bytes(shard_uri(dataset_uri, shard.name), data)
    return shard


def count_labels(labels_N: NDArray[np.int64]) -> dict[int, int]:
    """How many there are of each label that there is."""
    labels, counts = np.unique(labels_N, return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def read_shard(dataset_uri: str, shard: Shard) -> pa.Table:
    """All rows of a shard. Raises WorldError when it is missing or not as it was published."""
    content = open_shard(dataset_uri, shard)
    if not has_hash(shard, content):
        raise damaged(dataset_uri, shard)
    return pq.read_table(pa.BufferReader(content))


def open_shard(dataset_uri: str, shard: Shard) -> pa.Buffer:
    """The bytes of a shard, mapped into memory where it is local. Raises WorldError where their number is another."""
    try:
        content = storage.read_buffer(shard_uri(dataset_uri, shard.name))
    except FileNotFoundError:
        raise missing(dataset_uri, shard, None) from None
    if content.size != shard.num_bytes:
        raise missing(dataset_uri, shard, content.size)
    return content


def missing(dataset_uri: str, shard: Shard, num_bytes: int | None) -> WorldError:
    """What to raise where a shard has another number of bytes, or (None) is not there."""
    found = "missing" if num_bytes is None else f"{num_bytes} bytes, the manifest says {shard.num_bytes}"
    return WorldError(f"{shard_uri(dataset_uri, shard.name)}: {found}; {MEND}")


def has_hash(shard: Shard, content: pa.Buffer) -> bool:
    """Whether the bytes are those that were published."""
    return blake3(content).hexdigest() == shard.blake3


def damaged(dataset_uri: str, shard: Shard) -> WorldError:
    """What to raise when they are not."""
    return WorldError(f"{shard_uri(dataset_uri, shard.name)}: damaged (its BLAKE3 hash is not the manifest's); {MEND}")


def _parquet(table: pa.Table, *, rows_per_group: int) -> pa.Buffer:
    # Pixels hardly shrink and a reader must not wait for a decompressor; the text columns do and cost little.
    compression = dict.fromkeys(table.column_names, "zstd") | {"features": "none"}
    num_groups = -(-table.num_rows // rows_per_group)
    # In one piece, which is never longer than its content with what Parquet adds: a stream that grows copies it all.
    most = round(1.01 * table.nbytes) + (4 * table.num_rows + 1024 * num_groups) * table.num_columns + 2**20
    content = pa.py_buffer(np.empty(most, np.uint8))
    stream = pa.FixedSizeBufferWriter(content)
    pq.write_table(
        table, stream, row_group_size=rows_per_group, compression=compression,
        use_dictionary=["label", *table.column_names[len(SCHEMA) :]], write_statistics=["label"],
    )  # fmt: skip
    return content.slice(0, stream.tell())


def _moments(features_NB: NDArray[np.uint8], channels: int) -> tuple[list[int], list[int]]:
    """Exact sums of the values, and of their squares, per channel."""
    planes_NCP = features_NB.reshape(len(features_NB), channels, -1)
    num_values = planes_NCP.shape[2]
    rows = max(1, _MAX_SUMMED // num_values)
    sums_C, squares_C = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for first in range(0, len(planes_NCP), rows):
        for left in range(0, num_values, _MAX_SUMMED):
            block_NCP = planes_NCP[first : first + rows, :, left : left + _MAX_SUMMED].astype(np.uint32)
            sums_C += block_NCP.sum(axis=(0, 2), dtype=np.uint32)
            # Not by BLAS, whose threads would stand in the way of the other tasks'.
            squares_C += np.einsum("ncp,ncp->c", block_NCP, block_NCP)
    return sums_C.tolist(), squares_C.tolist()
