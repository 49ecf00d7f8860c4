"""URIs in settings, and the places that a deployment allows (`airflow.allowed_roots`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field

from shardmean.model.errors import UserError
from shardmean.model.storage.filesystem import absolute, local_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Uri = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(absolute)]
_SAME_STORES = {"s3a": "s3", "gcs": "gs"}


class AllowedRoots:
    """Folders and URI prefixes below which jobs read and write; without any, every place is allowed."""

    def __init__(self, roots: Sequence[str] = ()) -> None:
        """Local roots are compared by their real paths, as what is checked."""
        self._names = ", ".join(roots)
        self._roots = [_located(root) for root in roots]

    def check(self, uri: str) -> str:
        """The URI itself. Raises UserError where it lies outside the roots, or a link in its path leads outside."""
        if self._roots and not self._hold(*_located(uri)):
            raise UserError(
                f"{uri} lies outside airflow.allowed_roots ({self._names}): "
                "choose a place below one of them, or add a root to the config file"
            )
        return uri

    def _hold(self, store: tuple[str, str, str], path: str) -> bool:
        # Some stores take .. for a name, others for the folder above: neither is allowed.
        is_plain = not {".", ".."} & set(path.split("/"))
        return is_plain and any(store == other and f"{path}/".startswith(f"{root}/") for other, root in self._roots)


def check_servers(uris: Mapping[str, str], known: Iterable[str]) -> None:
    """Raise UserError where a URI names a server, or options of a store, that no known URI names.

    Requests to that server carry this machine's credentials. `uris` are by the keys of their settings.
    """
    servers = {_server(uri) for uri in known}
    for key, uri in uris.items():
        scheme, *named = _server(uri)
        if any(named) and (scheme, *named) not in servers:
            raise UserError(
                f"{key} = {uri!r}: no URI of the config file names this server with these options, and it would get "
                "this machine's credentials: use a store of the config file, or add its URI to airflow.allowed_roots"
            )


def _located(uri: str) -> tuple[tuple[str, str, str], str]:
    """The store of a URI (scheme, host or bucket, options; empty for a local path) and the path in it."""
    local = local_path(uri)
    if local is not None:
        return ("", "", ""), os.path.realpath(local).rstrip("/")
    parts = urlsplit(uri)
    store = (_SAME_STORES.get(parts.scheme, parts.scheme), parts.netloc, parts.query)
    return store, f"/{unquote(parts.path).strip('/')}".rstrip("/")


def _server(uri: str) -> tuple[str, str, str]:
    """Scheme, host and options: a bucket is no host."""
    (scheme, netloc, options), _ = _located(uri)
    return scheme, "" if scheme in ("s3", "gs") else netloc, options
