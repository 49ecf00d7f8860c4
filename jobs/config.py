"""What a job takes: settings of `model.config` composed with URIs, read from YAML or JSON and overridden by key.

Imports no torch, Spark or MLflow: Airflow parses it with the DAGs.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from yaml import YAMLError

from model.config import Fraction, ImageConfig, Settings, SplitConfig, TrainingConfig
from model.errors import UserError
from model.storage import absolute

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Uri = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(absolute)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]


class SourceConfig(Settings):
    """Where the images are and how their labels are found."""

    uri: Uri
    """Folder (folders, idx) or table file (table): a local path or a URI (s3, gs, hdfs)."""
    layout: Literal["folders", "table", "idx"] = "folders"
    """folders: one folder per class; table: CSV or Parquet of path and label; idx: MNIST's files."""
    path_column: Annotated[str, Field(min_length=1)] = "path"
    """Column of the table that holds the image's path, absolute or beside the table."""
    label_column: Annotated[str, Field(min_length=1)] = "label"
    """Column of the table that holds the class name."""


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
    """Publish over a DataSet that was made with other settings."""
    schedule: str | None = "0 3 * * *"
    """Cron expression by which the DAG vectorize_images runs; null: by hand only."""
    spark: dict[str, str] = {}
    """Spark settings of this job, such as spark.executor.instances."""


class TrackingConfig(Settings):
    """The MLflow server or store, and the names there."""

    uri: str | None = None
    """MLflow tracking URI; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: Name = "shardmean"
    """MLflow experiment."""
    registered_model: Name = "shardmean"
    """Name in the model registry."""
    artifact_uri: Uri | None = None
    """Where a new experiment keeps pictures and models; null: MLflow decides."""


class TrainJob(TrainingConfig):
    """A DataSet to a trained, evaluated and registered model."""

    dataset_uri: Uri
    """The DataSet to train on."""
    dataset_digest: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    """Version of the DataSet; null: the current one."""
    checkpoint_uri: Uri
    """Folder for checkpoints, one folder per run; a run that was cut off goes on from there."""
    run_key: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:+_-]{0,199}$")] | None = None
    """Names one run: repeating it resumes or repeats its result. Null: by settings, while unfinished."""
    tracking: TrackingConfig = TrackingConfig()
    spark: dict[str, str] = {}
    """Spark settings of this job, such as spark.executor.resource.gpu.amount."""


Job = TypeVar("Job", VectorizeJob, TrainJob)


def load_job(kind: type[Job], file: Path | None, overrides: Sequence[str] = (), params: str = "{}") -> Job:
    """Read a job from a YAML or JSON file, `key=value` overrides and a JSON object of dotted keys, later ones winning.

    Raises UserError that lists each wrong key with its value, the limit and the remedy.
    """
    parts = [OmegaConf.create(), *([_read(file)] if file else []), _dotlist(overrides), _params(params)]
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(*parts), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config error: {_first_line(error)}; check the ${{...}} references") from error
    return validated(kind, merged, str(file) if file else "the command line")


def validated(kind: type[Job], values: object, where: str) -> Job:
    """`values` as a job of `kind`. Raises UserError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_problem(kind, dict(e))}" for e in error.errors())
        raise UserError(
            f"config error in {where}:\n{problems}\n  change the file, or give key=value on the command line"
        ) from None


def _read(file: Path) -> Any:
    try:
        content = OmegaConf.load(file)
    except FileNotFoundError:
        raise UserError(f"config file {file}: not found (from {Path.cwd()}); correct --config") from None
    except OSError as error:
        raise UserError(f"config file {file}: {error.strerror}; correct --config") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"config file {file} is not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not OmegaConf.is_dict(content):
        raise UserError(f"config file {file}: expected keys with values, found a list; see configs/train.yaml")
    return content


def _dotlist(overrides: Sequence[str]) -> Any:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override {override!r}: expected key=value, for example averaging.frequency=10")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"overrides {list(overrides)}: {_first_line(error)}; quote the value") from error


def _params(text: str) -> Any:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"--params is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"--params must be a JSON object of dotted keys, got {text[:80]}")
    merged = OmegaConf.create()
    for key, value in values.items():
        # A form's text is text: an interpolation in it is not obeyed.
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{key} = {value!r}: ${{...}} is allowed in config files only")
        OmegaConf.update(merged, key, value)
    return merged


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _problem(kind: type[BaseModel], error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = sorted(key for key, _ in leaves(kind))
        near = difflib.get_close_matches(key, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == location[-1]]
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{key}: missing; set {key}=VALUE"
    found = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{key or kind.__name__}{found}: {message[0].lower()}{message[1:]}"


def leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a config class with its pydantic field."""
    for name, info in kind.model_fields.items():
        nested = next((t for t in (info.annotation, *get_args(info.annotation)) if _is_settings(t)), None)
        if nested is None:
            yield prefix + name, info
        else:
            yield from leaves(nested, f"{prefix}{name}.")


def _is_settings(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
