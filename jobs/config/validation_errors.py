"""What is wrong in a config, said of its own keys: the value found, what was expected, and the nearest known key."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from shardmean.jobs.common.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo


def problems(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """A line for each key of a config class that pydantic refused."""
    known = {key for key, _ in leaves(kind)}
    texts: dict[tuple[str, str], list[str]] = {}
    for one in error.errors():
        location = [str(part) for part in one["loc"]]
        # A value that may be of several types fails once for each, under names that only pydantic knows.
        key = next((k for end in range(len(location), 0, -1) if (k := ".".join(location[:end])) in known), None)
        inside = location[key.count(".") + 1 :] if key else []
        if key and inside and inside[0].isdigit():
            texts[key, " ".join([f"{key}, no. {int(inside[0]) + 1}", *inside[1:][-1:]])] = [_item_problem(dict(one))]
            continue
        start, _, text = _problem(kind, key or ".".join(location), dict(one)).partition(": ")
        texts.setdefault((key or ".".join(location), start), []).append(text)
    return [f"{start}: {' or '.join(options)}" for (_, start), options in texts.items()]


def _item_problem(error: Mapping[str, Any]) -> str:
    found = "" if isinstance(error["input"], dict) else f"{_found(error)}: "
    return "unknown key" if error["type"] == "extra_forbidden" else found + _said(error)


def _problem(kind: type[BaseModel], key: str, error: Mapping[str, Any]) -> str:
    location = key.split(".")
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_hint(kind, location)}"
    if error["type"] == "missing":
        needed = [k for k, field in leaves(kind) if (k + ".").startswith(key + ".") and field.is_required()]
        return f"{key}: missing; set {' and '.join(f'{k}=VALUE' for k in needed or [key])}"
    found = "" if isinstance(error["input"], dict) else f" = {_found(error)}"
    if error["type"] == "model_type":
        return f"{key}{found}: a section, which takes no value itself; {_keys_for(kind, key, error['input'])}"
    return f"{key or kind.__name__}{found}: {_said(error)}"


def _found(error: Mapping[str, Any]) -> str:
    value = error["input"]
    return repr(redact(value)) if isinstance(value, str) else redact(repr(value))


def _said(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[0].lower() + message[1:]


def _hint(kind: type[BaseModel], location: list[str]) -> str:
    known = sorted(key for key, _ in leaves(kind))
    siblings = [key for key in known if len(location) > 1 and key.startswith(f"{location[0]}.")]
    # Within a section its name says nothing: all keys there have it.
    group = f"{location[0]}." if siblings else ""
    names = [key.removeprefix(group) for key in siblings or known]
    near = difflib.get_close_matches(".".join(location).removeprefix(group), names, 1, 0.6 if siblings else 0.5)
    return f"did you mean {group}{near[0]}?" if near else f"known keys: {', '.join(siblings or known)}"


def _keys_for(kind: type[BaseModel], section: str, value: object) -> str:
    """The keys of a section, and one that would take the value that was given to the section itself."""
    fields = {key: field for key, field in leaves(kind) if key.startswith(f"{section}.")}
    fitting = (f"{key}={redact(str(value))}" for key, field in fields.items() if _takes(field, value))
    return f"for example {next(fitting, f'{next(iter(fields))}=VALUE')}; known keys: {', '.join(sorted(fields))}"


def _takes(field: FieldInfo, value: object) -> bool:
    kind: Any = Annotated[field.annotation, field]
    try:
        # Strict, or True would pass for a number.
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return isinstance(value, str | int | float)


def plain_sections(kind: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every section of a config class that has a plain value in place of its keys, with that."""
    for name, info in kind.model_fields.items():
        nested, value = _section_of(info), values.get(name)
        if nested is not None and isinstance(value, dict):
            yield from plain_sections(nested, value, f"{prefix}{name}.")
        elif nested is not None and value is not None:
            yield prefix + name, value


def leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a config class with its pydantic field."""
    for name, info in kind.model_fields.items():
        nested = _section_of(info)
        if nested is None:
            yield prefix + name, info
        else:
            yield from leaves(nested, f"{prefix}{name}.")


def _section_of(info: FieldInfo) -> type[BaseModel] | None:
    kinds = (info.annotation, *get_args(info.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
