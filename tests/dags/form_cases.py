"""Makes a form of each value that a setting of several types may have, where the types are more than one and null.

Prints a JSON list of [key, value, value in the form, value that the job takes from the form]; runs in a process of its
own since it imports Airflow.
"""

from __future__ import annotations

import json
import sys
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from shardmean.dags.trigger_form import form
from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.loading import load_stage, pipelines_folder
from shardmean.jobs.config.validation_errors import leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = pipelines_folder() / "digits.yaml"


def alternatives(annotation: Any, limits: tuple[Any, ...] = ()) -> list[list[Any]]:
    """For each type of a union the values that stand for it: a literal's own, a number's least and greatest."""
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind in (Union, UnionType):
        return [values for one in inner for values in alternatives(one)]
    if kind is Annotated:
        return alternatives(inner[0], inner[1:])
    if kind is Literal:
        return [list(inner)]
    if annotation is NoneType:
        return [[None]]
    bounds = [bound for field in limits for bound in getattr(field, "metadata", [])]
    return [[getattr(bound, name) for name in ("ge", "le") for bound in bounds if hasattr(bound, name)]]


def shown(kind: Any) -> Iterator[list[Any]]:
    def value_of(params: dict[str, Any]) -> tuple[Any, Any]:
        job = load_stage(kind, FILE, params=json.dumps(params))
        found: Any = job
        for name in key.split("."):
            found = getattr(found, name)
        return job, found

    for key, field in leaves(kind):
        types = alternatives(field.annotation)
        if len([values for values in types if values != [None]]) < 2:
            continue
        for value in [value for values in types for value in values]:
            job, taken = value_of({key: value})
            assert taken == value, key
            in_form = form(job, [])[key].resolve()
            yield [key, value, in_form, value_of({key: in_form})[1]]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([case for kind in (VectorizeJob, TrainJob) for case in shown(kind)]) + "\n")
