"""Two processes that want one lease: whenever one of them sleeps, at most one holds it, and the other is told."""

from __future__ import annotations

import itertools
import time

import pytest

from shardmean.model.errors import LeaseLostError, RetryableError
from shardmean.model.storage import conditional, filesystem
from shardmean.model.storage.lease import Lease
from tests.model.like_hdfs import pretend_hdfs


def lease(folder: str) -> Lease:
    return Lease(folder, what="this training", silent_after_s=0.3)


def takes(one: Lease) -> bool:
    try:
        one.__enter__()
    except RetryableError:
        return False
    return True


def holds(one: Lease) -> bool:
    try:
        one.check()
    except LeaseLostError:
        return False
    return True


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_one_that_sleeps_after_any_look_never_shares_the_lease(kind, tmp_path, new_bucket):
    """The other comes while the first sleeps after its first look at the store, its second, and so on."""
    for number in itertools.count():
        folder = filesystem.join(new_bucket() if kind == "s3" else str(tmp_path), f"set {number}")
        first, second, looks, taken = lease(folder), lease(folder), itertools.count(), []

        def waking(original, number=number, second=second, looks=looks, taken=taken):
            def look(*arguments, **more):
                seen = original(*arguments, **more)
                if not taken and next(looks) == number:
                    taken.append(False)
                    taken[0] = takes(second)
                return seen

            return look

        with pytest.MonkeyPatch.context() as patch:
            for name in ("list_names", "read_bytes"):
                patch.setattr(filesystem, name, waking(getattr(filesystem, name)))
            is_first = takes(first)
            first._done.set()
        if not taken:
            assert number > 1
            return
        assert [is_first, *taken].count(True) == 1, f"after look {number}"
        holder = first if is_first else second
        assert holds(holder)
        holder.__exit__(None, None, None)


def test_where_a_store_knows_no_conditions_the_one_that_was_replaced_is_told(tmp_path, monkeypatch):
    """Both saw no file: the later replaces the earlier, which learns of it before its next write."""
    pretend_hdfs(monkeypatch)
    first, second = lease(str(tmp_path)), lease(str(tmp_path))
    with first:
        assert holds(first)
        with monkeypatch.context() as patch:
            patch.setattr(second, "_newest", lambda: 0)
            patch.setattr(conditional, "version_of", lambda _uri: None)
            second.__enter__()
        assert holds(second)
        assert not holds(first)
        assert first.is_lost()
        assert not second.is_lost()
        second.__exit__(None, None, None)


def test_where_a_store_knows_no_conditions_the_earlier_gives_way_before_it_begins(tmp_path, monkeypatch):
    pretend_hdfs(monkeypatch)
    first, second = lease(str(tmp_path)), lease(str(tmp_path))
    pause = time.sleep

    def late(seconds: float) -> None:
        monkeypatch.setattr(time, "sleep", pause)
        with monkeypatch.context() as patch:
            patch.setattr(second, "_newest", lambda: 0)
            patch.setattr(conditional, "version_of", lambda _uri: None)
            second.__enter__()
        pause(seconds)

    monkeypatch.setattr(time, "sleep", late)
    with pytest.raises(RetryableError, match="this training is already running: process"):
        first.__enter__()
    assert holds(second)
    second.__exit__(None, None, None)
