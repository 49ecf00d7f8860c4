"""A job's config: read from YAML or JSON, overridden by key, checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from shardmean.jobs.config.former_names import with_current_names
from shardmean.jobs.config.job import SparkJob, VectorizeJob
from shardmean.jobs.config.pipeline import STAGES, Pipeline, with_shared_settings
from shardmean.jobs.config.spark_settings import flattened
from shardmean.jobs.config.validation_errors import validation_errors
from shardmean.model.config.base import Settings
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

Job = TypeVar("Job", bound=SparkJob)
Kind = TypeVar("Kind", bound=Settings)


def load_job(kind: type[Job], file: Path | None, overrides: Sequence[str] = (), params: str = "{}") -> Job:
    """Read a job from a YAML or JSON file, a JSON object of dotted keys and `key=value` overrides, later ones winning.

    Only a DAG gives all three: its form's values are the object, and what the run itself decides are overrides.
    Raises UserError that lists each wrong key with its value, the limit and the remedy.
    """
    return _load_job(kind, _read(file) if file else {}, file, overrides, params)


def load_pipeline(file: Path) -> Pipeline:
    """Read a pipeline from its YAML or JSON file. Raises UserError as `load_job`."""
    return _checked(Pipeline, _read_pipeline(file), file)


def load_stage(kind: type[Job], file: Path, overrides: Sequence[str] = (), params: str = "{}") -> Job:
    """Read one stage's job from a pipeline's file, with what the file says for all stages; else as `load_job`."""
    document = _read_pipeline(file)
    stage = "vectorize" if kind is VectorizeJob else "train"
    if not isinstance(document.get(stage), Mapping):
        raise UserError(f"pipeline {file}: no section {stage}; add it, or give a file that has one")
    return _load_job(kind, dict(with_shared_settings(document)[stage]), file, overrides, params)


def _load_job(
    kind: type[Job], document: dict[str, Any], file: Path | None, overrides: Sequence[str], params: str
) -> Job:
    merged: dict[str, Any] = {}
    for part in (document, *_params(params), *map(_override, overrides)):
        merged = _merged(merged, _normalized(part))
    return _checked(kind, _resolved(merged), file)


def _read_pipeline(file: Path) -> dict[str, Any]:
    """A pipeline's document, with references resolved within all of it."""
    document = _read(file)
    for stage in STAGES:
        if isinstance(document.get(stage), dict):
            document[stage] = _normalized(document[stage])
    return _resolved(document)


def _normalized(section: dict[str, Any]) -> dict[str, Any]:
    section = with_current_names(section)
    if isinstance(section.get("spark"), Mapping):
        # Before merging: spark.speculation and spark.speculation.interval are a value and a level of one name.
        section["spark"] = dict(flattened(section["spark"]))
    return section


def _resolved(document: dict[str, Any]) -> dict[str, Any]:
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(document), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config error: {_first_line(error)}; check the ${{...}} references") from error
    return dict(values)


def _checked(kind: type[Kind], values: dict[str, Any], file: Path | None) -> Kind:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in validation_errors(kind, error))
        remedy = "give key=value, or a pipeline's file, such as --pipeline configs/pipelines/digits.yaml"
        if file:
            remedy = "change the file, or give key=value on the command line"
        raise UserError(f"config error in {file or 'the command line'}:\n{lines}\n  {remedy}") from None


def config_folder() -> Path:
    """The folder that holds `pipelines`: SHARDMEAN_CONFIG_DIR, else our own `configs`."""
    return Path(os.environ.get("SHARDMEAN_CONFIG_DIR") or Path(__file__).parents[2] / "configs")


def pipelines_folder() -> Path:
    """The folder of the pipelines that Airflow runs here."""
    return config_folder() / "pipelines"


def _merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Values of `upper` win; but a plain value in the place of a section stays, for the check to refuse."""
    merged = dict(lower)
    for key, value in upper.items():
        present = merged.get(key)
        if isinstance(present, dict) and isinstance(value, dict):
            merged[key] = _merged(present, value)
        elif present is None or not isinstance(value, dict):
            merged[key] = value
    return merged


def _read(file: Path) -> dict[str, Any]:
    content: Any
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except FileNotFoundError:
        raise UserError(f"config file {file}: not found (from {Path.cwd()}); {_remedy(file)}") from None
    except OSError as error:
        # OmegaConf's own for a file that holds a single value has no system message.
        if error.strerror:
            raise UserError(f"config file {file}: {error.strerror}; {_remedy(file)}") from error
        content = None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"config file {file} is not valid YAML or JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        what = "a list" if isinstance(content, list) else "a single value"
        raise UserError(
            f"config file {file}: expected keys with values, found {what}; see configs/pipelines/digits.yaml"
        )
    return content


def _remedy(file: Path) -> str:
    if file.parent != pipelines_folder():
        return "correct --pipeline or --config"
    return f"let the folder pipelines of SHARDMEAN_CONFIG_DIR hold a readable {file.name}, on every Airflow machine"


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override {text!r}: expected key=value, for example averaging.frequency=10")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"override {text}: {_first_line(error)}; quote the value") from error
    return _in_levels(key, parsed["value"])


def _params(text: str) -> list[dict[str, Any]]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"--params is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"--params must be a JSON object of dotted keys, got {text[:80]}")
    for key, value in values.items():
        # A form's text is text: an interpolation in it is not obeyed.
        if "${" in json.dumps([key, value]):
            raise UserError(f"{key} = {value!r}: ${{...}} is allowed in config files only")
    return [_in_levels(key, value) for key, value in values.items()]


def _in_levels(key: str, value: Any) -> dict[str, Any]:
    """What a dotted key means in a file. Spark's own keys need no prefix: spark.master is spark.spark.master."""
    if key.startswith("spark.") and not key.startswith("spark.spark."):
        key = f"spark.{key}"
    first, *levels = key.split(".")
    for name in reversed(levels):
        value = {name: value}
    return {first: value}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
