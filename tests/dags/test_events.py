"""Which version the events of the DataSet asset tell: of one DataSet, the newest, whatever else was published."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shardmean.dags.asset_events import published_datasets, triggering_version
from shardmean.model.errors import UserError

OLD, NEW, OTHER = "0" * 32, "1" * 32, "2" * 32


@dataclass
class Event:
    timestamp: datetime
    extra: dict[str, Any] | None


def event(hour: int, dataset_uri: Any, digest: Any = NEW) -> Event:
    return Event(
        datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour), {"dataset_uri": dataset_uri, "digest": digest}
    )


def test_the_newest_by_time_of_that_dataset_counts():
    events = [event(2, "/digits", NEW), event(1, "/digits", OLD), event(3, "/pets", OTHER)]
    assert triggering_version(events, "/digits") == NEW
    assert triggering_version(events, "/pets") == OTHER
    assert triggering_version(events, "/birds") is None


@pytest.mark.parametrize("published", ["file:///data/digits", "/data/digits/", "digits"])
def test_uris_are_compared_as_configs_hold_them(published, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    wanted = tmp_path / "digits" if published == "digits" else "/data/digits"
    assert triggering_version([event(1, published)], str(wanted)) == NEW
    assert triggering_version([event(1, "s3://bucket/digits?region=a")], "s3://bucket/digits?region=b") is None


@pytest.mark.parametrize(
    "extra",
    [None, {}, {"dataset_uri": "/digits"}, {"dataset_uri": "/digits", "digest": "${oc.env:HOME}"}, {"dataset_uri": 5}],
)
def test_events_made_by_hand_tell_nothing_unless_they_name_a_version(extra):
    by_hand = Event(datetime(2026, 1, 2, tzinfo=UTC), extra)
    assert triggering_version([event(1, "/digits", OLD), by_hand], "/digits") == OLD
    assert published_datasets([by_hand]) == "no DataSet that has a name"


def test_a_password_is_refused_in_the_runs_uri_and_equals_nothing_in_an_event():
    told = [event(1, "s3://user:secret@bucket/digits")]
    assert triggering_version(told, "/digits") is None
    with pytest.raises(UserError, match="a URI must hold no password"):
        triggering_version(told, "s3://user:secret@bucket/digits")


def test_datasets_are_named_once_each():
    assert published_datasets([event(1, "/pets"), event(2, "/birds"), event(3, "/pets")]) == "/birds, /pets"
