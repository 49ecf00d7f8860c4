"""Shards: Parquet files of examples, how they are written and how their rows are read back.

Shapes: N examples, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import storage
from .draws import example_keys
from .errors import WorldError
from .manifest import Manifest, Shard, shard_uri

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .manifest import Split
    from .shard_cache import ShardCache

SCHEMA = pa.schema(
    [
        pa.field("features", pa.binary(), nullable=False, metadata={"layout": "uint8 CHW"}),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
    ]
)
ROW_GROUP_BYTES = 4 * 2**20


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


@dataclass
class _Buffer:
    rows: list[tuple[bytes, int, str, str]] = field(default_factory=list)
    num_bytes: int = 0


class ShardWriter:
    """Collects examples and writes a shard whenever a split has `shard_bytes` of them.

    A shard's name is the hash of its content and each is written whole or not at all, so a task that Spark runs
    twice writes the same files again and harms nothing. Memory: up to three shards.
    """

    def __init__(self, dataset_uri: str, *, num_classes: int, shard_bytes: int) -> None:
        self._dataset_uri = dataset_uri
        self._num_classes = num_classes
        self._shard_bytes = shard_bytes
        self._buffers: dict[Split, _Buffer] = {}
        self.shards: list[Shard] = []

    def add(self, split: Split, pixels_CHW: NDArray[np.uint8], label: int, example_id: str, path: str) -> None:
        """Take one example into its split's next shard."""
        buffer = self._buffers.setdefault(split, _Buffer())
        buffer.rows.append((pixels_CHW.tobytes(), label, example_id, path))
        buffer.num_bytes += pixels_CHW.nbytes
        if buffer.num_bytes >= self._shard_bytes:
            self._flush(split)

    def close(self) -> list[Shard]:
        """Write what is left and return all shards written."""
        for split in list(self._buffers):
            self._flush(split)
        return self.shards

    def _flush(self, split: Split) -> None:
        buffer = self._buffers.pop(split)
        columns = [list(column) for column in zip(*buffer.rows, strict=True)]
        data = _parquet(columns, rows_per_group=max(1, ROW_GROUP_BYTES * len(buffer.rows) // buffer.num_bytes))
        sha256 = hashlib.sha256(data).hexdigest()
        shard = Shard(
            name=f"{split}-{sha256[:20]}.parquet",
            split=split,
            num_examples=len(buffer.rows),
            num_bytes=len(data),
            sha256=sha256,
            num_per_class=np.bincount(columns[1], minlength=self._num_classes).tolist(),
        )
        storage.write_bytes(shard_uri(self._dataset_uri, shard.name), data)
        self.shards.append(shard)


def _parquet(columns: list[list[object]], *, rows_per_group: int) -> bytes:
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    stream = io.BytesIO()
    # Pixels hardly shrink and a reader must not wait for a decompressor; the text columns do and cost little.
    compression = dict.fromkeys(SCHEMA.names, "zstd") | {"features": "none"}
    pq.write_table(
        table, stream, row_group_size=rows_per_group, compression=compression, use_dictionary=["label", "path"]
    )
    return stream.getvalue()


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
        """Rows `start` to `stop` of a shard, in pieces (one a row group). Raises WorldError for a damaged shard.

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
            content = self._fetched(shard)
            if not self._is_as_published(shard, content):
                uri = shard_uri(self.uri, shard.name)
                raise WorldError(f"{uri}: damaged (its SHA-256 is not the manifest's); {_MEND}")
            return content

        if self._cache is None:
            return pq.ParquetFile(pa.BufferReader(fetch()))
        content = self._cache.read(shard.name, fetch, lambda found: self._is_as_published(shard, found))
        return pq.ParquetFile(pa.BufferReader(content))

    def _fetched(self, shard: Shard) -> pa.Buffer:
        uri = shard_uri(self.uri, shard.name)
        try:
            content = storage.read_buffer(uri)
        except FileNotFoundError:
            raise WorldError(f"{uri}: missing; {_MEND}") from None
        if content.size != shard.num_bytes:
            raise WorldError(f"{uri}: {content.size} bytes, the manifest says {shard.num_bytes}; {_MEND}")
        return content

    def _is_as_published(self, shard: Shard, content: pa.Buffer) -> bool:
        # Once a process: a shard that is as published now stays so, and hashing costs as much as reading.
        if shard.name not in self._verified:
            if hashlib.sha256(content).hexdigest() != shard.sha256:
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
                examples = replace(examples, keys_N=example_keys(_one_chunk(table["id"])))
            self._group = (key, examples)
        return self._group[1]

    def _examples(self, table: pa.Table, shard: Shard, *, with_names: bool) -> Examples:
        shape = self.manifest.image.shape
        pixels = np.frombuffer(_one_chunk(table["features"]).buffers()[2], dtype=np.uint8)
        if pixels.size != table.num_rows * self.manifest.image.example_bytes:
            raise WorldError(f"{shard_uri(self.uri, shard.name)}: examples are not of shape {shape}; {_MEND}")
        return Examples(
            pixels.reshape(table.num_rows, *shape),
            table["label"].to_numpy(),
            table["id"].to_pylist() if with_names else [],
            table["path"].to_pylist() if with_names else [],
        )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


_MEND = "the shard is damaged: restore the DataSet, or run vectorize with replace=true"
