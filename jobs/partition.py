"""What one ETL task does: read its images, decode them, write its shards. A pure function of its items."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from blake3 import blake3

from jobs.index import INDEX, REMEMBERED
from jobs.sources import read_item
from jobs.splits import HASH_BYTES, fixed_code, split_code
from model import storage
from model.errors import ImageRejectedError, WorldError
from model.images import check_file_bytes, decode_image, printable
from model.manifest import SPLITS
from model.new_shard import NewShard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from jobs.config import VectorizeJob
    from jobs.items import Item
    from model.config import ImageConfig
    from model.manifest import Shard

MAX_PARTITION_ITEMS = 4096
# What a lost task costs, and how far apart its signs of life are: some seconds of decoding.
MAX_PARTITION_BYTES = 256 * 2**20
NUM_READ_AHEAD = 16
READ_AHEAD_BYTES = 64 * 2**20
# What stores say of one object that may not be read, and of no object but of the way to them.
REFUSED, NO_WAY = "ACCESS_DENIED", "NETWORK_CONNECTION"
REPORT = pa.schema(
    [
        ("place", pa.int64()),
        ("shard_number", pa.int32()),
        ("is_same", pa.bool_()),
        *(INDEX.field(name) for name in REMEMBERED),
    ]
)


@dataclass(frozen=True)
class PartitionTask:
    """Items with their places in the source, and for each the hash of the bytes that its example was made of, or None.

    An item whose bytes are still those is not decoded.
    """

    items: Sequence[Item]
    places: Sequence[int]
    known: Sequence[bytes | None]


@dataclass(frozen=True)
class PartitionReport:
    """The shards of a task, and a row for each of its items: see REPORT. `shard_number` counts among `shards`."""

    shards: list[Shard]
    rows: pa.Table

    @property
    def num_rejected(self) -> int:
        """Items that became no example."""
        num_accepted = int(self.rows["reason"].null_count)
        return int(self.rows.num_rows) - num_accepted


def partitions(sizes_bytes_N: NDArray[np.int64], *, num_items: int) -> Iterator[slice]:
    """The items of each task: `num_items` at most, of files of MAX_PARTITION_BYTES at most (or one file)."""
    ends_N = np.cumsum(sizes_bytes_N)
    first = before_bytes = 0
    while first < len(ends_N):
        end = int(np.searchsorted(ends_N, before_bytes + MAX_PARTITION_BYTES, side="right"))
        end = min(max(end, first + 1), first + num_items, len(ends_N))
        yield slice(first, end)
        first, before_bytes = end, int(ends_N[end - 1])


def vectorize_partition(task: PartitionTask, job: VectorizeJob, class_names: Sequence[str]) -> PartitionReport:
    """Make one partition's shards. Raises UserError and WorldError when what it needs can't be read or written."""
    contents = _contents(task.items, job.image)
    with _Made(task, job, class_names) as made:
        for number, content in enumerate(contents):
            try:
                if isinstance(content, Exception):
                    raise content
                made.take(number, content)
            except ImageRejectedError as error:
                made.facts[number] |= {"reason": error.reason, "detail": error.detail}
        shards = made.publish()
    return PartitionReport(shards, pa.Table.from_pylist(made.facts, schema=REPORT))


class _Made:
    """What a task has made so far: a shard of each split that has examples, and facts of each item."""

    def __init__(self, task: PartitionTask, job: VectorizeJob, class_names: Sequence[str]) -> None:
        self._task = task
        self._job = job
        self._labels = {name: label for label, name in enumerate(class_names)}
        self._ends = ExitStack()
        self._shards: dict[int, NewShard] = {}
        self._codes = np.full(len(task.items), -1)
        self.facts: list[dict[str, Any]] = [
            {"place": place, "shard_number": -1, "is_same": False} for place in task.places
        ]

    def take(self, number: int, content: bytes) -> None:
        """Make an example of an item's bytes, unless they are known. Raises ImageRejectedError."""
        fact, item = self.facts[number], self._task.items[number]
        fact["content_hash"] = content_hash = blake3(content).digest(length=HASH_BYTES)
        fact["is_same"] = content_hash == self._task.known[number]
        if fact["is_same"]:
            return
        decoded = decode_image(content, self._job.image)
        fact |= {"width": decoded.width_px, "height": decoded.height_px, "has_more_frames": decoded.has_more_frames}
        self._codes[number] = code = _first_split(item, content_hash, self._job)
        shard = self._shards.get(code) or self._begin(code)
        example = example_id(content_hash, item.path)
        shard.add(decoded.pixels_CHW, self._labels[item.class_name], example, item.path, item.extra)

    def _begin(self, code: int) -> NewShard:
        extra_columns = self._job.source.extra_columns
        shard = NewShard(self._job.dataset_uri, SPLITS[code], shape=self._job.image.shape, extra_columns=extra_columns)
        self._shards[code] = self._ends.enter_context(shard)
        return shard

    def publish(self) -> list[Shard]:
        """Publish the shards. Raises WorldError."""
        codes = sorted(self._shards)
        for number, code in enumerate(self._codes.tolist()):
            if code >= 0:
                self.facts[number]["shard_number"] = codes.index(code)
        return [self._shards[code].publish() for code in codes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._ends.__exit__(*error)


def _first_split(item: Item, content_hash: bytes, job: VectorizeJob) -> int:
    """Where an example lies until all are known: for most that is where it stays."""
    fixed = fixed_code(item.split, item.group, job.split)
    if fixed >= 0:
        return fixed
    return split_code(content_hash, job.split) if job.split.method == "random" else 0


def example_id(content_hash: bytes, path: str) -> str:
    """Unique name of an example: the hash of its bytes, then of its path, so that copies differ and can be seen."""
    return f"{content_hash.hex()}-{hashlib.blake2b(path.encode(errors='surrogateescape'), digest_size=4).hexdigest()}"


def _contents(items: Sequence[Item], config: ImageConfig) -> Iterator[bytes | Exception]:
    """The items' bytes in order, or for each the reason why there are none. Remote files are fetched ahead."""
    remote = any(storage.local_path(item.uri) is None for item in (*items[:1], *items[-1:]))
    return _ahead(items, config) if remote else (_content(item, config) for item in items)


def _ahead(items: Iterable[Item], config: ImageConfig) -> Iterator[bytes | Exception]:
    """Many small files or few large ones at a time: those that wait have READ_AHEAD_BYTES, or are one."""
    waiting: deque[tuple[int, Future[bytes | Exception]]] = deque()
    with ThreadPoolExecutor(NUM_READ_AHEAD) as pool:
        num_bytes = 0
        for item in items:
            size_bytes = min(item.size_bytes, config.max_file_bytes)  # a larger one is not read
            while waiting and (len(waiting) >= 2 * NUM_READ_AHEAD or num_bytes + size_bytes > READ_AHEAD_BYTES):
                first_bytes, first = waiting.popleft()
                yield first.result()
                num_bytes -= first_bytes
                del first  # the next is not waited for with this one in memory
            waiting.append((size_bytes, pool.submit(_content, item, config)))
            num_bytes += size_bytes
        while waiting:
            yield waiting.popleft()[1].result()


def _content(item: Item, config: ImageConfig) -> bytes | Exception:
    try:
        check_file_bytes(item.size_bytes, config)
        return read_item(item)
    except ImageRejectedError as error:
        return error
    except FileNotFoundError:
        return ImageRejectedError("vanished", "the file was there when the source was listed")
    except WorldError as error:
        return _refusal(error)


def _refusal(error: WorldError) -> Exception:
    """What cannot be read is that image's trouble alone, and the next run tries again; a store out of reach is not."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or NO_WAY in str(cause):
        return error
    if isinstance(cause, PermissionError) or REFUSED in str(cause):
        return ImageRejectedError("no_permission", "the file may not be read")
    return ImageRejectedError("not_readable", printable(f"{cause.strerror or cause}; the next run tries again"))
