"""What the ETL is held against: processes that read, decode and write Parquet, and do nothing else.

They use the project's decoder; the files they write have the columns of ours and lie about as ours do.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardmean.model.images.decoder import decode_image

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.processes import Answer
    from shardmean.model.config.image import ImageConfig

FILE_BYTES = 64 * 2**20
ROW_GROUP_BYTES = 4 * 2**20


def bare_etl(rank: int, num: int, images: Path, out: Path, image: ImageConfig) -> Answer:
    """For `Processes`: a question makes Parquet files of one part of all images; the answer is the CPU seconds."""
    files = sorted(images.rglob("*.*"))[rank::num]
    rows_per_file = FILE_BYTES // image.example_bytes
    out = out / str(rank)

    def all_files(_question: object) -> float:
        started = time.process_time()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for first in range(0, len(files), rows_per_file):
            write_file(files[first : first + rows_per_file], out / f"{first}.parquet", image)
        return time.process_time() - started

    return all_files


def write_file(files: list[Path], to: Path, image: ImageConfig) -> None:
    """Decode and write one Parquet file."""
    pixels_NB = np.empty((len(files), image.example_bytes), np.uint8)
    for number, file in enumerate(files):
        with open(file, "rb") as stream:  # noqa: PTH123 - faster, and so is ours
            pixels_NB[number] = decode_image(stream.read(), image).pixels_CHW.reshape(-1)
    width = image.example_bytes
    offsets = pa.py_buffer(np.arange(len(files) + 1, dtype=np.int32) * width)
    names = [str(file) for file in files]
    columns = {
        "features": pa.Array.from_buffers(pa.binary(), len(files), [None, offsets, pa.py_buffer(pixels_NB)]),
        "label": pa.array([int(file.parent.name) for file in files], pa.int64()),
        "id": pa.array(names),
        "path": pa.array(names),
    }
    compression = {name: "none" if name == "features" else "zstd" for name in columns}
    pq.write_table(
        pa.table(columns), to, row_group_size=ROW_GROUP_BYTES // width, compression=compression,
        use_dictionary=["label"], write_statistics=["label"],
    )  # fmt: skip
