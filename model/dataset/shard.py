"""One shard: rows as an Arrow table, and the Parquet file they are read from. `shard_writer` writes it.

Shapes: N examples of B bytes each (channels x height x width).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3
from xxhash import xxh3_64_intdigest

from ..errors import RetryableError
from ..storage import filesystem
from .manifest import Shard, shard_uri

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray


SCHEMA = pa.schema(
    [
        pa.field("features", pa.binary(), nullable=False, metadata={"layout": "uint8 CHW"}),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
    ]
)
# A key of the file's own metadata: `row_checksums`, little-endian, as base64.
CHECKSUMS = b"shardmean.xxh3"
REPAIR_HINT = "the shard is damaged: restore the DataSet, or run vectorize with replace=true"


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
    columns += [pa.array(values, pa.string()) for values in (extras or {}).values()]
    return pa.table(columns, schema=schema_with(extras or {}))


def schema_with(extra_columns: Iterable[str]) -> pa.Schema:
    """The schema of a shard with further columns of text."""
    return pa.schema([*SCHEMA, *(pa.field(name, pa.string()) for name in extra_columns)])


def row_checksums(features_NB: NDArray[np.uint8], labels: Sequence[int]) -> NDArray[np.uint32]:
    """The lower half of the 64-bit XXH3 hash of each row's features, seeded with its label."""
    hashes = map(xxh3_64_intdigest, features_NB, labels)
    return np.fromiter(hashes, np.uint64, len(features_NB)).astype(np.uint32)


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


def read_shard(dataset_uri: str, shard: Shard) -> pa.Table:
    """All rows of a shard; errors as `read_content`."""
    return pq.read_table(pa.BufferReader(read_content(dataset_uri, shard)))


def read_content(dataset_uri: str, shard: Shard) -> pa.Buffer:
    """The bytes of a shard, mapped into memory where it is local.

    Raises RetryableError when it is missing or not as it was published.
    """
    uri = shard_uri(dataset_uri, shard.name)
    try:
        content = filesystem.read_buffer(uri)
    except FileNotFoundError:
        raise missing(dataset_uri, shard, None) from None
    if content.size != shard.num_bytes:
        raise missing(dataset_uri, shard, content.size)
    if not has_hash(shard, content):
        raise RetryableError(f"{uri}: damaged (its BLAKE3 hash is not the manifest's); {REPAIR_HINT}")
    return content


def missing(dataset_uri: str, shard: Shard, num_bytes: int | None) -> RetryableError:
    """What to raise where a shard has another number of bytes, or (None) is not there."""
    found = "missing" if num_bytes is None else f"{num_bytes} bytes, the manifest says {shard.num_bytes}"
    return RetryableError(f"{shard_uri(dataset_uri, shard.name)}: {found}; {REPAIR_HINT}")


def has_hash(shard: Shard, content: pa.Buffer) -> bool:
    """Whether the bytes are those that were published."""
    return blake3(content).hexdigest() == shard.blake3
