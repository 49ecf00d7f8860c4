"""Rows are found in a shard's file wherever its pages begin, and what is no such file is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardmean.model.dataset.pages import LENGTH_BYTES, feature_pages


def written(
    num_rows: int, num_bytes: int, *, group_rows: int = 1000, page_bytes: int = 2**20, **options
) -> tuple[bytes, np.ndarray]:
    """A file of random features beside a label, and the features (N, B)."""
    features_NB = np.random.default_rng(num_rows).integers(0, 256, (num_rows, num_bytes), dtype=np.uint8)
    table = pa.table(
        {
            "features": pa.array([row.tobytes() for row in features_NB], pa.binary()),
            "label": pa.array(np.arange(num_rows) % 3),
        },
        schema=pa.schema([pa.field("features", pa.binary(), nullable=False), pa.field("label", pa.int64())]),
    )
    sink = pa.BufferOutputStream()
    settings = {
        "compression": {"features": "none", "label": "zstd"}, "use_dictionary": ["label"], "write_batch_size": 8,
        "write_statistics": ["label"],
    } | options  # fmt: skip
    pq.write_table(table, sink, row_group_size=group_rows, data_page_size=page_bytes, **settings)
    return sink.getvalue().to_pybytes(), features_NB


def pages_of(data: bytes, num_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    file = pa.BufferReader(data)
    return feature_pages(file.read_at, pq.read_metadata(file), LENGTH_BYTES + num_bytes)


@given(st.integers(1, 120), st.integers(1, 60), st.integers(1, 50), st.sampled_from([1, 64, 500, 2**20]), st.booleans())
def test_every_row_is_found(num_rows, num_bytes, group_rows, page_bytes, has_statistics):
    statistics = ["label", "features"] if has_statistics else ["label"]
    data, features_NB = written(
        num_rows, num_bytes, group_rows=group_rows, page_bytes=page_bytes, write_statistics=statistics
    )
    first_rows, offsets = pages_of(data, num_bytes)
    assert first_rows[0] == 0
    assert (np.diff(first_rows) > 0).all()
    for row in range(num_rows):
        page = np.searchsorted(first_rows, row, side="right") - 1
        at = offsets[page] + (row - first_rows[page]) * (LENGTH_BYTES + num_bytes)
        assert data[at : at + LENGTH_BYTES] == num_bytes.to_bytes(4, "little")
        assert data[at + LENGTH_BYTES : at + LENGTH_BYTES + num_bytes] == features_NB[row].tobytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "zstd"}, r"the first column is features \(ZSTD\), not plain features"),
        ({"use_dictionary": ["features", "label"]}, "not plain features"),
        ({"data_page_version": "2.0"}, "does not hold values of 14 bytes"),
    ],
)
def test_other_layouts_are_refused(options, message):
    data, _ = written(20, 10, **options)
    with pytest.raises(ValueError, match=message):
        pages_of(data, 10)


def test_features_of_another_size_are_refused():
    data, _ = written(7, 10)
    with pytest.raises(ValueError, match="does not hold values of 15 bytes"):
        pages_of(data, 11)


@pytest.mark.parametrize(
    "header",
    [
        "150015001500",  # no bytes, which would be read for ever
        "1500151b151b00",  # -14 bytes
        "00",
        "150c",  # cut short
        "1900",  # a list, which no page's header begins with
    ],
)
def test_a_header_that_tells_no_page_is_refused(header):
    data, _ = written(20, 10)
    broken = data[:4] + bytes.fromhex(header).ljust(40, b"\0") + data[44:]
    with pytest.raises(ValueError, match="a page"):
        feature_pages(pa.BufferReader(broken).read_at, pq.read_metadata(pa.BufferReader(data)), LENGTH_BYTES + 10)


def test_a_damaged_header_raises_nothing_but_value_error():
    data, _ = written(200, 10, page_bytes=200)
    metadata = pq.read_metadata(pa.BufferReader(data))
    generator = np.random.default_rng(0)
    for at in generator.integers(4, 2000, 300):
        broken = bytearray(data)
        broken[at] ^= 1 << int(generator.integers(8))
        try:
            first_rows, _ = feature_pages(pa.BufferReader(bytes(broken)).read_at, metadata, LENGTH_BYTES + 10)
        except ValueError:
            continue
        assert first_rows[0] == 0
