"""What a run of the ETL made: the manifest, and in numbers and in the log what it did."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardmean.jobs.config.source import SOURCE_SETTINGS
from shardmean.model.dataset.manifest import SPLITS, Manifest, Source, mean_and_std

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.jobs.vectorize.source.scan import Scan
    from shardmean.model.dataset.manifest import Shard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """What a run did: numbers of images of the source, and of shards."""

    num_new: int = 0
    num_changed: int = 0
    num_deleted: int = 0
    num_unchanged: int = 0
    num_read: int = 0
    num_kept: int = 0
    num_rewritten: int = 0
    num_written: int = 0


def compose(
    job: VectorizeJob, scan: Scan, shards: Iterable[Shard], reasons: Counter[str], *, num_first_frames: int
) -> Manifest:
    """A version's manifest, sealed, without the names of its tables. `reasons` counts rejected images."""
    ordered = sorted(shards, key=lambda shard: (SPLITS.index(shard.split), shard.name))
    mean, std = mean_and_std([shard for shard in ordered if shard.split == "train"], job.image)
    manifest = Manifest(
        image=job.image,
        split=job.split,
        class_names=scan.class_names,
        mean=mean,
        std=std,
        shards=ordered,
        source=Source(
            uri=job.source.uri,
            layout=job.source.layout,
            fingerprint=scan.fingerprint,
            num_files=len(scan.items),
            num_left_out=scan.num_left_out,
            num_hidden=scan.num_hidden,
            settings=job.source.model_dump(mode="json", include=set(SOURCE_SETTINGS)),
        ),
        num_rejected=reasons.total(),
        num_rejected_by_reason=dict(sorted(reasons.items())),
        num_first_frames=num_first_frames,
        extra_columns=list(scan.extra_columns),
    ).sealed()
    accepted = sum(manifest.num_examples(split) for split in SPLITS)
    assert accepted + manifest.num_rejected == len(scan.items), "every image is an example or rejected"
    return manifest


def log_version(job: VectorizeJob, manifest: Manifest, counts: Counts, seconds: float, *, is_published: bool) -> None:
    """Log what a run has made, in some lines."""
    what = "published" if is_published else "made a candidate of"
    log.info("%s %s, version %s, in %.1f s", what, job.dataset_uri, manifest.digest, seconds)
    log.info(
        "  images: %d new, %d changed, %d deleted, %d unchanged, %d rejected; "
        "shards: %d kept, %d rewritten, %d written",
        counts.num_new, counts.num_changed, counts.num_deleted, counts.num_unchanged, manifest.num_rejected,
        counts.num_kept, counts.num_rewritten, counts.num_written,
    )  # fmt: skip
    for split in SPLITS:
        of_class = np.array(manifest.num_per_class(split))
        log.info("  %-10s %7d examples, %d to %d per class", split, of_class.sum(), of_class.min(), of_class.max())
        absent = [name for name, n in zip(manifest.class_names, of_class, strict=True) if n == 0]
        if absent and manifest.split.model_dump()[split]:
            log.warning("  %s has no example of %d classes: %s", split, len(absent), ", ".join(absent[:10]))
    if manifest.num_first_frames:
        log.info("  of %d files with more pages or frames the first was taken", manifest.num_first_frames)
    if manifest.num_rejected:
        log.info("  rejected   %7d: %s", manifest.num_rejected, manifest.num_rejected_by_reason)
