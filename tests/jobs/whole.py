"""What a published DataSet holds, read as anybody would, and the laws that every version obeys."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from blake3 import blake3

from shardmean.jobs.vectorize.index.table import INDEX, read_index
from shardmean.model.dataset.manifest import Manifest, load_manifest, rejected_uri, shard_uri
from shardmean.model.storage import filesystem


def rows_of(uri: str, digest: str | None = None) -> pd.DataFrame:
    """All examples of a version, sorted by path, with split, shard and class name."""
    manifest = load_manifest(uri, digest)
    parts = []
    for shard in manifest.shards:
        content = filesystem.read_bytes(shard_uri(uri, shard.name))
        assert blake3(content).hexdigest() == shard.blake3
        table = pq.read_table(io.BytesIO(content)).to_pandas()
        assert len(table) == shard.num_examples
        assert Counter(table.label.tolist()) == shard.num_per_class
        parts.append(table.assign(split=shard.split, shard=shard.name))
    rows = pd.concat(parts, ignore_index=True).sort_values("path", ignore_index=True)
    return rows.assign(class_name=[manifest.class_names[label] for label in rows.label])


def index_of(uri: str, digest: str | None = None) -> pd.DataFrame:
    """The index of a version."""
    return read_index(uri, load_manifest(uri, digest).index).to_pandas()


def check_whole(uri: str, digest: str | None = None) -> Manifest:
    """Assert that manifest, shards, index and table of rejected images say the same, and give the manifest."""
    manifest, rows, index = load_manifest(uri, digest), rows_of(uri, digest), index_of(uri, digest)
    assert index.columns.tolist() == INDEX.names
    assert index.path.is_monotonic_increasing
    assert index.path.is_unique
    accepted = index[index.reason.isna()].reset_index(drop=True)
    facts = ["path", "split", "shard", "class_name"]
    pd.testing.assert_frame_equal(accepted[facts], rows[facts])
    assert rows.id.is_unique
    assert [value.hex() for value in accepted.content_hash] == [name[:32] for name in rows.id]
    refused = index[~index.reason.isna()]
    assert refused.split.isna().all()
    assert refused.shard.isna().all()
    assert manifest.num_rejected_by_reason == refused.reason.value_counts().to_dict()
    table = pq.read_table(io.BytesIO(filesystem.read_bytes(rejected_uri(uri, manifest.rejected)))).to_pandas()
    assert table.path.tolist() == refused.path.tolist()
    splits_of_bytes = accepted.groupby("content_hash")["split"].nunique()
    assert (splits_of_bytes == 1).all(), "copies share a split"
    train = [np.frombuffer(value, np.uint8) for value in rows[rows.split == "train"].features]
    values = np.stack(train).reshape(len(train), manifest.image.channels, -1) / 255
    np.testing.assert_allclose(manifest.mean, values.mean(axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, values.std(axis=(0, 2)), rtol=1e-9, atol=1e-12)
    return manifest
