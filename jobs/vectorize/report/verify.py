"""Checks that every file of a DataSet is as it was published and agrees with the others, and lists all that is wrong.

Memory: 16 bytes an example, for what must be unique.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardmean.jobs.vectorize.index.duplicates import HASH_BYTES
from shardmean.jobs.vectorize.index.table import REPAIR_HINT, read_table
from shardmean.model.dataset.manifest import SPLITS, index_uri, rejected_uri, shard_uri
from shardmean.model.dataset.shard import features_of, read_shard
from shardmean.model.errors import RetryableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from shardmean.model.dataset.manifest import Manifest, Shard
    from shardmean.model.dataset.reader import Dataset

HASH_DIGITS = 2 * HASH_BYTES  # of the hash of an image's bytes, with which its id begins
MAX_FAULTS = 5
_DAMAGES = (RetryableError, OSError, ValueError, KeyError, pa.ArrowException)


class Verification:
    """Goes through a DataSet once: first each shard, then what they hold together and the tables."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._damages: list[str] = []
        self._ids: list[NDArray[np.uint64]] = []
        self._contents: dict[str, list[NDArray[np.uint64]]] = {split: [] for split in SPLITS}

    def add_shard(self, shard: Shard) -> None:
        """Check one shard."""
        self._try(shard_uri(self._dataset.uri, shard.name), partial(self._shard, shard))

    def all_damages(self) -> list[str]:
        """A line for each thing that is wrong with the shards, what they hold together, and the manifest's tables."""
        uri, manifest = self._dataset.uri, self._dataset.manifest
        self._try(uri, self._together)
        if manifest.index is not None:
            self._table(index_uri(uri, manifest.index), index_faults)
        if manifest.rejected is not None:
            self._table(rejected_uri(uri, manifest.rejected), rejected_faults)
        return self._damages

    def _table(self, uri: str, faults: Callable[[pa.Table, Manifest], Iterator[str]]) -> None:
        self._try(uri, lambda: faults(read_table(uri), self._dataset.manifest))

    def _try(self, uri: str, check: Callable[[], Iterator[str]]) -> None:
        try:
            self._damages += [f"{uri}: {fault}; {REPAIR_HINT}" for fault in check()]
        except _DAMAGES as error:
            text = str(error).splitlines()[0]
            self._damages.append(text if uri in text else f"{uri}: damaged ({text}); {REPAIR_HINT}")

    def _shard(self, shard: Shard) -> Iterator[str]:
        manifest = self._dataset.manifest
        num_classes = len(manifest.class_names)
        table = read_shard(self._dataset.uri, shard)
        features_of(table, manifest.image.example_bytes)
        labels_N, ids = table["label"].to_numpy(), table["id"].to_pylist()
        unknown_N = labels_N[(labels_N < 0) | (labels_N >= num_classes)]
        if len(unknown_N):
            yield f"label {unknown_N[0]} in a DataSet of {num_classes} classes"
        self._ids.append(_keys(ids))
        self._contents[shard.split].append(_keys([one[:HASH_DIGITS] for one in ids]))
        if len(ids) != shard.num_examples:
            yield f"{len(ids)} examples, the manifest says {shard.num_examples}"
        elif Counter(labels_N.tolist()) != shard.num_per_class:
            yield "the examples of its classes are not as many as the manifest says"

    def _together(self) -> Iterator[str]:
        ids = np.concatenate([np.zeros(0, dtype=np.uint64), *self._ids])
        num_repeated = len(ids) - len(np.unique(ids))
        if num_repeated:
            yield f"{num_repeated} ids are there more than once"
        contents = {split: np.unique(np.concatenate(parts)) for split, parts in self._contents.items() if parts}
        for one, other in combinations(contents, 2):
            num_shared = len(np.intersect1d(contents[one], contents[other], assume_unique=True))
            if num_shared:
                yield f"{one} and {other} share the bytes of {num_shared} images"


def _keys(texts: list[str]) -> NDArray[np.uint64]:
    """64 bits for each text: among ten million, two share theirs by chance once in 400,000 DataSets."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype=np.uint64)


def index_faults(index: pa.Table, manifest: Manifest) -> Iterator[str]:
    """What an index says that its manifest does not."""
    if pc.count_distinct(index["path"]).as_py() != index.num_rows:
        yield "a path is in it more than once"
    accepted = index.filter(pc.is_valid(index["split"]))
    counts = Counter(zip(accepted["split"].to_pylist(), accepted["class_name"].to_pylist(), strict=True))
    expected = Counter({
        (split, name): number
        for split in SPLITS
        for name, number in zip(manifest.class_names, manifest.num_per_class(split), strict=True)
    })  # fmt: skip
    differing = [key for key in expected | counts if counts[key] != expected[key]]
    for split, name in differing[:MAX_FAULTS]:
        number = expected[split, name]
        yield f"{counts[split, name]} images of {name!r} in {split}, the manifest says {number}"
    if len(differing) > MAX_FAULTS:
        yield f"the same for {len(differing) - MAX_FAULTS} more classes of splits"
    in_shards = {shard.name: shard.num_examples for shard in manifest.shards}
    if Counter(accepted["shard"].to_pylist()) != in_shards:
        yield "the images of the shards are not as many as the manifest says"
    yield from rejected_faults(index.filter(pc.is_valid(index["reason"])), manifest)


def rejected_faults(rejected: pa.Table, manifest: Manifest) -> Iterator[str]:
    """What the table of rejected images says that its manifest does not."""
    counts = Counter(rejected["reason"].to_pylist())
    if counts != manifest.num_rejected_by_reason:
        yield f"rejected are {dict(counts)}, the manifest says {manifest.num_rejected_by_reason}"
