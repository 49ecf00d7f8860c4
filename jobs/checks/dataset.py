"""Checks of a candidate: measured value, limit and verdict of each. Reads manifests alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardmean.jobs.common.redaction import truncate_printable
from shardmean.model.dataset.manifest import SPLITS
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardmean.jobs.config.checks import ChecksConfig
    from shardmean.model.dataset.manifest import Manifest

MAX_NAME = 60
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One check's outcome. `subject` names what was measured, such as the class that is furthest off."""

    check: str
    subject: str
    measured: float
    limit: float
    has_passed: bool

    def __str__(self) -> str:
        verdict = "passed" if self.has_passed else "failed"
        return f"{verdict}: checks.{self.check}: {self.subject}: {self.measured:.6g}, limit {self.limit:.6g}"


def run_checks(config: ChecksConfig, candidate: Manifest, published: Manifest | None) -> list[Finding]:
    """All checks of a candidate; those against the published version are left out where there is none."""
    findings = [_fewest_of_a_class(config, candidate)]
    if published is not None:
        findings += _against(config, candidate, published)
    return findings


def check(config: ChecksConfig, candidate: Manifest, published: Manifest | None, dataset_uri: str) -> list[Finding]:
    """Run and log all checks. Raises UserError that says what failed, by how much, and how to accept the candidate."""
    findings = run_checks(config, candidate, published)
    for finding in findings:
        log.log(logging.INFO if finding.has_passed else logging.WARNING, "%s", finding)
    failed = [finding for finding in findings if not finding.has_passed]
    if failed:
        lines = "\n".join(f"  {finding}" for finding in failed)
        raise UserError(
            f"{dataset_uri}: version {candidate.digest} failed {len(failed)} of {len(findings)} checks and is not "
            f"published:\n{lines}\n  correct the source, or change the limits; to publish this version as it is: "
            f"shardmean publish {dataset_uri} {candidate.digest}"
        )
    return findings


def _fewest_of_a_class(config: ChecksConfig, candidate: Manifest) -> Finding:
    name, fewest = min(_per_class(candidate).items(), key=lambda pair: pair[1])
    limit = config.min_images_per_class
    return Finding("min_images_per_class", f"images of class {_shown(name)}", fewest, limit, fewest >= limit)


def _against(config: ChecksConfig, candidate: Manifest, published: Manifest) -> Iterator[Finding]:
    now, before = _per_class(candidate), _per_class(published)
    total_now, total_before = sum(now.values()), sum(before.values())
    changes = {
        name: abs(now.get(name, 0) / max(1, total_now) - before.get(name, 0) / max(1, total_before))
        for name in now.keys() | before.keys()
    }
    name = max(sorted(changes), key=changes.__getitem__)
    limit = config.max_class_share_change
    subject = f"change of the share of class {_shown(name)}"
    yield Finding("max_class_share_change", subject, changes[name], limit, changes[name] <= limit)
    growth = _rejected_share(candidate) - _rejected_share(published)
    limit = config.max_rejected_growth
    yield Finding("max_rejected_growth", "growth of the rejected images' share", growth, limit, growth <= limit)
    ratio = total_now / max(1, total_before)
    limit = config.min_size_ratio
    yield Finding("min_size_ratio", "examples, as a share of the published version's", ratio, limit, ratio >= limit)


def _per_class(manifest: Manifest) -> dict[str, int]:
    counts = zip(*(manifest.num_per_class(split) for split in SPLITS), strict=True)
    return {name: sum(numbers) for name, numbers in zip(manifest.class_names, counts, strict=True)}


def _rejected_share(manifest: Manifest) -> float:
    return manifest.num_rejected / max(1, manifest.source.num_files)


def _shown(name: str) -> str:
    return truncate_printable(repr(name), MAX_NAME)
