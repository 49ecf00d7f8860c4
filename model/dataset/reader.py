"""A published DataSet and the rows of its shards, read row by row wherever they lie.

Shapes: N examples, C channels, H and W pixels, B bytes of one example.
"""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from ..errors import RetryableError
from ..storage import filesystem
from .hashing import example_keys
from .manifest import load_manifest, shard_uri
from .pages import LENGTH_BYTES, feature_pages
from .shard import CHECKSUMS, REPAIR_HINT, has_hash, missing, one_chunk, read_content, row_checksums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from .manifest import Manifest, Shard, Split
    from .shard_cache import ShardCache

T = TypeVar("T")
R = TypeVar("R")
# A store answers each request after some milliseconds, however small it is.
_NUM_REQUESTS = 16
_FOOTER_BYTES = 8


@dataclass(frozen=True)
class Examples:
    """Some rows: features uint8 (N, C, H, W), labels int64 (N,), and as many ids and paths, or none unless asked.

    `keys_N` are numbers made of the ids (see `hashing.example_keys`), or None unless asked.
    """

    features_NCHW: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    ids: list[str]
    paths: list[str]
    keys_N: NDArray[np.uint64] | None = None

    def __getitem__(self, rows: slice) -> Examples:
        """Some of the rows, copied: a view would keep all in memory."""
        keys_N = None if self.keys_N is None else self.keys_N[rows]
        return Examples(self.features_NCHW[rows].copy(), self.labels_N[rows], self.ids[rows], self.paths[rows], keys_N)


