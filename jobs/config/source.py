"""Where the images of a DataSet are and what is known of them, as settings."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from shardmean.jobs.config.patterns import check_expression, check_glob
from shardmean.jobs.config.uris import Uri
from shardmean.model.config.base import Settings

Globs = Annotated[list[Annotated[str, Field(max_length=1000), AfterValidator(check_glob)]], Field(max_length=100)]
Expression = Annotated[str, Field(min_length=1, max_length=1000)]
Column = Annotated[str, Field(min_length=1, max_length=200)]
EXAMPLE_COLUMNS = ("features", "label", "id", "path")
# A form has one type a field: text, of which the check below makes a number.
NumPerClass = Annotated[
    Annotated[int, Field(ge=1, le=10**9)] | Literal["smallest"],
    WithJsonSchema({"type": "string", "pattern": "^(smallest|[1-9][0-9]{0,8}|10{9})$"}),
]


class SourceConfig(Settings):
    """Where the images are, which of them count, and how their labels, splits and groups are found."""

    uri: Uri
    """Folder (folders, idx), or table file or folder (table): a local path or a URI (s3, gs, hdfs)."""
    layout: Literal["folders", "table", "idx"] = "folders"
    """folders: one folder per class; table: CSV or Parquet of path and label; idx: MNIST's files."""
    include: Globs = []
    """Patterns as in .gitignore; only paths that match one of them count. None: all."""
    exclude: Globs = []
    """Patterns as in .gitignore; paths that match one of them are left out, whatever include says."""
    label_from: Literal["layout", "top_folder", "parent_folder", "pattern"] = "layout"
    """Class name: top_folder, parent_folder (the image's own), label_pattern, or as the layout has it."""
    label_pattern: Annotated[Expression, AfterValidator(partial(check_expression, group="label"))] | None = None
    """With label_from=pattern: RE2 expression, looked for anywhere in the path; (?P<label>...) is the class name."""
    path_column: Column = "path"
    """Column of the table that holds the image's path: a URI, absolute, or beside the table."""
    label_column: Column = "label"
    """Column of the table that holds the class name."""
    split_folders: bool = False
    """folders: each path has a folder train, validation (valid, val) or test, above or below the class: its split."""
    split_column: Column | None = None
    """table: column with train, validation (valid, val) or test; empty: by hash, as without the column."""
    split_files: bool = False
    """idx: files named train-* are train, t10k-* or test-* are test, validation-* are validation."""
    group_column: Column | None = None
    """table: column whose equal values go to one split, such as a patient's number."""
    group_pattern: Annotated[Expression, AfterValidator(partial(check_expression, group="group"))] | None = None
    """RE2 expression, looked for anywhere in the path; paths of equal (?P<group>...) go to one split."""
    extra_columns: Annotated[list[Column], Field(max_length=100)] = []
    """Columns of the table to keep in the DataSet, as text."""
    max_per_class: NumPerClass | None = None
    """Keep at most this many images of each class; smallest: as many as the smallest class has; null: all."""

    @model_validator(mode="after")
    def _fits_the_layout(self) -> Self:
        of_layout = {
            "split_folders": "folders", "split_files": "idx",
            "split_column": "table", "group_column": "table", "extra_columns": "table",
        }  # fmt: skip
        for key, layout in of_layout.items():
            if getattr(self, key) and self.layout != layout:
                raise ValueError(f"{key} is for layout={layout}; leave it out with layout={self.layout}")
        if self.label_from != "layout" and self.layout == "idx":
            raise ValueError(f"label_from={self.label_from} is not for layout=idx, which has labels of its own")
        if self.label_from == "top_folder" and self.layout == "table":
            raise ValueError("label_from=top_folder is not for layout=table; use parent_folder or pattern")
        if (self.label_from == "pattern") != (self.label_pattern is not None):
            raise ValueError("label_from=pattern and label_pattern need each other; give both or neither")
        if self.group_pattern and (self.group_column or self.layout == "idx"):
            raise ValueError("group_pattern is not for layout=idx, or beside group_column; leave one out")
        return self

    @model_validator(mode="after")
    def _extra_columns_have_names_of_their_own(self) -> Self:
        # Spark takes Label and label for one column.
        names = [name.lower() for name in self.extra_columns]
        taken = sorted(set(names) & set(EXAMPLE_COLUMNS))
        if taken:
            raise ValueError(f"extra_columns must not hold {', '.join(taken)}: every DataSet has a column of that name")
        if len(set(names)) < len(names):
            raise ValueError("extra_columns names a column twice; upper and lower case make no difference")
        return self


# What changes which images there are is not among them: a source may grow by it.
SOURCE_SETTINGS = (
    "label_from", "label_pattern", "path_column", "label_column", "split_folders", "split_column", "split_files",
    "group_column", "group_pattern", "extra_columns",
)  # fmt: skip
