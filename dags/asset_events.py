"""What an event of a DataSet's asset holds: the version that was published."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardmean.jobs.config.job import DIGEST

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.sdk.execution_time.comms import AssetEventDagRunReferenceResult, AssetEventResult

    Event = AssetEventDagRunReferenceResult | AssetEventResult


def newest_version(events: Iterable[Event]) -> str | None:
    """The version that the newest event names; None when none does: an event that was made by hand holds anything."""
    versions = [(event.timestamp, str((event.extra or {}).get("digest"))) for event in events]
    named = [version for version in versions if re.fullmatch(DIGEST, version[1])]
    return max(named)[1] if named else None
