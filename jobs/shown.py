"""Names and texts from outside, as logs, terminals and pages can show them."""

from __future__ import annotations


def shown(text: str, limit: int) -> str:
    """A name from outside as it can be printed: odd characters by their codes, the middle cut out where it is long."""
    plain = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    if len(plain) <= limit:
        return plain
    head = limit // 3
    return f"{plain[:head]}…{plain[head + 1 - limit :]}"
