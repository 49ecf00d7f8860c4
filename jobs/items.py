"""The images of a source, listed: a table of some hundred bytes an image, which gives items where one is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import starmap
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model import storage
from model.shard_file import one_chunk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from model.manifest import Split

BATCH_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be: a path that names it in the DataSet, where its bytes are, and its class name.

    `split` is None where the image's hash decides. All items of one `group` belong to one split. `extra` holds the
    values of the scan's `extra_columns`. With a `reason` the listing rejects it: see `listing.File`.
    """

    path: str
    uri: str
    class_name: str
    size_bytes: int
    modified_ns: int
    row: int | None = None
    split: Split | None = None
    group: str | None = None
    extra: tuple[str | None, ...] = ()
    reason: str | None = None


# A URI is null where it is the path below the source's. A local name need not be UTF-8, so it is kept as its bytes.
ITEMS = pa.schema(
    [
        ("path", pa.string()),
        ("uri", pa.binary()),
        ("class_name", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("row", pa.int64()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("extra", pa.list_(pa.string())),
        ("reason", pa.string()),
    ]
)


class Items(Sequence[Item]):
    """Items by their places. `table` holds them in the columns of ITEMS; `root` is the source's URI."""

    def __init__(self, table: pa.Table, root: str = "") -> None:
        """Over a table, which is not copied where its columns are of one piece already."""
        self.table = table.combine_chunks()
        self.root = root

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """Items as a table."""
        rows = Rows(ITEMS)
        for item in items:
            rows.append(astuple(item))
        return cls(rows.table())

    def take(self, places: NDArray[np.integer]) -> Items:
        """The items at some places, in that order: a copy, so that a task is sent no others."""
        return Items(self.table.take(pa.array(places)), self.root)

    def rows(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Some columns' values of one item after the other."""
        for first in range(0, len(self), BATCH_ROWS):
            batch = self.table.slice(first, BATCH_ROWS)
            yield from zip(*(batch[name].to_pylist() for name in names), strict=True)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Items: ...
    def __getitem__(self, place: int | slice) -> Item | Items:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        return self._item(*(self.table[name][range(len(self))[place]].as_py() for name in ITEMS.names))

    def __iter__(self) -> Iterator[Item]:
        return starmap(self._item, self.rows(ITEMS.names))

    def _item(
        self, path: str, uri: bytes | None, class_name: str, size_bytes: int, modified_ns: int, row: int | None,
        split: Split | None, group: str | None, extra: list[str | None] | None, reason: str | None,
    ) -> Item:  # fmt: skip
        name = storage.join(self.root, path) if uri is None else uri.decode(errors="surrogateescape")
        return Item(path, name, class_name, size_bytes, modified_ns, row, split, group, tuple(extra or ()), reason)


def kept(table: pa.Table, is_kept_N: pa.BooleanArray) -> pa.Table:
    """The rows that are kept; no copy where all are."""
    return table if is_kept_N.true_count == len(is_kept_N) else table.filter(is_kept_N)


def by_path(table: pa.Table) -> pa.Table:
    """A table in the order of its column `path`; no copy where it is that already."""
    paths = one_chunk(table["path"])
    if pc.all(pc.less_equal(paths[:-1], paths[1:])).as_py() is False:
        return table.sort_by("path")
    return table


def give_back_memory() -> None:
    """Return what Arrow keeps of tables that are gone: it would hold it for others like them, and none come."""
    pa.default_memory_pool().release_unused()


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
            pa.array(map(_bytes, values) if field.type == pa.binary() else values, field.type)
            for field, values in zip(self._schema, zip(*self._waiting, strict=True), strict=True)
        ]
        self._batches.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._waiting = []


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode(errors="surrogateescape")
