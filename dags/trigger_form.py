"""Trigger forms: each setting that a run may change as an Airflow Param, made of the config's own JSON schema."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

from airflow.sdk import Param

from shardmean.jobs.config.loading import config_folder, load_job
from shardmean.jobs.config.validation_errors import leaves

if TYPE_CHECKING:
    from pathlib import Path

    from shardmean.jobs.config.loading import Job

# The deployment's alone, in the config file: Spark's settings name code, and servers are sent credentials. (A run may
# have a run_key, but no field for one.)
HIDDEN = {"schedule", "spark", "run_key", "airflow", "tracking.uri", "tracking.artifact_uri"}


def config_file(name: str) -> Path:
    """The file that a DAG's defaults come from."""
    return config_folder() / name


def load_defaults(kind: type[Job], name: str) -> Job:
    """The job in a config file. Raises UserError, which Airflow shows as the DAG's import error."""
    return load_job(kind, config_file(name))


def form(job: Job, main: list[str]) -> dict[str, Param]:
    """Params by dotted key: `main` first and outside any section (sections start collapsed), then one per group."""
    schema, values = job.model_json_schema(), job.model_dump(mode="json")

    def described(section: dict[str, Any], name: str) -> dict[str, Any]:
        field: dict[str, Any] = section["properties"][name]
        return schema["$defs"][field["$ref"].rpartition("/")[2]] | field if "$ref" in field else field

    params = {}
    for key, _ in leaves(type(job)):
        names = key.split(".")
        if key not in HIDDEN and names[0] not in HIDDEN:
            section = names[0].capitalize().replace("_", " ") if len(names) > 1 else "More"
            value = reduce(lambda values, name: values[name], names, values)
            params[key] = _param(key, reduce(described, names, schema), value, None if key in main else section)
    return {key: params[key] for key in main} | params


def _param(key: str, field: dict[str, Any], value: Any, section: str | None) -> Param:
    types = field.get("anyOf", [field])
    (described,) = (one for one in types if one.get("type") != "null")  # a form has one type a field: WithJsonSchema
    kind = described.get("type", "string")
    limits = {key: limit for key, limit in described.items() if key not in ("type", "default", "title", "description")}
    return Param(
        str(value) if kind == "string" and value is not None else value,
        type=["null", kind] if len(types) > 1 else kind,
        title=key,
        description_md=field.get("description", ""),
        section=section,
        **limits,
    )
