"""What a job takes: settings of `model.config` composed with URIs, read from YAML or JSON and overridden by key.

Imports no torch, Spark or MLflow: Airflow parses it with the DAGs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator
from yaml import YAMLError

from shardmean.jobs.common.redaction import holds_password
from shardmean.jobs.config.airflow import AirflowConfig
from shardmean.jobs.config.former_names import with_current_names
from shardmean.jobs.config.patterns import check_expression, check_glob
from shardmean.jobs.config.validation_errors import plain_sections, problems
from shardmean.model.config.base import Fraction, Settings
from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError
from shardmean.model.storage.filesystem import absolute

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Uri = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(absolute)]
SparkSettings = Annotated[dict[str, str], BeforeValidator(lambda value: dict(_flat_settings(value)))]
Globs = Annotated[list[Annotated[str, Field(max_length=1000), AfterValidator(check_glob)]], Field(max_length=100)]
Expression = Annotated[str, Field(min_length=1, max_length=1000)]
Column = Annotated[str, Field(min_length=1, max_length=200)]
EXAMPLE_COLUMNS = ("features", "label", "id", "path")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]
DIGEST = "^[0-9a-f]{32}$"
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


def _checked_run_key(run_key: str) -> str:
    # It names a folder, and HDFS takes neither ':' nor '+' in a name.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", run_key):
        raise ValueError("use letters, digits, '.', '_' and '-', 200 at most, and begin with a letter or digit")
    return run_key


class VectorizeJob(Settings):
    """Images to a published DataSet."""

    source: SourceConfig
    image: ImageConfig = ImageConfig()
    split: SplitConfig = SplitConfig()
    dataset_uri: Uri
    """Where the DataSet is published: a folder or a URI that the executors reach."""
    shard_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 64 * 2**20
    """Bytes of images in one shard, about; a task holds three in memory."""
    max_rejected_fraction: Fraction = 0.05
    """Largest share of rejected images; above it nothing is published."""
    replace: bool = False
    """Publish over a DataSet that was made with other settings, and read every image anew."""
    keep_versions: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Newest versions whose files are never cleaned away."""
    clean_after_hours: Annotated[float, Field(ge=0, le=10**6, allow_inf_nan=False)] = 24
    """Files that no kept version refers to, and versions no longer in use, are deleted once this many hours old."""
    schedule: str | None = "0 3 * * *"
    """Cron expression by which the DAG vectorize_images runs; null: by hand only."""
    spark: SparkSettings = {}
    """Spark settings of this job, such as spark.cores.max."""
    airflow: AirflowConfig = AirflowConfig()


def _without_password(uri: str) -> str:
    if holds_password(uri):
        raise ValueError(
            "a URI must hold no password (left out here): settings are logged and shown; "
            "set MLFLOW_TRACKING_URI in the environment instead"
        )
    return uri


