"""What ends a run without a new version: too much of the source is absent or rejected, or none of it is to train on."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.vectorize.index.table import rejected_table
from shardmean.model.dataset.manifest import SPLITS
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.jobs.vectorize.source.scan import Scan
    from shardmean.jobs.vectorize.update import Update
    from shardmean.model.dataset.manifest import Manifest

MAX_SHOWN, MAX_TEXT = 20, 300
log = logging.getLogger(__name__)


def check_listed(job: VectorizeJob, scan_result: Scan) -> None:
    """Raise UserError where so many paths are no files that nothing would be published, before any image is read."""
    reasons = scan_result.items.table["reason"]
    num_absent = len(reasons) - reasons.null_count
    share = num_absent / len(reasons)
    if share > job.max_rejected_fraction:
        first = scan_result.items[pc.index(pc.is_valid(reasons), True).as_py()]
        raise UserError(
            f"source {job.source.uri}: {num_absent} of {len(reasons)} paths are no files ({share:.1%}, first: "
            f"{truncate_printable(first.uri, MAX_TEXT)}), over the limit max_rejected_fraction="
            f"{job.max_rejected_fraction:g}; "
            "correct the source (relative paths of a table start at its folder), or raise the limit"
        )


def check_rejected(job: VectorizeJob, update: Update) -> None:
    """Log what is newly rejected, or for a new reason; raise UserError where too much is rejected."""
    index = update.index()
    rejected = rejected_table(index)
    is_old_N = pc.fill_null(pc.equal(index["reason"], update.reasons_before), fill_value=False)
    new, old = (rejected_table(index, is_chosen_N) for is_chosen_N in (pc.invert(is_old_N), is_old_N))
    share = rejected.num_rows / index.num_rows
    is_too_much = share > job.max_rejected_fraction or share == 1
    # The error says "listed above", so there must be some.
    shown = pa.concat_tables([new, old]) if is_too_much else new
    for row in shown.slice(0, MAX_SHOWN).to_pylist():
        path, detail = (truncate_printable(row[name], MAX_TEXT) for name in ("path", "detail"))
        log.warning("rejected %s: %s: %s", path, row["reason"], detail)
    num_more = shown.num_rows - MAX_SHOWN
    if num_more > 0:
        log.warning("... and %d more", num_more)
    if not is_too_much:
        return
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(rejected["reason"].to_pylist()).most_common())
    if share == 1:
        raise UserError(
            f"all {index.num_rows} images were rejected ({counts}): nothing was published; "
            "fix the images listed above, or correct source.uri or the settings of image"
        )
    raise UserError(
        f"{rejected.num_rows} of {index.num_rows} images were rejected ({share:.1%}: {counts}), over the limit "
        f"max_rejected_fraction={job.max_rejected_fraction:g}: nothing was published; "
        "fix the images listed above, or raise the limit"
    )


def check_train(job: VectorizeJob, update: Update, manifest: Manifest) -> None:
    """Raise UserError where there is nothing to train on."""
    if manifest.num_examples("train"):
        return
    num_images = manifest.source.num_files
    given = Counter(update.scan.items.table["split"].drop_null().to_pylist())
    if not given:
        raise UserError(
            f"split: no image fell into train; {num_images} images ({manifest.num_rejected} of them rejected) are too "
            f"few for {job.split}; add images, or raise split.train"
        )
    key = next(key for key in ("split_folders", "split_column", "split_files") if getattr(job.source, key))
    numbers = ", ".join(f"{given[split]} to {split}" for split in SPLITS)
    raise UserError(
        f"split: no image is in train: of {num_images} images source.{key} gives {numbers}, and "
        f"{manifest.num_rejected} were rejected; give some to train, fix those rejected, or correct source.{key}"
    )
