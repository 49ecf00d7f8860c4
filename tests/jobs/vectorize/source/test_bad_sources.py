"""Sources that are no source: folders and tables that hold something else than the config says."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("spark")


@pytest.fixture
def refusal(tmp_path, vectorize_job):
    """Vectorize a source that must be refused, see that nothing was written, and give the message."""

    def refusal(source, **changes) -> str:
        with pytest.raises(UserError) as caught:
            vectorize(vectorize_job(source, tmp_path / "set", **changes))
        assert not (tmp_path / "set").exists()
        return str(caught.value)

    return refusal


def test_missing_folder(tmp_path, refusal):
    assert refusal(tmp_path / "no") == f"source {tmp_path}/no: no such folder; correct source.uri"


def test_a_file_in_place_of_the_folder(tmp_path, refusal):
    (tmp_path / "file").write_text("x")
    assert "a file, not a folder; correct source.uri or source.layout" in refusal(tmp_path / "file")


def test_empty_folder(tmp_path, refusal):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    assert "no files; expected FOLDER/CLASS/IMAGE" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "class" / ".1.png").touch()
    assert "no files (and 1 hidden files and folders); expected FOLDER/CLASS/IMAGE" in refusal(tmp_path / "empty")


def test_no_image_among_the_files(tmp_path, refusal):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    assert "1 files, none of them an image; expected FOLDER/CLASS/IMAGE" in refusal(tmp_path / "other")


def test_images_outside_class_folders(tmp_path, make_images, refusal):
    images = make_images(tmp_path / "images", num_per_class=2)
    shutil.copy(images / "low" / "000.png", images / "loose.png")
    message = refusal(images)
    for part in ("1 images are outside any class folder (first: loose.png)", "source.layout=table"):
        assert part in message


def test_only_one_class(tmp_path, make_images, refusal):
    message = refusal(make_images(tmp_path / "images", ["alone"], num_per_class=3))
    assert "only one class, 'alone'; a classifier needs two or more" in message


@pytest.mark.parametrize("uri", ["ftp://host/images", "abfs://x@y/z"])
def test_unknown_store(refusal, uri):
    message = refusal(uri)
    assert f"{uri}: unknown store" in message
    assert "use a local path or one of file, s3" in message


@pytest.fixture
def table(tmp_path, make_images):
    """A function that writes a table beside a few images, from its text."""
    images = make_images(tmp_path / "images", ["a", "b"], num_per_class=8)

    def table(text: str | bytes, name: str = "table.csv") -> Path:
        (images / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return images / name

    return table


ROWS = "path,label\na/000.png,x\nb/000.png,y\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            ROWS + "a/no.png,x\nno/1.png,y\n",
            ["2 of 4 paths are no files (50.0%, first: ", "a/no.png), over the limit max_rejected_fraction=0.05; "],
        ),
        (
            "path,label\na/no.png,x\nno/1.png,y\n",
            ["none of its 2 paths is a file (first: ", "a/no.png); correct the table; relative paths start at its fol"],
        ),
        (ROWS + "a/000.png,y\n", ["a/000.png is in more than one row; keep one"]),
        (ROWS + "./a/000.png,y\n", ["a/000.png is in more than one row; keep one"]),
        (ROWS + "a/001.png,\n", ["1 of 3 rows have no label; fill them in"]),
        (ROWS + ",x\n", ["1 of 3 rows have no path; fill them in"]),
        (ROWS.replace("label", "class"), ["no column 'label' among path, class", "set source.path_column"]),
        (ROWS.replace("path", "file"), ["no column 'path' among file, label", "source.label_column"]),
        (ROWS.replace("path,label", "path,label,label").replace("x\n", "x,1\n").replace("y\n", "y,1\n"), ["label"]),
        (ROWS.replace("y\n", "x\n"), ["only one class, 'x'"]),
        (ROWS + "a,b,c\n", ["neither CSV nor Parquet", "Expected 2 columns, got 3"]),
        (ROWS + "a,x\n", ["1 of 3 paths are no files (33.3%, "]),
        ("path,label\n", ["no rows"]),
        ("", ["Empty CSV file"]),
        (b"\x89PNG\r\n\x1a\n\xff\xfe,x\n1,2\n", ["neither CSV nor Parquet"]),
    ],
)
def test_wrong_table(table, refusal, text, parts):
    message = refusal(table(text), layout="table")
    assert "source " in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a/" + "x" * 300 + ".png,x\n", "a path is too long"),
        ("a/00\0.png,x\n", "a path is no path: Embedded NUL"),
        ("ftp://host/1.png,x\n", "ftp://host/1.png: unknown store 'ftp'"),
        ("../no/1.png,x\n", "correct the source (relative paths of a table start at its folder), or raise the limit"),
        ("A/000.PNG,x\n", "1 of 3 paths are no files (33.3%, first: "),
    ],
    ids=["long", "nul", "ftp", "parent", "case"],
)
def test_paths_of_a_table_that_are_no_paths(table, refusal, text, part):
    assert part in refusal(table(ROWS + text), layout="table")


FULL = "path,label,split,patient\na/000.png,x,train,p\nb/000.png,y,{}\n"


@pytest.mark.parametrize(
    ("rest", "part"),
    [
        ("holdout,q", "1 of 2 rows have no split in split (first: 'holdout'); expected train, validation (or valid, "),
        ("test,", "1 of 2 rows have no patient; fill them in"),
        ("test,p", "the group 'p' is given to train and test (first there: b/000.png); one group needs one split"),
        (",p", "the group 'p' is given to train and no split"),
    ],
)
def test_wrong_splits_and_groups_of_a_table(table, rest, part):
    config = SourceConfig(
        uri=str(table(FULL.format(rest))), layout="table", split_column="split", group_column="patient"
    )
    with pytest.raises(UserError) as caught:
        scan(config)
    assert part in str(caught.value)


def test_columns_that_are_no_text(table):
    path = table("")
    columns = {"path": ["a/000.png", "b/000.png"], "label": ["x", "y"], "box": [[1, 2], [3]]}
    pq.write_table(pa.table(columns), path.with_name("t.parquet"))
    for settings, part in ({"extra_columns": ["box"]}, "or no text: "), ({"extra_columns": ["no"]}, "no column 'no'"):
        with pytest.raises(UserError, match=part):
            scan(SourceConfig(uri=str(path.with_name("t.parquet")), layout="table", **settings))


def test_a_folder_of_no_parquet_files(table):
    with pytest.raises(UserError, match=r"a folder without Parquet files \(\*\.parquet\); correct source.uri or"):
        scan(SourceConfig(uri=str(table(ROWS).parent), layout="table"))


@pytest.mark.parametrize(
    ("paths", "settings", "part"),
    [
        (["train/a/1.png", "new/a/2.png"], {"split_folders": True}, "in no folder of a split (first: new/a)"),
        (["1.png", "train/a/2.png"], {"split_folders": True}, "in no folder of a split (first: the source itself)"),
        (
            ["a/b/test/c/d/1.png", "train/a/2.png"],
            {"split_folders": True},
            "but not all at the same level (first: a/b/test/c/d)",
        ),
        (
            ["train/1.png", "test/2.png"],
            {"split_folders": True},
            "2 images are outside any class folder (first: test/2.png)",
        ),
        (["a/1.png", "b/2.jpg"], {"include": ["*.gif"]}, "leave none of 2 files; correct the patterns"),
        (["a/1.png", "b/2.png"], {"exclude": ["b/"]}, "only one class, 'a'"),
        (["a/1.png", "b/x.png"], {"group_pattern": "(?P<group>[0-9])"}, "no group in 1 of 2 paths (first: 'b/x.png')"),
        (
            ["a/1.png", "b/x.png"],
            {"group_pattern": "(?P<group>[0-9]*)$"},
            "source.group_pattern finds no group in 2 of 2",
        ),
        (
            ["a/1.png", "b/x.png"],
            {"label_from": "pattern", "label_pattern": "(?P<label>[0-9])"},
            "source.label_pattern finds no label in 1 of 2 paths (first: 'b/x.png'); correct the pattern, or leave",
        ),
        (
            ["train/a/p1.png", "test/b/p1.png"],
            {"split_folders": True, "group_pattern": "(?P<group>p[0-9])"},
            "the group 'p1' is given to test and train (first there: train/a/p1.png); one group needs one split",
        ),
    ],
)
def test_paths_that_do_not_fit_the_settings(tmp_path, paths, settings, part):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    with pytest.raises(UserError) as caught:
        scan(SourceConfig(uri=str(tmp_path), **settings))
    assert str(caught.value).startswith(f"source {tmp_path}: ")
    assert part in str(caught.value)


@pytest.mark.parametrize("column", ["path", "label", "age"])
def test_a_parquet_table_whose_text_is_not_utf_8(tmp_path, column):
    columns = {name: pa.array([b"a", b"b"]) for name in ("path", "label", "age")}
    columns[column] = pa.array([b"a", b"\xff"])
    table = pa.table({name: values.view(pa.string()) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="neither CSV nor Parquet in UTF-8"):
        scan(SourceConfig(uri=str(tmp_path / "t.parquet"), layout="table", extra_columns=["age"]))


def test_a_table_that_is_not_there_or_a_folder(tmp_path, table, refusal):
    assert "no such table; correct source.uri" in refusal(tmp_path / "no.csv", layout="table")
    assert "folder" in refusal(table(ROWS).parent, layout="table")
    assert "neither CSV nor Parquet" in refusal(table("no", "x.parquet"), layout="table")


@pytest.mark.parametrize("labels", [("01", "02"), ("true", "false"), ("1.0", "2"), ("caf\xe9", "x"), ("NA", "null")])
def test_class_names_of_a_csv_are_its_text(table, labels):
    text = "path,label\n" + "".join(
        f"{c}/00{i}.png,{label}\n" for c, label in zip("ab", labels, strict=True) for i in range(3)
    )
    config = SourceConfig(uri=str(table(text)), layout="table")
    assert scan(config).class_names == sorted(labels)


def test_a_csv_in_latin_1_is_refused_or_read_but_not_garbled(table):
    config = SourceConfig(uri=str(table(ROWS.replace("x", "caf\xe9").encode("latin-1"))), layout="table")
    with pytest.raises(UserError, match=r"(?i)utf-8"):
        scan(config)


def test_columns_of_other_names_and_absolute_paths(table, tmp_path, vectorize_job):
    path = table("")
    rows = [(str(p.absolute()), p.parent.name) for p in sorted(path.parent.rglob("*.png"))]
    pd.DataFrame(rows, columns=["file", "kind"]).to_csv(tmp_path / "t.csv", index=False)
    source = SourceConfig(uri=str(tmp_path / "t.csv"), layout="table", path_column="file", label_column="kind")
    job = vectorize_job(tmp_path, tmp_path / "set").model_copy(update={"source": source})
    result = vectorize(job)
    assert sum(result.num_examples.values()) == 16
    assert result.class_names == ["a", "b"]
