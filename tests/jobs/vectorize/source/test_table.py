"""Sources that are tables: CSV, Parquet and folders of it say the same, on a disk and on S3."""

from __future__ import annotations

import csv
import gzip
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.vectorize.source.reader import read_item
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.storage import filesystem
from tests.jobs.scanning import NAMES, scanned, told

ROWS = {
    "path": ["a/1.png", "a/2.png", "b/3.png"],
    "label": ["01", "NA", "01"],
    "patient": ["p", "q", "r"],
    "split": ["Train", "val", ""],
    "age": ["7", None, "8"],
}
FULL = {"split_column": "split", "group_column": "patient", "extra_columns": ["age", "patient"]}


def _write_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(ROWS), *zip(*ROWS.values(), strict=True)])
    return path


def _write_csv_gz(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(_write_csv(path).read_bytes()))
    return packed


def _write_parquet(path: Path) -> Path:
    file = path.with_suffix(".parquet")
    pq.write_table(pa.table(ROWS | {"label": pa.array(ROWS["label"]).dictionary_encode()}), file)
    return file


def _write_parquet_folder(path: Path) -> Path:
    """As Spark writes it, with a column in the folders' names."""
    folder = path.with_suffix("")
    table = pa.table({name: pa.array(values, pa.string()) for name, values in ROWS.items()})
    for label in ("01", "NA"):
        (folder / f"label={label}").mkdir(parents=True)
        rows = [row for row, found in enumerate(ROWS["label"]) if found == label]
        pq.write_table(table.take(rows).drop_columns("label"), folder / f"label={label}" / "part-0.parquet")
    (folder / "_SUCCESS").touch()
    return folder


@pytest.mark.parametrize("write", [_write_csv, _write_csv_gz, _write_parquet, _write_parquet_folder])
def test_tables_of_each_kind_say_the_same(fill, write):
    table = write(fill(*ROWS["path"]) / "table.csv")
    found = scan(SourceConfig(uri=str(table), layout="table", **FULL))
    assert found.extra_columns == ("age", "patient")
    assert [(i.path, i.class_name, i.split, i.group, i.extra) for i in found.items] == [
        ("a/1.png", "01", "train", "p", ("7", "p")),
        ("a/2.png", "NA", "validation", "q", (None, "q")),
        ("b/3.png", "01", None, "r", ("8", "r")),
    ]


def test_a_table_with_the_class_in_its_paths(fill):
    table = _write_csv(fill(*ROWS["path"]) / "table.csv")
    settings = {"layout": "table", "label_column": "not there"}
    assert list(told(table, "class_name", label_from="parent_folder", **settings).values()) == ["a", "a", "b"]
    by_pattern = {"label_from": "pattern", "label_pattern": "(?P<label>[0-9])", "exclude": ["/a/2*"]}
    assert list(told(table, "class_name", **by_pattern, **settings).values()) == ["1", "3"]


def test_numbers_and_dates_in_parquet_become_text(fill):
    folder = fill("a/1.png", "a/2.png")
    columns = {"path": ["a/1.png", "a/2.png"], "label": [1, 2], "at": np.array(["2024-01-02", "2025-01-01"], "M8[D]")}
    pq.write_table(pa.table(columns), folder / "t.parquet")
    items = scanned(folder / "t.parquet", layout="table", extra_columns=["at"])
    assert [(item.class_name, item.extra) for item in items.values()] == [
        ("1", ("2024-01-02",)),
        ("2", ("2025-01-01",)),
    ]


@given(names=st.lists(NAMES, min_size=2, max_size=4, unique=True))
def test_odd_names_in_a_csv(names):
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            Path(folder, name).write_text(str(number))
        with Path(folder, ".table.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *((name, f"class {name}") for name in names)])
        items = scanned(Path(folder, ".table.csv"), layout="table")
        assert {path: (item.class_name, read_item(item).decode()) for path, item in items.items()} == {
            name: (f"class {name}", str(number)) for number, name in enumerate(names)
        }


def test_hidden_files_of_a_table_are_counted(fill):
    """What Spark left of a job that was cut off would be rows twice."""
    folder = _write_parquet_folder(fill(*ROWS["path"]) / "table.csv")
    for name in ("_temporary/0", ".staging", "label=01/_x"):
        (folder / name).mkdir(parents=True)
        shutil.copy(folder / "label=01" / "part-0.parquet", folder / name)
    found = scan(SourceConfig(uri=str(folder), layout="table"))
    assert (len(found.items), found.num_hidden) == (3, 3)


@pytest.mark.parametrize("write", [_write_csv, _write_csv_gz, _write_parquet, _write_parquet_folder])
def test_tables_on_s3(fill, to_s3, write):
    table = write(fill(*ROWS["path"]) / "table.csv")
    items = scanned(filesystem.join(to_s3(table.parent), table.name), layout="table", **FULL)
    assert [item.class_name for item in items.values()] == ["01", "NA", "01"]
    assert [read_item(item).decode() for item in items.values()] == ROWS["path"]


def test_a_table_on_a_disk_may_name_files_on_s3_and_elsewhere(fill, to_s3, tmp_path):
    folder = fill(*ROWS["path"])
    remote = filesystem.join(to_s3(folder), "a", "1.png")
    rows = [remote, (folder / "a/2.png").as_uri(), str(folder / "b/3.png")]
    text = "".join(f"{path},{label}\n" for path, label in zip(["path", *rows], ["label", "x", "y", "z"], strict=True))
    (tmp_path / "table.csv").write_text(text)
    items = scanned(tmp_path / "table.csv", layout="table")
    assert [read_item(items[row]).decode() for row in rows] == ROWS["path"]
