"""Which version the events of a DataSet's asset name."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shardmean.dags.asset_events import newest_version

OLD, NEW = "0" * 32, "1" * 32


@dataclass
class Event:
    timestamp: datetime
    extra: dict[str, Any] | None


def event(hour: int, digest: Any) -> Event:
    return Event(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour), {"digest": digest})


def test_the_newest_by_time_counts_whatever_the_order():
    assert newest_version([event(2, NEW), event(1, OLD)]) == NEW
    assert newest_version([event(1, NEW), event(2, OLD)]) == OLD
    assert newest_version([]) is None


@pytest.mark.parametrize("extra", [None, {}, {"digest": "${oc.env:HOME}"}, {"digest": 5}, {"digest": f"{NEW}0"}])
def test_events_made_by_hand_count_only_if_they_name_a_version(extra):
    by_hand = Event(datetime(2026, 1, 2, tzinfo=UTC), extra)
    assert newest_version([event(1, OLD), by_hand]) == OLD
    assert newest_version([by_hand]) is None
