"""A version that is written and not yet published: the candidate. `candidate.json` names it and what it builds on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from shardmean.model.dataset.manifest import (
    current_version,
    load_current,
    load_manifest,
    publish,
    write_version,
)
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem
from shardmean.model.storage.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardmean.model.dataset.manifest import Manifest

FILE = "candidate.json"


@dataclass(frozen=True)
class Candidate:
    """The digest of the candidate, and the version of the current manifest's file that it replaces (None: no file)."""

    digest: str
    replaces: str | None


def propose(manifest: Manifest, dataset_uri: str, replaces: str | None, before_write: Callable[[], None]) -> None:
    """Write a version as the DataSet's candidate, in place of an earlier one. Readers do not see it as current.

    `replaces` is the `current_version` that it was made from.
    """
    write_version(manifest, dataset_uri, before_write)
    before_write()
    content = asdict(Candidate(manifest.digest, replaces))
    filesystem.write_bytes(_uri(dataset_uri), json.dumps(content).encode())


def load_candidate(dataset_uri: str) -> Candidate | None:
    """The candidate that awaits its publication; None where there is none. Raises RetryableError."""
    try:
        content = json.loads(filesystem.read_bytes(_uri(dataset_uri)))
        return Candidate(content["digest"], content["replaces"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RetryableError(f"{_uri(dataset_uri)}: damaged ({error}); delete it and run vectorize again") from error


def publish_candidate(dataset_uri: str, digest: str) -> Manifest:
    """Make the candidate the current version; where it is that already, do nothing. Gives its manifest.

    Raises UserError when `digest` is not the candidate or another version was published since it was made,
    RetryableError when another process is at work.
    """
    with Lease(dataset_uri, what=f"the ETL of {dataset_uri}") as lease:
        return publish_with_lease(dataset_uri, digest, lease.check)


def publish_with_lease(dataset_uri: str, digest: str, before_write: Callable[[], None]) -> Manifest:
    """As `publish_candidate`, for one that holds the lease: `before_write` checks it before each write."""
    candidate = load_candidate(dataset_uri)
    if _current_digest(dataset_uri) != digest:
        if candidate is None or candidate.digest != digest:
            known = f"its candidate is {candidate.digest}" if candidate else "it has no candidate"
            raise UserError(
                f"{dataset_uri}: version {digest} does not await publication ({known}); run `shardmean vectorize` again"
            )
        if current_version(dataset_uri) != candidate.replaces:
            raise UserError(
                f"{dataset_uri}: another version was published since candidate {digest} was made; "
                "run `shardmean vectorize` again"
            )
        publish(load_manifest(dataset_uri, digest), dataset_uri, replaces=candidate.replaces, before_write=before_write)
    if candidate is not None:
        before_write()
        filesystem.delete(_uri(dataset_uri))
    return load_manifest(dataset_uri, digest)


def _current_digest(dataset_uri: str) -> str | None:
    """The published version; None where there is none, or its manifest is damaged and may be replaced."""
    try:
        current = load_current(dataset_uri)
    except (RetryableError, UserError):
        return None
    return None if current is None else current.digest


def _uri(dataset_uri: str) -> str:
    return filesystem.join(dataset_uri, FILE)
