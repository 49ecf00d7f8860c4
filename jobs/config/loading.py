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
from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.spark_settings import flattened
from shardmean.jobs.config.validation_errors import validation_errors
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

Job = TypeVar("Job", VectorizeJob, TrainJob)


def load_job(kind: type[Job], file: Path | None, overrides: Sequence[str] = (), params: str = "{}") -> Job:
    """Read a job from a YAML or JSON file, a JSON object of dotted keys and `key=value` overrides, later ones winning.

    Only a DAG gives all three: its form's values are the object, and what the run itself decides are overrides.
    Raises UserError that lists each wrong key with its value, the limit and the remedy.
    """
    merged: dict[str, Any] = {}
    for part in (*([_read(file)] if file else []), *_params(params), *map(_override, overrides)):
        section = with_current_names(part)
        if isinstance(section.get("spark"), Mapping):
            # Before merging: spark.speculation and spark.speculation.interval are a value and a level of one name.
            section["spark"] = dict(flattened(section["spark"]))
        merged = _merged(merged, section)
    try:
        values = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config error: {_first_line(error)}; check the ${{...}} references") from error
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in validation_errors(kind, error))
        example = config_folder() / ("vectorize.yaml" if kind is VectorizeJob else "train.yaml")
        remedy = f"give key=value, or a file of settings, such as --config {example}"
        if file:
            remedy = "change the file, or give key=value on the command line"
        raise UserError(f"config error in {file or 'the command line'}:\n{lines}\n  {remedy}") from None


def config_folder() -> Path:
    """The folder of the files that the DAGs and `shardmean demo` read: SHARDMEAN_CONFIG_DIR, else our own `configs`."""
    return Path(os.environ.get("SHARDMEAN_CONFIG_DIR") or Path(__file__).parents[2] / "configs")


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
        raise UserError(f"config file {file}: expected keys with values, found {what}; see configs/train.yaml")
    return content


def _remedy(file: Path) -> str:
    if file.parent != config_folder():
        return "correct --config"
    return (
        f"let SHARDMEAN_CONFIG_DIR name a folder that holds a readable {file.name}, the same on every Airflow machine"
    )


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
