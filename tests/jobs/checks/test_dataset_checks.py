"""The checks of a candidate: what each measures, against which limit, and on which side of it a value passes."""

from __future__ import annotations

import pytest

from shardmean.jobs.checks.dataset import check, run_checks
from shardmean.jobs.config.checks import ChecksConfig
from shardmean.model.config.image import ImageConfig, SplitConfig
from shardmean.model.dataset.manifest import Manifest, Shard, Source
from shardmean.model.errors import UserError


def manifest(num_rejected=0, **per_class):
    def shard(split, share):
        counts = {label: int(num * share) for label, num in enumerate(per_class.values()) if num * share >= 1}
        total = sum(counts.values())
        return Shard(
            name=f"{split}-{'0' * 20}.parquet", split=split, num_examples=total, num_bytes=9, blake3="0" * 64,
            num_per_class=counts,
        )  # fmt: skip

    num_files = sum(per_class.values()) + num_rejected
    return Manifest(
        image=ImageConfig(height_px=4, width_px=4), split=SplitConfig(), class_names=list(per_class), mean=[0, 0, 0],
        std=[1, 1, 1], shards=[shard("train", 0.5), shard("test", 0.5)], num_rejected=num_rejected,
        source=Source(uri="/x", layout="folders", fingerprint="0", num_files=num_files),
    ).sealed()  # fmt: skip


def outcome(name, published=None, candidate=None, **limits):
    findings = {f.check: f for f in run_checks(ChecksConfig(**limits), candidate, published)}
    return findings[name]


def test_a_class_with_too_few_images_over_all_splits():
    few = manifest(cat=20, dog=6)
    at, above = (outcome("min_images_per_class", None, few, min_images_per_class=n) for n in (6, 7))
    assert (at.measured, at.has_passed) == (6, True)
    assert (above.subject, above.measured, above.limit, above.has_passed) == ("images of class 'dog'", 6, 7, False)


def test_a_first_version_is_held_against_itself_alone():
    assert [f.check for f in run_checks(ChecksConfig(), manifest(cat=2, dog=2), None)] == ["min_images_per_class"]


@pytest.mark.parametrize(
    ("name", "limit", "candidate", "measured"),
    [
        ("max_class_share_change", 0.25, manifest(cat=30, dog=10), 0.25),
        ("max_class_share_change", 0.2, manifest(cat=8, dog=8, fox=4), 0.2),
        ("max_rejected_growth", 0.2, manifest(cat=20, dog=20, num_rejected=10), 0.2),
        ("min_size_ratio", 0.5, manifest(cat=10, dog=10), 0.5),
    ],
)
def test_what_has_changed_since_the_published_version(name, limit, candidate, measured):
    published = manifest(cat=20, dog=20)
    exact = outcome(name, published, candidate, **{name: limit})
    assert exact.measured == pytest.approx(measured)
    step = 1e-6 if name == "min_size_ratio" else -1e-6
    assert not outcome(name, published, candidate, **{name: limit + step}).has_passed
    assert outcome(name, published, candidate, **{name: limit - step}).has_passed


def test_fewer_rejections_and_a_class_that_is_gone():
    published = manifest(cat=20, dog=20, num_rejected=10)
    assert outcome("max_rejected_growth", published, manifest(cat=20, dog=20), max_rejected_growth=0).has_passed
    gone = outcome("max_class_share_change", published, manifest(cat=20, fox=20), max_class_share_change=0.4)
    assert gone.subject.endswith(("class 'dog'", "class 'fox'"))
    assert not gone.has_passed


def test_all_failures_are_named_at_once_and_odd_names_are_printed_by_their_codes(caplog):
    caplog.set_level("INFO")
    config = ChecksConfig(min_images_per_class=5, min_size_ratio=0.9)
    candidate, published = manifest(**{"cat": 20, "d\x1b[2Jog": 2}), manifest(cat=20, dog=20)
    with pytest.raises(UserError) as caught:
        check(config, candidate, published, "/data/pets")
    message = str(caught.value)
    assert message.startswith(f"/data/pets: version {candidate.digest} failed 2 of 4 checks and is not published:\n")
    assert "checks.min_images_per_class: images of class 'd\\x1b[2Jog': 2, limit 5" in message
    assert "checks.min_size_ratio: examples, as a share of the published version's: 0.55, limit 0.9" in message
    assert "\x1b" not in message + caplog.text
    assert sum("passed: checks." in line for line in caplog.messages) == 2
