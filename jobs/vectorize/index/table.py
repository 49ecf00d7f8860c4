"""The index of a DataSet: a table of all images of the source, by which the next run knows what it need not read.

Shapes: N images of the source, in the order of their paths.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardmean.jobs.common.arrow_tables import rows_of
from shardmean.jobs.vectorize.index.duplicates import HASH_BYTES
from shardmean.jobs.vectorize.source.listing import MISSING, NOT_A_FILE
from shardmean.model.dataset.manifest import index_uri
from shardmean.model.dataset.shard import one_chunk
from shardmean.model.errors import RetryableError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from shardmean.jobs.vectorize.source.items import Items

INDEX = pa.schema(
    [
        ("path", pa.large_string()),  # of millions of images it may hold more than 2 GiB
        ("row", pa.int64()),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("class_name", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("content_hash", pa.binary(HASH_BYTES)),
        ("shard", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("has_more_frames", pa.bool_()),
        ("published_split", pa.string()),
        ("extra_hash", pa.int64()),
    ]
)
# A row group is held in memory while it is written.
ROWS_PER_GROUP = 2**14
# The columns that are known once an image was read.
REMEMBERED = ("content_hash", "reason", "detail", "width", "height", "has_more_frames")
# Why an image became no example: what may pass by the next run, and what the listing found.
RETRYABLE_REASONS = ("vanished", "changed", "no_permission", "not_readable", "too_slow")
OF_THE_LISTING = (MISSING, NOT_A_FILE)
REJECTED = ("path", "reason", "detail", "size_bytes")
REPAIR_HINT = "restore the DataSet, or run vectorize with replace=true"
_LISTED = ("path", "row", "size_bytes", "modified_ns", "class_name", "group", "extra_hash")


def listed_table(items: Items) -> pa.Table:
    """The columns of the index that are known without reading an image."""
    columns = {name: items.table[name] for name in _LISTED if name in items.table.column_names}
    # Where there is no file, there is neither size nor time.
    is_file = pc.is_null(items.table["reason"])
    for name in ("size_bytes", "modified_ns"):
        columns[name] = pc.if_else(is_file, columns[name], None)
    columns["extra_hash"] = pa.array((_hash(extra) for (extra,) in rows_of(items.table, ["extra"])), pa.int64())
    return pa.table([columns[name] for name in _LISTED], schema=pa.schema([INDEX.field(name) for name in _LISTED]))


def _hash(extra: list[str | None] | None) -> int | None:
    if not extra:
        return None
    digest = hashlib.blake2b(repr(tuple(extra)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@dataclass(frozen=True)
class Comparison:
    """The listed images beside those of the last version.

    `previous_N` is the row in the last index, -1 for a new path. `is_known_N`: nothing changed. `is_touched_N`: only
    size or modification time did, so the bytes may be the same.
    """

    previous_N: NDArray[np.int64]
    is_known_N: NDArray[np.bool_]
    is_touched_N: NDArray[np.bool_]
    num_deleted: int


def compare(listed: pa.Table, index: pa.Table) -> Comparison:
    """Find each listed image in an index."""
    rows = pc.index_in(listed["path"], value_set=index["path"].combine_chunks())
    previous_N = pc.fill_null(rows, -1).to_numpy().astype(np.int64)
    is_alike_N = (previous_N >= 0) & _are_equal(listed, index, rows, ("class_name", "group", "row", "extra_hash"))
    is_untouched_N = _are_equal(listed, index, rows, ("size_bytes", "modified_ns"))
    num_deleted = index.num_rows - int((previous_N >= 0).sum())
    return Comparison(previous_N, is_alike_N & is_untouched_N, is_alike_N & ~is_untouched_N, num_deleted)


def _are_equal(listed: pa.Table, index: pa.Table, rows: pa.ChunkedArray, names: Sequence[str]) -> NDArray[np.bool_]:
    are_equal_N = np.ones(listed.num_rows, np.bool_)
    for name in names:
        # A column at a time: of the whole table there would be another copy.
        one, other = listed[name].combine_chunks(), index[name].take(rows).combine_chunks()
        is_equal = pc.coalesce(pc.equal(one, other), pc.and_(pc.is_null(one), pc.is_null(other)))
        are_equal_N &= is_equal.to_numpy(zero_copy_only=False)
    return are_equal_N


def to_parquet(table: pa.Table) -> tuple[str, pa.Buffer]:
    """A table as the bytes of a file, and the name that their hash gives it."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd", row_group_size=ROWS_PER_GROUP)
    data = stream.getvalue()
    return _name_of(data), data


