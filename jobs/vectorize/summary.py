"""What a run of the ETL found and did, in numbers and in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardmean.model.dataset.manifest import SPLITS

if TYPE_CHECKING:
    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.model.dataset.manifest import Manifest

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


def log_published(job: VectorizeJob, manifest: Manifest, counts: Counts, seconds: float) -> None:
    """Log what a run has published, in some lines."""
    log.info("published %s, version %s, in %.1f s", job.dataset_uri, manifest.digest, seconds)
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