class TrackingConfig(Settings):
    """The MLflow server or store, and the names there."""

    uri: Annotated[str, AfterValidator(_without_password)] | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI, else the database mlflow.db in SHARDMEAN_HOME."""
    experiment: Name = "shardmean"
    """MLflow experiment."""
    registered_model: Name = "shardmean"
    """Name in the model registry."""
    artifact_uri: Uri | None = None
    """Where a new experiment keeps pictures and models; null: beside that mlflow.db, elsewhere MLflow decides."""


class TrainJob(TrainingConfig):
    """A DataSet to a trained, evaluated and registered model."""

    dataset_uri: Uri
    """The DataSet to train on."""
    dataset_digest: Annotated[str, Field(pattern=DIGEST)] | None = None
    """Version of the DataSet; null: the current one when the run begins."""
    checkpoint_uri: Uri
    """Folder for checkpoints, one folder per run; a run that was cut off goes on from there."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Newest checkpoints that are kept, beside that of the best epoch."""
    keep_every_epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Also keep the checkpoint of every n-th epoch; null: of none."""
    run_key: Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_checked_run_key)] | None = None
    """Names one run: repeating it resumes or repeats its result. Null: by settings, while unfinished."""
    tracking: TrackingConfig = TrackingConfig()
    spark: SparkSettings = {}
    """Spark settings of this job, such as spark.executor.resource.gpu.amount."""
    airflow: AirflowConfig = AirflowConfig()


Job = TypeVar("Job", VectorizeJob, TrainJob)


def load_job(kind: type[Job], file: Path | None, overrides: Sequence[str] = (), params: str = "{}") -> Job:
    """Read a job from a YAML or JSON file, a JSON object of dotted keys and `key=value` overrides, later ones winning.

    Only a DAG gives all three: its form's values are the object, and what the run itself decides are overrides.
    Raises UserError that lists each wrong key with its value, the limit and the remedy.
    """
    where = str(file) if file else "the command line"
    given_parts = [*([_read(file)] if file else []), *_params(params), *_dotlist(overrides)]
    parts = [OmegaConf.create(with_current_names(_plain(part), where)) for part in given_parts]
    try:
        config = OmegaConf.merge(OmegaConf.create(), *parts)
        for part in parts:
            # Merging drops a section's plain value without a word where another part gives one of the section's keys.
            for key, value in plain_sections(kind, _plain(part)):
                OmegaConf.update(config, key, value, merge=False)
        merged = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config error: {_first_line(error)}; check the ${{...}} references") from error
    return validated(kind, merged, where)


def validated(kind: type[Job], values: object, where: str) -> Job:
    """`values` as a job of `kind`. Raises UserError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(f"  {problem}" for problem in problems(kind, error))
        raise UserError(
            f"config error in {where}:\n{lines}\n  change the file, or give key=value on the command line"
        ) from None


def config_folder() -> Path:
    """The folder of the files that the DAGs and `shardmean demo` read: SHARDMEAN_CONFIG_DIR, else our own `configs`."""
    return Path(os.environ.get("SHARDMEAN_CONFIG_DIR") or Path(__file__).parents[2] / "configs")


def _read(file: Path) -> Any:
    content: Any
    try:
        content = OmegaConf.load(file)
    except FileNotFoundError:
        raise UserError(f"config file {file}: not found (from {Path.cwd()}); {_remedy(file)}") from None
    except OSError as error:
        # OmegaConf's own for a file that holds a single value has no system message.
        if error.strerror:
            raise UserError(f"config file {file}: {error.strerror}; {_remedy(file)}") from error
        content = None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"config file {file} is not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(content):
        what = "a list" if OmegaConf.is_list(content) else "a single value"
        raise UserError(f"config file {file}: expected keys with values, found {what}; see configs/train.yaml")
    return content


def _remedy(file: Path) -> str:
    if file.parent != config_folder():
        return "correct --config"
    return (
        f"let SHARDMEAN_CONFIG_DIR name a folder that holds a readable {file.name}, the same on every Airflow machine"
    )


def _dotlist(overrides: Sequence[str]) -> list[Any]:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override {override!r}: expected key=value, for example averaging.frequency=10")
    try:
        return [OmegaConf.from_dotlist([override]) for override in overrides]
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"overrides {list(overrides)}: {_first_line(error)}; quote the value") from error


def _params(text: str) -> list[Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"--params is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"--params must be a JSON object of dotted keys, got {text[:80]}")
    parts = []
    for key, value in values.items():
        # A form's text is text: an interpolation in it is not obeyed.
        if "${" in json.dumps(value):
            raise UserError(f"{key} = {value!r}: ${{...}} is allowed in config files only")
        parts.append(OmegaConf.create())
        OmegaConf.update(parts[-1], key, value)
    return parts


def _plain(part: Any) -> Any:
    return OmegaConf.to_container(part)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _flat_settings(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    # Spark's keys have dots of their own, which an override spark.spark.executor.memory=1g turns into levels.
    if not isinstance(value, Mapping):
        raise ValueError("expected Spark's keys with values, such as spark.executor.memory: 2g")
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat_settings(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(item).lower() if isinstance(item, bool) else str(item)
