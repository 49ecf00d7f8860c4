"""The images of a source, listed: a table of some hundred bytes an image, which gives items where one is looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from operator import attrgetter
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from shardmean.jobs.common.arrow_tables import Rows, batches, rows_of
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from shardmean.model.dataset.manifest import Split


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
# Large are columns that may hold more than 2 GiB: of 20 million long paths, say.
ITEMS = pa.schema(
    [
        ("path", pa.large_string()),
        ("uri", pa.large_binary()),
        ("class_name", pa.string()),
        ("size_bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("row", pa.int64()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("extra", pa.large_list(pa.large_string())),
        ("reason", pa.string()),
    ]
)


class Items(Sequence[Item]):
    """Items by their positions; one alone takes twenty times as long as in a loop over all.

    `table` holds them in the columns of ITEMS; `root` is the source's URI.
    """

    def __init__(self, table: pa.Table, root: str = "") -> None:
        """Over a table, which is not copied where its columns are of one piece already."""
        self.table = table.combine_chunks()
        self.root = root

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """Items as a table."""
        rows, values = Rows(ITEMS), attrgetter(*ITEMS.names)
        for item in items:
            rows.append(values(item))
        return cls(rows.table())

    def take(self, positions: NDArray[np.integer]) -> Items:
        """The items at some positions, in that order: a copy, so that a task is sent no others."""
        return Items(self.table.take(pa.array(positions)), self.root)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._item(*(self.table[name][range(len(self))[index]].as_py() for name in ITEMS.names))

    def __iter__(self) -> Iterator[Item]:
        return starmap(self._item, rows_of(self.table, ITEMS.names))

    def _item(self, path: str, uri: bytes | None, *others: Any) -> Item:
        name = filesystem.join(self.root, path) if uri is None else uri.decode(errors="surrogateescape")
        *facts, extra, reason = others
        return Item(*(path, name, *facts, tuple(extra or ()), reason))


def path_hashes(paths: pa.LargeStringArray) -> NDArray[np.uint64]:
    """A random but repeatable order: the hash of each path, its upper and its lower half (2, N)."""
    digests = bytearray()
    for some in batches(paths.cast(pa.large_binary())):
        for path in some:
            digests += hashlib.blake2b(path, digest_size=16).digest()
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2).T
