"""Patterns from outside, for paths: regular expressions and globs.

Both are matched by RE2, which Arrow holds: in time linear in the path whatever the pattern, so none can hang a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pathspec.patterns.gitignore.basic import GitIgnoreBasicPattern

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_expression(pattern: str, group: str) -> str:
    """The pattern, which must have one group of this name. Raises ValueError."""
    try:
        names = [field.name for field in pc.extract_regex(pa.array([""]), pattern).type]
    except pa.ArrowInvalid as error:
        reason = str(error).removeprefix("Invalid regular expression: ")
        raise ValueError(
            f"{reason}; write it in RE2's syntax (no look-around, no back-references), (?:...) for a group without name"
        ) from None
    if names != [group]:
        raise ValueError(f"groups named {', '.join(names) or 'nothing'}; expected one group, (?P<{group}>...)")
    return pattern


def extract(texts: pa.LargeStringArray, pattern: str, group: str) -> pa.LargeStringArray:
    """What the group holds where the pattern first matches, anywhere in each text; null where it doesn't."""
    return pc.struct_field(pc.extract_regex(texts, pattern), group)


def check_glob(glob: str) -> str:
    """The glob, which must be one line as in .gitignore without negation. Raises ValueError."""
    try:
        pc.match_substring_regex(pa.array([""]), _expression(glob))
    except (ValueError, pa.ArrowInvalid):
        raise ValueError("no pattern; write it as in .gitignore: *.png, raw/, /train/**/x?.jpg") from None
    return glob


def matches(paths: pa.LargeStringArray, globs: Sequence[str]) -> pa.BooleanArray:
    """Whether each path matches one of the globs, by the rules of .gitignore."""
    expression = "|".join(f"(?:{_expression(glob)})" for glob in globs)
    return pc.match_substring_regex(pc.utf8_ltrim(paths, "/"), expression)


def _expression(glob: str) -> str:
    expression, is_included = GitIgnoreBasicPattern.pattern_to_regex(glob)
    if expression is None or not is_included:
        raise ValueError("a comment or a negation")
    # In a path, a dot stands for a line break too.
    return f"(?s){expression}"
