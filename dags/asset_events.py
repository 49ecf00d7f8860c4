"""What an event of the DataSet asset holds: a DataSet and its version. All DataSets share that one asset."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardmean.jobs.config.job import DIGEST
from shardmean.model.errors import UserError
from shardmean.model.storage.filesystem import absolute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult, AssetEventResult

    Event = AssetEventDagRunReferenceResult | AssetEventResult


def triggering_version(events: Iterable[Event], dataset_uri: str) -> str | None:
    """The version that the newest event of a DataSet names; None when no event is of that DataSet.

    URIs are compared as configs hold them. Raises UserError for one that a config would not take.
    """
    wanted = absolute(dataset_uri)
    versions = [
        (event.timestamp, digest) for event in events for uri, digest in _published(event) if _absolute(uri) == wanted
    ]
    return max(versions)[1] if versions else None


def published_datasets(events: Iterable[Event]) -> str:
    """The DataSets of events, for a message."""
    return ", ".join(sorted({uri for event in events for uri, _ in _published(event)})) or "no DataSet that has a name"


def _absolute(dataset_uri: str) -> str:
    try:
        return absolute(dataset_uri)
    except UserError:
        return dataset_uri  # no config holds it, so it equals none


def _published(event: Event) -> list[tuple[str, str]]:
    """The DataSet and the version in an event, if any: an event that was made by hand holds anything."""
    extra = event.extra or {}
    dataset_uri, digest = extra.get("dataset_uri"), str(extra.get("digest"))
    # The digest becomes an argument of the job.
    return [(dataset_uri, digest)] if isinstance(dataset_uri, str) and re.fullmatch(DIGEST, digest) else []
