"""Tables of a row an image, of which there may be millions: made a batch at a time, and not copied without need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from shardmean.model.dataset.shard import one_chunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BATCH_ROWS = 2048


class Rows:
    """A table in the making, a batch at a time: as objects of Python its rows would take five times the room."""

    def __init__(self, schema: pa.Schema) -> None:
        """For rows of a schema's columns."""
        self._schema = schema
        self._waiting: list[tuple[Any, ...]] = []
        self._batches: list[pa.RecordBatch] = []

    def append(self, row: tuple[Any, ...]) -> None:
        """Add a row. Text for a column of bytes is encoded as a file's name is."""
        self._waiting.append(row)
        if len(self._waiting) == BATCH_ROWS:
            self._flush()

    def table(self) -> pa.Table:
        """All rows so far."""
        if self._waiting:
            self._flush()
        return pa.Table.from_batches(self._batches, self._schema)

    def _flush(self) -> None:
        columns = [
            pa.array(map(_bytes, values) if field.type == pa.large_binary() else values, field.type)
            for field, values in zip(self._schema, zip(*self._waiting, strict=True), strict=True)
        ]
        self._batches.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._waiting = []


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode(errors="surrogateescape")


def batches(texts: pa.Array) -> Iterator[list[Any]]:
    """The values of an array as Python's, in lists: one by one they would take three times as long."""
    for first in range(0, len(texts), BATCH_ROWS):
        yield texts[first : first + BATCH_ROWS].to_pylist()


def rows_of(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Some columns' values of one row after the other."""
    for first in range(0, table.num_rows, BATCH_ROWS):
        batch = table.slice(first, BATCH_ROWS)
        yield from zip(*(batch[name].to_pylist() for name in names), strict=True)


def kept(table: pa.Table, is_kept_N: pa.BooleanArray) -> pa.Table:
    """The rows that are kept; no copy where all are."""
    return table if is_kept_N.true_count == len(is_kept_N) else table.filter(is_kept_N)


def by_path(table: pa.Table) -> pa.Table:
    """A table in the order of its column `path`; no copy where it is that already."""
    paths = one_chunk(table["path"])
    return table if pc.all(pc.less_equal(paths[:-1], paths[1:])).as_py() else table.sort_by("path")


def give_back_memory() -> None:
    """Return what Arrow keeps of tables that are gone: it would hold it for others like them, and none come."""
    pa.default_memory_pool().release_unused()
