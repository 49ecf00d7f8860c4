"""A table of images: CSV, Parquet or a folder of Parquet files, and its columns as text."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
from pyarrow import fs

from shardmean.model.dataset.shard import one_chunk
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_columns(uri: str, names: Sequence[str]) -> tuple[pa.Table, int]:
    """Columns of a table by name, as text, null where a row has no value; and how many hidden files were left out.

    Hidden are Parquet files below a folder with `.` or `_` before their or a folder's name, as for Spark.

    Raises UserError when it is no table or a column is missing, RetryableError when it cannot be read.
    """
    system, path = filesystem.locate(uri)
    num_hidden = 0
    try:
        kind = system.get_file_info(path).type
        if kind == fs.FileType.NotFound:
            raise UserError("no such table; correct source.uri")
        if kind == fs.FileType.Directory or path.endswith(".parquet"):
            files, num_hidden = _parquet_files(system, path) if kind == fs.FileType.Directory else ([path], 0)
            table = _read_parquet(system, path, files, names)
        else:
            table = _read_csv(system, path, names)
        columns = table.select(names).cast(pa.schema([(name, pa.large_string()) for name in names])).combine_chunks()
        columns.validate(full=True)  # a Parquet file may call any bytes text
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"neither CSV nor Parquet in UTF-8, or no text: {error}; correct the table") from error
    except OSError as error:
        raise RetryableError(f"source {uri}: cannot be read: {error}; check permission and network") from error
    if not columns.num_rows:
        raise UserError("the table has no rows; add one per image")
    return columns, num_hidden


def filled(columns: pa.Table, name: str) -> pa.LargeStringArray:
    """A column in which every row has a value. Raises UserError."""
    values = one_chunk(columns[name])
    num_empty = pc.sum(pc.equal(pc.fill_null(values, ""), "")).as_py()
    if num_empty:
        raise UserError(f"{num_empty} of {len(values)} rows have no {name}; fill them in")
    return values


def _read_csv(system: fs.FileSystem, path: str, names: Sequence[str]) -> pa.Table:
    # A CSV has no types: class 01 is not class 1, and NA may be a class.
    as_text = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    with system.open_input_stream(path) as stream:
        table = pa.csv.read_csv(
            stream, convert_options=as_text, parse_options=pa.csv.ParseOptions(newlines_in_values=True)
        )
    _check_columns(names, table.column_names)
    return table


def _read_parquet(system: fs.FileSystem, path: str, files: Sequence[str], names: Sequence[str]) -> pa.Table:
    # Spark's folders like label=01 are columns too, and text: left to itself, Arrow would make it a number.
    below = PurePosixPath(files[0]).relative_to(path).parts[:-1]
    keys = pa.schema([(part.partition("=")[0], pa.string()) for part in below if "=" in part])
    table = ds.dataset(files, filesystem=system, format="parquet", partitioning=ds.partitioning(keys, flavor="hive"))
    _check_columns(names, table.schema.names)
    return table.to_table(columns=list(dict.fromkeys(names)))


def _parquet_files(system: fs.FileSystem, folder: str) -> tuple[list[str], int]:
    infos = system.get_file_info(fs.FileSelector(folder, recursive=True))
    paths = [info.path for info in infos if info.is_file and info.path.endswith(".parquet")]
    files = [path for path in paths if not any(part[:1] in ("_", ".") for part in path[len(folder) :].split("/"))]
    num_hidden = len(paths) - len(files)
    if not files:
        but = f" but {num_hidden} hidden ones (. or _ before the name)" if num_hidden else ""
        raise UserError(f"a folder without Parquet files (*.parquet){but}; correct source.uri or source.layout")
    return sorted(files), num_hidden


def _check_columns(names: Sequence[str], present: Sequence[str]) -> None:
    for name in names:
        if present.count(name) != 1:
            number = "more than one" if name in present else "no"
            raise UserError(
                f"{number} column {name!r} among {', '.join(present)}; set source.path_column, "
                "source.label_column and the other columns of source to what is there"
            )
