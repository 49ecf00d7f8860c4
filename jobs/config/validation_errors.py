"""What is wrong in a config, in terms of its keys: the value found, what was expected, and the nearest known key."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from shardmean.jobs.common.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails


def validation_errors(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """A line for each key of a config class that pydantic refused."""
    fields = dict(leaves(kind))
    texts: dict[str, list[str]] = {}
    for one in error.errors():
        location = [str(part) for part in one["loc"]]
        # A value that may be of several types fails once for each, under names that only pydantic knows.
        prefixes = [".".join(location[:end]) for end in range(len(location), 0, -1)]
        key = next((prefix for prefix in prefixes if prefix in fields), ".".join(location))
        inside = location[key.count(".") + 1 :]
        if inside and inside[0].isdigit():
            subject = " ".join([f"{key}, no. {int(inside[0]) + 1}", *inside[1:][-1:]])
            value = _input_value(one)
            text = f"{value}: {_message(one)}" if value else _message(one)
        else:
            subject, text = _described(fields, key, one)
        texts.setdefault(subject, []).append(text)
    return [": ".join(filter(None, (subject, " or ".join(options)))) for subject, options in texts.items()]


def _described(fields: Mapping[str, FieldInfo], key: str, error: ErrorDetails) -> tuple[str, str]:
    if error["type"] == "extra_forbidden":
        return key, f"{_message(error)}; {_hint(list(fields), key)}"
    if error["type"] == "missing":
        needed = [name for name in fields if f"{name}.".startswith(f"{key}.") and fields[name].is_required()]
        return key, f"missing; set {' and '.join(f'{name}=VALUE' for name in needed)}"
    value = _input_value(error)
    text = _section_hint(fields, key, error["input"]) if error["type"] == "model_type" else _message(error)
    return f"{key} = {value}" if value else key, text


def _message(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[0].lower() + message[1:]


def _input_value(error: ErrorDetails) -> str:
    """The value found, without secrets; nothing for a section, or for a key that should not be there."""
    value = error["input"]
    if isinstance(value, dict) or error["type"] == "extra_forbidden":
        return ""
    return repr(redact(value)) if isinstance(value, str) else redact(repr(value))


def _hint(known: list[str], key: str) -> str:
    """The nearest known key: within a section only its keys are compared, by what follows the section's name."""
    section = f"{key.split('.')[0]}."
    siblings = [name.removeprefix(section) for name in known if name.startswith(section)]
    if siblings:
        near = difflib.get_close_matches(key.removeprefix(section), siblings, 1, 0.6)
    else:
        section, siblings = "", known
        near = difflib.get_close_matches(key, known, 1, 0.5)
    names = ", ".join(f"{section}{name}" for name in sorted(siblings))
    return f"did you mean {section}{near[0]}?" if near else f"known keys: {names}"


def _section_hint(fields: Mapping[str, FieldInfo], section: str, value: Any) -> str:
    """The keys of a section, and one that would take the value that was given to the section itself."""
    names = [name for name in fields if name.startswith(f"{section}.")]
    fitting = next(
        (f"{name}={redact(str(value))}" for name in names if _takes(fields[name], value)), f"{names[0]}=VALUE"
    )
    return f"a section, which takes no value itself; for example {fitting}; known keys: {', '.join(sorted(names))}"


def _takes(field: FieldInfo, value: Any) -> bool:
    kind: Any = Annotated[field.annotation, field]
    try:
        # Strict, or True would pass for a number.
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return isinstance(value, str | int | float)


def leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a config class with its pydantic field."""
    for name, info in kind.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from leaves(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, info
