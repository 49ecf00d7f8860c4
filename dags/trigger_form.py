"""Trigger forms: each setting of a job as an Airflow Param, made of the config's own JSON schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Param

from shardmean.jobs.config.loading import config_folder, load_job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shardmean.jobs.config.loading import Job

HIDDEN = {"schedule", "spark", "run_key", "airflow"}
LIMITS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern", "minLength", "maxLength", "minItems",
    "maxItems", "enum", "examples", "items",
)  # fmt: skip


def config_file(name: str) -> Path:
    """The file that a DAG's defaults come from."""
    return config_folder() / name


def load_defaults(kind: type[Job], name: str) -> Job:
    """The job in a config file. Raises UserError, which Airflow shows as the DAG's import error."""
    return load_job(kind, config_file(name))


def form(job: Job, main: list[str]) -> dict[str, Param]:
    """Params by dotted key: `main` first and outside any section (sections start collapsed), then one per group."""
    schema = job.model_json_schema()
    values = job.model_dump(mode="json")
    fields = dict(_leaves(schema, schema, values))
    params = {key: _param(key, *fields[key], section=None) for key in main}
    for key, field in fields.items():
        if key not in params and key.split(".")[0] not in HIDDEN:
            params[key] = _param(key, *field, section=_section(key))
    return params


def _leaves(
    schema: dict[str, Any], root: dict[str, Any], values: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[dict[str, Any], Any]]]:
    for name, given in schema["properties"].items():
        field = _resolved(given, root)
        if "properties" in field:
            yield from _leaves(field, root, values[name], f"{prefix}{name}.")
        else:
            yield prefix + name, (field, values[name])


def _resolved(field: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = field.get("$ref")
    return {**root["$defs"][reference.rsplit("/", 1)[-1]], **field} if reference else field


def _param(key: str, field: dict[str, Any], value: Any, *, section: str | None) -> Param:
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    assert len(options) == 1, f"{key}: a form has one type a field; give it a schema of its own by WithJsonSchema"
    described = options[0]
    kind = described.get("type", "string")
    is_optional = len(options) < len(field.get("anyOf", [field]))
    limits = {name: described[name] for name in LIMITS if name in described}
    return Param(
        str(value) if kind == "string" and value is not None else value,
        type=["null", kind] if is_optional else kind,
        title=key,
        description_md=field.get("description", ""),
        section=section,
        **limits,
    )


def _section(key: str) -> str:
    group = key.split(".")[0]
    return group.capitalize().replace("_", " ") if "." in key else "More"
