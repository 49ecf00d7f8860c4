"""Trigger forms: each setting that a run may change as an Airflow Param, made of the config's own JSON schema."""

from __future__ import annotations

from functools import cache, reduce
from typing import TYPE_CHECKING, Any

from airflow.sdk import Param

from shardmean.jobs.config.validation_errors import leaves

if TYPE_CHECKING:
    from shardmean.jobs.config.job import SparkJob

# The deployment's alone, in the config file: Spark's settings name code, and servers are sent credentials. (A run may
# have a run_key, but no field for one.)
# A pipeline has one DataSet and one model; another is another pipeline.
HIDDEN = {"spark", "run_key", "airflow", "tracking", "dataset_uri", "checkpoint_uri", "promote"}


def form(job: SparkJob, main: list[str]) -> dict[str, Param]:
    """Params by dotted key: `main` first and outside any section (sections start collapsed), then one per group."""
    schema, values = _schema(type(job)), job.model_dump(mode="json")

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


@cache
def _schema(kind: type[SparkJob]) -> dict[str, Any]:
    """Once for all pipelines: it takes longer than all else."""
    return kind.model_json_schema()


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
