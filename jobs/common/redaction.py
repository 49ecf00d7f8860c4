"""Names, texts and URIs from outside, as logs, terminals and pages can show them."""

from __future__ import annotations

import re

# A password that is not percent-encoded may hold any sign, and SQLAlchemy takes it so: all up to the last @ goes.
_USERINFO = re.compile(r"(?<=://)([^\s/?#:]*:\S*|[^\s/?#]*)@")
_PASSWORD_IN_QUERY = re.compile(r"(?<=[?&])((?:ssl)?password|passwd|pwd)=[^\s&]*", re.IGNORECASE)


def truncate_printable(text: str, limit: int) -> str:
    """A name from outside as it can be printed: odd characters by their codes, the middle cut out where it is long."""
    plain = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    if len(plain) <= limit:
        return plain
    head = limit // 3
    return f"{plain[:head]}…{plain[head + 1 - limit :]}"


def redact(text: str) -> str:
    """A URI, or a text with URIs in it, without their user names and passwords."""
    return _PASSWORD_IN_QUERY.sub(r"\1=...", _USERINFO.sub("", text))


def holds_password(uri: str) -> bool:
    """Whether a URI tells a password."""
    found = _USERINFO.search(uri)
    return bool(found and ":" in found[1]) or _PASSWORD_IN_QUERY.search(uri) is not None