class Dataset:
    """A published DataSet, open for reading: `uri`, `manifest`, and rows by shard and row number.

        dataset = Dataset("s3://bucket/pets")
        first = dataset.read(dataset.manifest.shards_of("train")[0], 0, 16)
        first.features_NCHW, first.labels_N, first.paths

    Of a version other than the current one: `Dataset(uri, load_manifest(uri, digest))`. A copy, and what is pickled,
    opens its files anew.
    """

    def __init__(self, uri: str, manifest: Manifest | None = None, cache: ShardCache | None = None) -> None:
        """Of a local path or a URI (s3, gs, hdfs). Raises UserError and RetryableError as `load_manifest` does."""
        self.uri = filesystem.absolute(uri)
        self.manifest = manifest or load_manifest(uri)
        self._cache = cache
        self._open: dict[str, _OpenShard] = {}

    def __reduce__(self) -> tuple[type[Self], tuple[str, Manifest, ShardCache | None]]:
        return type(self), (self.uri, self.manifest, self._cache)

    def read(
        self, shard: Shard, start: int, stop: int, *, with_names: bool = True, with_keys: bool = False
    ) -> Examples:
        """Rows `start` to `stop` (not included) of one of the manifest's shards.

        Ids and paths are strings of Python, which cost more than small images do: training does without. Keys cost
        the reading of the ids. Raises RetryableError for a shard that is missing, damaged or cannot be read.
        """
        rows_N = np.arange(start, max(start, min(stop, shard.num_examples)))
        return self._take([shard], np.zeros_like(rows_N), rows_N, with_names=with_names, with_keys=with_keys)

    def take(
        self,
        split: Split,
        shards_N: NDArray[np.int64],
        rows_N: NDArray[np.int64],
        *,
        with_names: bool = True,
        with_keys: bool = False,
    ) -> Examples:
        """The examples at some rows of a split's shards, in the order given; the rest as of `read`.

        `shards_N` are indices into `manifest.shards_of(split)`.
        """
        return self._take(self.manifest.shards_of(split), shards_N, rows_N, with_names=with_names, with_keys=with_keys)

    def _take(
        self, shards: list[Shard], shards_N: NDArray[np.int64], rows_N: NDArray[np.int64], **wanted: bool
    ) -> Examples:
        num_rows, with_names = len(rows_N), wanted["with_names"]
        features_NB = np.empty((num_rows, self.manifest.image.example_bytes), np.uint8)
        labels_N = np.empty(num_rows, np.int64)
        keys_N = np.empty(num_rows, np.uint64) if wanted["with_keys"] else None
        ids, paths = [""] * num_rows * with_names, [""] * num_rows * with_names
        # A shard's rows in their order in the file, each copied straight to its position.
        places_N = np.lexsort((rows_N, shards_N))
        by_shard = np.split(places_N, np.flatnonzero(np.diff(shards_N[places_N])) + 1) if num_rows else []
        names = [shards[shards_N[positions[0]]] for positions in by_shard]
        opened = self._each(self._opened, names)
        self._each(
            lambda copy: copy(),
            [
                partial(self._copied, shard, one, run, rows_N[positions], features_NB, positions)
                for shard, one, positions in zip(names, opened, by_shard, strict=True)
                for run in one.runs(rows_N[positions])
            ],
        )
        for shard, one, positions in zip(names, opened, by_shard, strict=True):
            rows = rows_N[positions]
            labels_N[positions] = one.labels_M[rows]
            with self._translate_errors(shard):
                if keys_N is not None:
                    keys_N[positions] = one.keys_M[rows]
                if with_names:
                    for position, example_id, path in zip(positions.tolist(), *one.names(rows), strict=True):
                        ids[position], paths[position] = example_id, path
        return Examples(features_NB.reshape(-1, *self.manifest.image.shape), labels_N, ids, paths, keys_N)

    def _copied(self, shard: Shard, one: _OpenShard, run: slice, rows: Any, to_NB: Any, positions: Any) -> None:
        with self._translate_errors(shard):
            to_NB[positions[run]] = one.features(rows[run])

    def _opened(self, shard: Shard) -> _OpenShard:
        if shard.name not in self._open:
            with self._translate_errors(shard):
                self._open[shard.name] = self._newly_opened(shard)
        return self._open[shard.name]

    def _newly_opened(self, shard: Shard) -> _OpenShard:
        uri = shard_uri(self.uri, shard.name)
        if self._cache is not None:
            fetch = partial(read_content, self.uri, shard)
            file = pa.BufferReader(self._cache.read(shard.name, fetch, partial(has_hash, shard)))
        elif self._is_near:
            file = pa.BufferReader(filesystem.read_buffer(uri))
        else:
            file = filesystem.open_file(uri)
        if file.size() != shard.num_bytes:
            raise missing(self.uri, shard, file.size())
        one = _OpenShard(file, self.manifest.image.example_bytes, shard.footer_blake3)
        if len(one.labels_M) != shard.num_examples:
            raise ValueError(f"{len(one.labels_M)} examples, the manifest says {shard.num_examples}")
        # Version 0.1.0 wrote no checksums of rows, and to hash a whole file of a store would be to fetch it.
        if not shard.footer_blake3 and self._is_near:
            read_content(self.uri, shard)
        return one

    @contextmanager
    def _translate_errors(self, shard: Shard) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise missing(self.uri, shard, None) from None
        except (ValueError, pa.ArrowException) as error:
            raise RetryableError(f"{shard_uri(self.uri, shard.name)}: {error}; {REPAIR_HINT}") from error
        except OSError as error:
            # Arrow's word for a damaged page too.
            uri = shard_uri(self.uri, shard.name)
            raise RetryableError(
                f"{uri}: cannot be read ({error}); repeat the command; if it fails again {REPAIR_HINT}"
            ) from error

    @property
    def _is_near(self) -> bool:
        return filesystem.local_path(self.uri) is not None

    def _each(self, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Do it with each item; at the same time where a store is asked."""
        if self._is_near or self._cache is not None or len(items) < 2:
            return [do(item) for item in items]
        return list(self._requests.map(do, items))

    @cached_property
    def _requests(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_NUM_REQUESTS, thread_name_prefix="store")


class _OpenShard:
    """One shard's file, open, with what is known of its M rows: labels, keys, checksums, and where features lie."""

    def __init__(self, file: pa.NativeFile, example_bytes: int, footer_blake3: str) -> None:
        self._file = file
        self._value_bytes = LENGTH_BYTES + example_bytes
        footer = _footer(file)
        if footer_blake3 and blake3(footer).hexdigest() != footer_blake3:
            raise ValueError("damaged (the footer's BLAKE3 hash is not the manifest's)")
        parquet = _parquet_file(file, footer)
        self._first_rows, self._offsets = feature_pages(file.read_at, parquet.metadata, self._value_bytes)
        self.labels_M = _column(parquet, "label").to_numpy()
        checksums = (parquet.metadata.metadata or {}).get(CHECKSUMS)
        self.checksums_M = None if checksums is None else np.frombuffer(base64.b64decode(checksums), "<u4")
        self._is_checked_M = np.zeros(len(self.labels_M), np.bool_)
        self._group: tuple[int, list[str], list[str]] = -1, [], []

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        # Of thousands of shards, what it holds of each adds up: for features and labels it is not needed.
        return _parquet_file(self._file, _footer(self._file))

    @cached_property
    def keys_M(self) -> NDArray[np.uint64]:  # noqa: N802 - a tensor's shape suffix
        """The rows' keys."""
        return example_keys(_column(self._parquet, "id"))

    def _offsets_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        pages = np.searchsorted(self._first_rows, rows, side="right") - 1
        offsets: NDArray[np.int64] = self._offsets[pages] + (rows - self._first_rows[pages]) * self._value_bytes
        return offsets

    def runs(self, rows: NDArray[np.int64]) -> list[slice]:
        """Slices of some rows, ascending, that lie side by side in the file."""
        breaks = np.flatnonzero(np.diff(self._offsets_of(rows)) != self._value_bytes) + 1
        return [slice(first, end) for first, end in pairwise([0, *breaks.tolist(), len(rows)])]

    def features(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The features (R, B) of a run of rows. Raises ValueError for damaged ones."""
        (offset,) = self._offsets_of(rows[:1]).tolist()
        data = self._file.read_at(len(rows) * self._value_bytes, offset)
        values = np.frombuffer(data, np.uint8).reshape(len(rows), -1)
        lengths = np.ascontiguousarray(values[:, :LENGTH_BYTES]).view("<u4")
        features_RB = values[:, LENGTH_BYTES:]
        if (lengths != features_RB.shape[1]).any():
            raise ValueError(f"features of other than {features_RB.shape[1]} bytes")
        # Once a process: what was as published stays so.
        if self.checksums_M is not None and not self._is_checked_M[rows].all():
            if (row_checksums(features_RB, self.labels_M[rows].tolist()) != self.checksums_M[rows]).any():
                raise ValueError("damaged (a row's checksum is not the one that was published)")
            self._is_checked_M[rows] = True
        return features_RB

    def names(self, rows: NDArray[np.int64]) -> tuple[list[str], list[str]]:
        """Ids and paths of some rows, ascending."""
        metadata = self._parquet.metadata
        starts = np.cumsum([0, *(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))])
        ids, paths = [], []
        for index, row in zip((np.searchsorted(starts, rows, side="right") - 1).tolist(), rows.tolist(), strict=True):
            if self._group[0] != index:
                table = self._parquet.read_row_group(index, ["id", "path"])
                self._group = index, table["id"].to_pylist(), table["path"].to_pylist()
            ids.append(self._group[1][row - starts[index]])
            paths.append(self._group[2][row - starts[index]])
        return ids, paths


def _parquet_file(file: pa.NativeFile, footer: pa.Buffer) -> pq.ParquetFile:
    return pq.ParquetFile(file, metadata=pq.read_metadata(pa.BufferReader(footer)), pre_buffer=True)


def _column(parquet: pq.ParquetFile, name: str) -> pa.Array:
    return one_chunk(parquet.read([name])[name])


def _footer(file: pa.NativeFile) -> pa.Buffer:
    # Arrow itself reads 64 KiB for it, which may be more than the rows of a small shard that are wanted.
    size = file.size()
    end = bytes(file.read_at(_FOOTER_BYTES, size - _FOOTER_BYTES))
    footer_bytes = int.from_bytes(end[:4], "little") + _FOOTER_BYTES
    return file.read_at(footer_bytes, size - footer_bytes)