def _name_of(data: pa.Buffer) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:20]}.parquet"


def rejected_table(index: pa.Table, is_chosen_N: pa.BooleanArray | None = None) -> pa.Table:
    """The images that became no example, for people; of those that are chosen."""
    is_rejected = pc.is_valid(index["reason"])
    return index.select(REJECTED).filter(is_rejected if is_chosen_N is None else pc.and_(is_rejected, is_chosen_N))


def read_table(uri: str) -> pa.Table:
    """A table in a file that is named by the hash of its bytes. Raises RetryableError for a missing or damaged one."""
    try:
        data = filesystem.read_buffer(uri)
    except FileNotFoundError:
        raise RetryableError(f"{uri}: missing; {REPAIR_HINT}") from None
    if _name_of(data) not in uri:
        raise RetryableError(f"{uri}: damaged (its SHA-256 is not its name); {REPAIR_HINT}")
    return pq.read_table(pa.BufferReader(data))


def read_index(dataset_uri: str, name: str | None) -> pa.Table:
    """A published index; an empty one where the DataSet was made without. Raises RetryableError for a damaged one."""
    if name is None:
        return INDEX.empty_table()
    table = read_table(index_uri(dataset_uri, name))
    if "home" in table.column_names:  # of version 0.1.0
        table = table.rename_columns({"home": "published_split"})
    return table.select(INDEX.names).cast(INDEX)


def published_splits(index: pa.Table) -> pa.Table:
    """Content hash and split of all images that were ever published."""
    rows = index.select(["content_hash", "published_split"])
    return rows.filter(pc.is_valid(rows["published_split"])).combine_chunks()


def with_splits_of(published: pa.Table, candidate: pa.Table) -> pa.Table:
    """A candidate's index that says of each image in which split it was published at its path, as it is now."""
    rows = pc.index_in(candidate["path"], value_set=published["path"].combine_chunks())
    is_same = pc.equal(candidate["content_hash"], published["content_hash"].take(rows))
    splits = pc.if_else(is_same, published["published_split"].take(rows), None)
    return candidate.set_column(candidate.column_names.index("published_split"), "published_split", splits)


def bytes_of(hashes: pa.ChunkedArray) -> NDArray[np.uint8]:
    """Hashes as rows of bytes (N, HASH_BYTES); none may be null."""
    column = one_chunk(hashes)
    first = column.offset * HASH_BYTES
    return np.frombuffer(column.buffers()[1], np.uint8)[first : first + len(column) * HASH_BYTES].reshape(
        -1, HASH_BYTES
    )


def with_known_hashes(rows: pa.Table, state: pa.Table) -> pa.Table:
    """Reports of tasks, where an image that could not be read now keeps the hash of its last bytes."""
    hashes = pc.coalesce(rows["content_hash"], state["content_hash"].take(rows["position"]))
    is_unread = pc.fill_null(pc.is_in(rows["reason"], pa.array(RETRYABLE_REASONS + OF_THE_LISTING)), fill_value=False)
    kept = pc.if_else(is_unread, hashes, rows["content_hash"])
    return rows.set_column(rows.column_names.index("content_hash"), "content_hash", kept)


def rows_or_null(rows_N: NDArray[np.signedinteger]) -> pa.Array:
    """Rows to take, for Arrow: null where they are below zero."""
    return pa.array(rows_N.astype(np.int64), mask=rows_N < 0)


def codes_of(texts: pa.ChunkedArray, names: Iterable[str]) -> NDArray[np.int64]:
    """The index of each text among some names, -1 for none."""
    codes = pc.index_in(texts.combine_chunks(), value_set=pa.array(list(names), pa.string()))
    codes_N: NDArray[np.int64] = pc.fill_null(codes, -1).to_numpy().astype(np.int64)
    return codes_N
