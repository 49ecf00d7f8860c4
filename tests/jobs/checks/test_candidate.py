"""Write, audit, publish: a candidate is seen by no reader, is published once, and its shards are taken over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmean.jobs.checks.candidate import load_candidate, publish_candidate
from shardmean.jobs.config.checks import ChecksConfig
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.jobs.vectorize.source import reader
from shardmean.model.dataset.manifest import load_current, load_manifest, manifest_uri
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem
from shardmean.model.storage.lease import Lease
from tests.jobs.pile import EMPTY, GONE, Pile
from tests.jobs.whole import check_whole, index_of, rows_of

STRICT = ChecksConfig(max_class_share_change=0.05)


@pytest.fixture
def pile(tmp_path):
    return Pile(tmp_path)


def propose(pile, **changes):
    return vectorize(pile.job(**changes), runner=LocalRunner(), is_published=False)


def split_of(uri):
    return rows_of(uri).set_index("path")["split"].to_dict()


def test_a_candidate_is_not_current_until_it_is_published(pile):
    first = propose(pile)
    assert (first.is_published, first.changed) == (False, True)
    assert load_current(pile.uri) is None
    assert load_candidate(pile.uri).digest == first.digest
    publish_candidate(pile.uri, first.digest)
    assert check_whole(pile.uri).digest == first.digest
    assert load_candidate(pile.uri) is None
    pile.write({"a/new": 1})
    second = propose(pile)
    assert load_manifest(pile.uri).digest == first.digest
    publish_candidate(pile.uri, second.digest)
    assert check_whole(pile.uri).digest == second.digest != first.digest


def test_publishing_twice_is_publishing_once_and_what_is_no_candidate_is_refused(pile):
    digest = propose(pile).digest
    publish_candidate(pile.uri, digest)
    before = filesystem.read_bytes(manifest_uri(pile.uri))
    assert publish_candidate(pile.uri, digest).digest == digest
    assert filesystem.read_bytes(manifest_uri(pile.uri)) == before
    with pytest.raises(UserError, match=f"version {'0' * 32} does not await publication .it has no candidate"):
        publish_candidate(pile.uri, "0" * 32)
    pile.write({"a/new": 1})
    newer = propose(pile).digest
    with pytest.raises(UserError, match=f"its candidate is {newer}"):
        publish_candidate(pile.uri, "0" * 32)


def test_a_candidate_does_not_replace_what_was_published_after_it_was_made(pile):
    pile.run()
    pile.write({"a/new": 1})
    candidate = propose(pile).digest
    pile.write({"a/newer": 2})
    published = pile.run().digest
    pile.write({"a/newer": GONE})
    with pytest.raises(UserError, match="does not await publication"):
        publish_candidate(pile.uri, candidate)
    assert load_manifest(pile.uri).digest == published


def test_who_publishes_waits_for_no_run_of_the_etl(pile):
    digest = propose(pile).digest
    with Lease(pile.uri, what="another run"), pytest.raises(RetryableError, match="already running"):
        publish_candidate(pile.uri, digest)
    assert load_current(pile.uri) is None


def test_one_that_was_killed_after_it_published_is_repeated(pile, monkeypatch):
    digest, delete = propose(pile).digest, filesystem.delete

    def killed(uri):
        if uri.endswith("candidate.json"):
            raise RetryableError("killed")
        delete(uri)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "delete", killed)
        with pytest.raises(RetryableError, match="killed"):
            publish_candidate(pile.uri, digest)
    assert load_manifest(pile.uri).digest == digest
    publish_candidate(pile.uri, digest)
    assert load_candidate(pile.uri) is None


def test_a_run_that_fails_its_checks_publishes_nothing_and_says_how_to_accept_it(pile):
    before = pile.run().digest
    pile.write({f"a/many {number}": number for number in range(20)})
    with pytest.raises(UserError) as caught:
        pile.run(checks=STRICT)
    message, candidate = str(caught.value), load_candidate(pile.uri).digest
    assert f"version {candidate} failed 1 of 4 checks and is not published" in message
    assert "failed: checks.max_class_share_change: change of the share of class 'a': 0.3125, limit 0.05" in message
    assert f"shardmean publish {pile.uri} {candidate}" in message
    assert load_manifest(pile.uri).digest == before
    publish_candidate(pile.uri, candidate)
    assert check_whole(pile.uri).digest == candidate


def test_the_next_run_takes_over_the_candidates_shards_and_compares_with_what_is_published(pile, monkeypatch):
    pile.run()
    pile.write({f"a/many {number}": number for number in range(20)})
    with pytest.raises(UserError, match="failed 1 of 4 checks"):
        pile.run(checks=STRICT)
    pile.write({f"b/many {number}": 100 + number for number in range(20)})
    read, original = [], reader.read_item
    monkeypatch.setattr(reader, "read_item", lambda item: (read.append(item.path), original(item))[1])
    result = pile.run(checks=STRICT)
    assert sorted(read) == sorted(f"b/many {number}.ppm" for number in range(20)), "what the candidate has is not read"
    assert check_whole(pile.uri).digest == result.digest


def test_files_of_the_candidate_are_no_garbage(pile):
    pile.run()
    pile.write({f"a/many {number}": number for number in range(20)})
    with pytest.raises(UserError):
        pile.run(checks=STRICT, keep_versions=1, clean_after_hours=0)
    candidate = load_candidate(pile.uri).digest
    pile.touch("a/always 0")
    pile.write({f"a/many {number}": GONE for number in range(20)})
    pile.run(checks=STRICT, keep_versions=1, clean_after_hours=0)
    check_whole(pile.uri, candidate)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.integers(-1, 12)), max_size=12), st.data())
def test_a_run_after_a_candidate_gives_what_a_run_without_it_gives(tmp_path_factory, changes, data):
    """Splits, classes, ids and rejections are those of a run that never saw the candidate; shards may differ."""
    cut = data.draw(st.integers(0, len(changes)))
    outcomes = []
    for has_candidate in (True, False):
        pile = Pile(tmp_path_factory.mktemp("pile"))
        pile.run()
        for number, (folder, name, content) in enumerate(changes):
            if number == cut and has_candidate:
                propose(pile)
            pile.write({f"{folder}/{name}": EMPTY if content < 0 else content})
        pile.run()
        check_whole(pile.uri)
        facts = ["path", "class_name", "split", "published_split", "reason"]
        outcomes.append(index_of(pile.uri)[facts].astype(object).where(lambda frame: frame.notna(), None))
    assert outcomes[0].equals(outcomes[1])
