"""Where the features of a shard's rows lie in its file, so that a few rows are read without their row group.

Features are stored plain and uncompressed: a page is a header and values, each with its length before it. No Parquet
library tells where pages begin, so their headers are read here: parquet-format's `PageHeader`, in Thrift's compact
protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

ReadAt = Callable[[int, int], Any]
LENGTH_BYTES = 4
_MAX_HEADER_BYTES = 512
_TRUE, _FALSE, _INTEGERS, _BINARY, _STRUCT = 1, 2, (4, 5, 6), 8, 12
# Fields of a PageHeader.
_TYPE, _NUM_BYTES, _DATA_PAGE = 1, 3, 0


def feature_pages(
    read_at: ReadAt, metadata: pq.FileMetaData, value_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each page of features, and where in the file that row's value (with its length) begins.

    `read_at(num_bytes, offset)` reads the file. Raises ValueError where features are not laid out as described above.
    """
    first_rows, offsets, row = [], [], 0
    for index in range(metadata.num_row_groups):
        column = metadata.row_group(index).column(0)
        kind = column.path_in_schema, column.compression, column.has_dictionary_page
        if kind != ("features", "UNCOMPRESSED", False):
            raise ValueError(f"the first column is {column.path_in_schema} ({column.compression}), not plain features")
        offset, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
        while offset < end:
            header_bytes, header = _struct(bytes(read_at(min(_MAX_HEADER_BYTES, end - offset), offset)), 0)
            num_bytes = header.get(_NUM_BYTES, 0)
            num_rows, rest = divmod(num_bytes, value_bytes)
            if header.get(_TYPE) != _DATA_PAGE or num_rows <= 0 or rest:
                raise ValueError(f"a page of features at {offset} does not hold values of {value_bytes} bytes")
            first_rows.append(row)
            offsets.append(offset + header_bytes)
            row += num_rows
            offset += header_bytes + num_bytes
    if row != metadata.num_rows:
        raise ValueError(f"{row} rows of features, the file says {metadata.num_rows}")
    return np.array(first_rows, np.int64), np.array(offsets, np.int64)


def _struct(data: bytes, at: int) -> tuple[int, dict[int, Any]]:
    """The fields of a Thrift struct by their numbers, and the place after it. Raises ValueError."""
    fields: dict[int, Any] = {}
    number = 0
    try:
        while data[at]:
            delta, kind = divmod(data[at], 16)
            at += 1
            number += delta
            if kind == _STRUCT:
                at, fields[number] = _struct(data, at)
            elif kind == _BINARY:
                at, size = _varint(data, at)
                at += size
            elif kind in _INTEGERS:
                at, value = _varint(data, at)
                fields[number] = (value >> 1) ^ -(value & 1)
            elif not delta or kind not in (_TRUE, _FALSE):
                raise ValueError(f"a page's header has a field of kind {kind}")
    except IndexError:
        raise ValueError("a page's header is cut short") from None
    return at + 1, fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return at, value
