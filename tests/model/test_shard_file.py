"""Laws of a shard's bytes: whatever stands in its columns, it fits the memory it is written to and reads back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import shard_file
from model.shard_file import read_shard, rows_table, write_shard


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 400),
    side=st.integers(1, 12),
    num_extras=st.integers(0, 40),
    letters=st.sampled_from([0, 1, 30, 3000]),
    group_bytes=st.sampled_from([1, 50, 10_000, shard_file.ROW_GROUP_BYTES]),
    seed=st.integers(0, 2**32),
)
def test_any_rows_are_written_and_read_back(tmp_path_factory, num_rows, side, num_extras, letters, group_bytes, seed):
    folder = tmp_path_factory.mktemp("shard")
    draw = np.random.default_rng(seed)
    # Text that no compression makes shorter, of which half the columns repeat a few values.
    values = ["".join(map(chr, draw.integers(0x20, 0xD7FF, letters))) for _ in range(20)]
    extras = {}
    for number in range(num_extras):
        chosen = draw.integers(0, len(values), num_rows)
        extras[f"extra {number}"] = [f"{values[i]}{row if number % 2 else ''}" for row, i in enumerate(chosen)]
    pixels_NB = draw.integers(0, 256, (num_rows, side * side), dtype=np.uint8)
    ids = [draw.bytes(16).hex() for _ in range(num_rows)]
    labels_N = draw.integers(0, 2**62, num_rows)
    table = rows_table(pixels_NB, labels_N, ids, [draw.bytes(50).hex() for _ in range(num_rows)], extras)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_file, "ROW_GROUP_BYTES", group_bytes)
        shard = write_shard(str(folder), "train", table, shape=(1, side, side))
    assert read_shard(str(folder), shard).equals(table)
