"""A DataSet of made images with its index and its table of rejected images, as the ETL makes them."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from blake3 import blake3

from shardmean.jobs.vectorize.index.table import INDEX
from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.dataset.manifest import Manifest, Source, publish
from shardmean.model.dataset.reader import Dataset
from tests.model.dataset_writer import DatasetWriter

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

SECOND_NS = 10**9
NEWEST_NS = 1_764_000_000 * SECOND_NS


@dataclass(frozen=True)
class Made:
    """One image of the source: its pixels (None for a rejected one), and what the ETL found out about it."""

    path: str
    class_name: str
    pixels_CHW: np.ndarray | None = None
    split: str = "train"
    content: bytes | None = None
    reason: str | None = None
    detail: str = ""
    size_bytes: int = 700
    size_px: tuple[int, int] | None = (40, 30)

    @property
    def content_hash(self) -> bytes | None:
        content = self.content if self.pixels_CHW is None else self.pixels_CHW.tobytes() + (self.content or b"")
        return None if content is None else blake3(content).digest(length=16)


def publish_indexed(
    folder: Path, items: list[Made], *, shard_bytes: int = 20_000, split: SplitConfig | None = None
) -> tuple[Dataset, pa.Table]:
    """Write the accepted images to shards, publish them, and give the DataSet with its index table."""
    class_names = sorted({item.class_name for item in items})
    accepted = [item for item in items if item.reason is None]
    writer = DatasetWriter(str(folder), shard_bytes=shard_bytes)
    labels = {name: label for label, name in enumerate(class_names)}
    shard_of: dict[str, str] = {}
    waiting: dict[str, list[str]] = {}
    for item in sorted(accepted, key=lambda item: item.content_hash):
        path_hash = hashlib.blake2b(item.path.encode(), digest_size=8).hexdigest()
        waiting.setdefault(item.split, []).append(item.path)
        num_shards = len(writer.shards)
        writer.add(
            item.split, item.pixels_CHW, labels[item.class_name], f"{item.content_hash.hex()}-{path_hash}", item.path
        )
        if len(writer.shards) > num_shards:
            shard_of |= dict.fromkeys(waiting.pop(item.split), writer.shards[-1].name)
    for shard in writer.close():
        shard_of |= dict.fromkeys(
            waiting.pop(shard.split, []) if shard.name not in shard_of.values() else [], shard.name
        )
    channels, height, width = accepted[0].pixels_CHW.shape
    reasons = Counter(item.reason for item in items if item.reason is not None)
    manifest = Manifest(
        image=ImageConfig(height_px=height, width_px=width, channels=channels),
        split=split or SplitConfig(),
        class_names=class_names,
        mean=[0.25] * channels,
        std=[0.5] * channels,
        shards=writer.shards,
        source=Source(uri="/pile", layout="folders", fingerprint="f", num_files=len(items)),
        num_rejected=sum(reasons.values()),
        num_rejected_by_reason=dict(sorted(reasons.items())),
    ).sealed()
    index = _index(items, shard_of)
    rejected = index.filter(pc.is_valid(index["reason"])).select(["path", "reason", "detail", "size_bytes"])
    tables = {name: write_table(folder / name, table) for name, table in {"index": index, "rejected": rejected}.items()}
    manifest = manifest.model_copy(update=tables)
    publish(manifest, str(folder))
    return Dataset(str(folder), manifest), index


def write_table(folder: Path, table: pa.Table) -> str:
    """Write a table into a folder under the hash of its content, and give its name."""
    stream = io.BytesIO()
    pq.write_table(table, stream)
    name = f"{hashlib.sha256(stream.getvalue()).hexdigest()[:20]}.parquet"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(stream.getvalue())
    return name


def _index(items: list[Made], shard_of: dict[str, str]) -> pa.Table:
    rows = []
    for number, item in enumerate(sorted(items, key=lambda item: item.path)):
        width, height = item.size_px or (None, None)
        is_in = item.reason is None
        rows.append({
            "path": item.path, "uri": f"/pile/{item.path}", "size_bytes": item.size_bytes,
            "modified_ns": NEWEST_NS - number * SECOND_NS, "class_name": item.class_name,
            "split": item.split if is_in else None, "content_hash": item.content_hash,
            "shard": shard_of[item.path] if is_in else None, "reason": item.reason, "detail": item.detail,
            "width": width, "height": height,
        })  # fmt: skip
    return pa.Table.from_pylist(rows, schema=INDEX)
