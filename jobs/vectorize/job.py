"""The ETL job: scan a source, make shards of what is new in Spark tasks, publish the next version of the DataSet.

Nothing is published before everything is known to be good: shards lie unseen until the manifest names them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.config.source import SOURCE_SETTINGS
from shardmean.jobs.spark.task_runner import SparkRunner
from shardmean.jobs.vectorize.dataset_folder import check_folder
from shardmean.jobs.vectorize.garbage_collection import collect_garbage
from shardmean.jobs.vectorize.index.table import rejected_table, to_parquet
from shardmean.jobs.vectorize.report.html import make_report
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.jobs.vectorize.summary import log_published
from shardmean.jobs.vectorize.update import RETRYABLE_REASONS, Update
from shardmean.model.dataset.manifest import (
    SPLITS,
    Manifest,
    current_version,
    index_uri,
    load_current,
    publish,
    rejected_uri,
    report_uri,
    shards_uri,
)
from shardmean.model.dataset.reader import Dataset
from shardmean.model.dataset.shard import missing
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem
from shardmean.model.storage.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.jobs.spark.task_runner import Runner
    from shardmean.jobs.vectorize.source.scan import Scan

MAX_SHOWN, MAX_TEXT = 20, 300
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VectorizeResult:
    """What a run did. `changed` is false when the DataSet was up to date already."""

    dataset_uri: str
    digest: str
    changed: bool
    num_examples: dict[str, int]
    class_names: list[str]
    num_rejected: int
    num_rejected_by_reason: dict[str, int]


def vectorize(job: VectorizeJob, *, runner: Runner | None = None) -> VectorizeResult:
    """Bring a DataSet up to date with its source, on Spark unless a `runner` is given.

    Raises UserError and RetryableError; then nothing was published.
    """
    started = time.monotonic()
    previous = _load_previous(job)
    if previous is None:
        check_folder(job.dataset_uri)
    scan_result = _scan(job)
    _log_scan(job, scan_result)
    if previous is not None and _is_up_to_date(job, scan_result, previous):
        return _nothing_new(job, previous, started)
    filesystem.check_writable(shards_uri(job.dataset_uri))
    with ExitStack() as ends:
        lease = ends.enter_context(Lease(job.dataset_uri, what=f"the ETL of {job.dataset_uri}"))
        replaced_version = current_version(job.dataset_uri)
        earlier, previous = previous, _load_previous(job)
        if previous != earlier:
            log.info("another run has published in the meantime: listing the source anew")
            scan_result = _scan(job)
        tasks = runner or ends.enter_context(SparkRunner("shardmean vectorize", job.spark))
        update = Update(job, scan_result, None if job.replace else previous, tasks)
        commit = partial(publish, replaces=replaced_version, before_write=lease.check)
        result = _publish(job, update, previous, lease, commit, started)
        collect_garbage(
            job.dataset_uri,
            keep_versions=job.keep_versions,
            clean_after_hours=job.clean_after_hours,
            intermediates=update.intermediates,
            before_delete=lease.check,
        )
    return result


def _scan(job: VectorizeJob) -> Scan:
    scan_result = scan(job.source, job.airflow.allowed_roots)
    _check_listed(job, scan_result)
    return scan_result


def _is_up_to_date(job: VectorizeJob, scan_result: Scan, previous: Manifest) -> bool:
    """Whether there is nothing to read: nothing differs, and no rejected image is to be tried again."""
    has_no_retryable_rejections = not set(RETRYABLE_REASONS) & set(previous.num_rejected_by_reason)
    return not job.replace and has_no_retryable_rejections and previous.source.fingerprint == scan_result.fingerprint


def _nothing_new(job: VectorizeJob, previous: Manifest, started: float) -> VectorizeResult:
    log.info(
        "%s is up to date (%s): nothing new in %d images, nothing was published, in %.1f s",
        job.dataset_uri, previous.digest, previous.source.num_files, time.monotonic() - started,
    )  # fmt: skip
    return _result(job, previous, changed=False)


def _publish(
    job: VectorizeJob,
    update: Update,
    previous: Manifest | None,
    lease: Lease,
    commit: Callable[[Manifest, str], None],
    started: float,
) -> VectorizeResult:
    update.read()
    update.assign_splits()
    _check_rejected(job, update)
    update.rewrite()
    manifest = update.manifest()
    _check_train(job, update, manifest)
    index = update.index()
    tables = {name: to_parquet(table) for name, table in (("index", index), ("rejected", rejected_table(index)))}
    manifest = manifest.model_copy(update={name: file for name, (file, _) in tables.items()})
    # replace=true is the remedy for a damaged file, so then all of them are written.
    if manifest == previous and not job.replace:
        return _nothing_new(job, manifest, started)
    for uri_of, (name, data) in zip((index_uri, rejected_uri), tables.values(), strict=True):
        lease.check()
        filesystem.write_bytes(uri_of(job.dataset_uri, name), data)
    _check_shards_exist(manifest, job.dataset_uri)
    report = make_report(Dataset(job.dataset_uri, manifest), index)
    lease.check()
    filesystem.write_bytes(report_uri(job.dataset_uri, manifest.digest), report)
    commit(manifest, job.dataset_uri)
    log_published(job, manifest, update.counts(), time.monotonic() - started)
    log.info("  report: %s", report_uri(job.dataset_uri, manifest.digest))
    # Files that were only touched give the same examples: the manifest notes their new times, and no training is due.
    return _result(job, manifest, changed=previous is None or previous.digest != manifest.digest)


def _check_shards_exist(manifest: Manifest, dataset_uri: str) -> None:
    """Raise RetryableError for a shard that is kept from an earlier version and is gone or cut short."""
    sizes = filesystem.list_sizes(shards_uri(dataset_uri))
    for shard in manifest.shards:
        if sizes.get(shard.name) != shard.num_bytes:
            raise missing(dataset_uri, shard, sizes.get(shard.name))


def _load_previous(job: VectorizeJob) -> Manifest | None:
    try:
        previous = load_current(job.dataset_uri)
    except (RetryableError, UserError) as error:
        if not job.replace:
            raise
        log.warning("%s; replacing it", error)
        return None
    if previous is None:
        return None
    differences = _differences(job, previous)
    if differences and not job.replace:
        raise UserError(
            f"dataset_uri {job.dataset_uri} holds a DataSet made with other settings ({'; '.join(differences)}): "
            "choose another dataset_uri, or set replace=true to publish over it"
        )
    return previous


def _differences(job: VectorizeJob, previous: Manifest) -> list[str]:
    source = job.source.model_dump(mode="json", include={"uri", "layout", *SOURCE_SETTINGS})
    # How long decoding may take changes no pixel.
    here = _flat(image=job.image.model_dump(exclude={"decode_timeout_s"}), split=job.split.model_dump(), source=source)
    source = previous.source.settings | {"uri": previous.source.uri, "layout": previous.source.layout}
    there = _flat(image=previous.image.model_dump(), split=previous.split.model_dump(), source=source)
    return [
        f"{key} is {there[key]} there and {value} here" for key, value in here.items() if there.get(key, value) != value
    ]


def _flat(**groups: dict[str, Any]) -> dict[str, Any]:
    return {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}


def _log_scan(job: VectorizeJob, scan_result: Scan) -> None:
    log.info("%s: %d images in %d classes", job.source.uri, len(scan_result.items), len(scan_result.class_names))
    if scan_result.num_other_files:
        log.info("%d other files were left out (not an image by their name)", scan_result.num_other_files)
    if scan_result.num_hidden:
        what = "hidden Parquet files" if job.source.layout == "table" else "hidden files and folders"
        log.info("%d %s were left out; rename what belongs to the source", scan_result.num_hidden, what)
    if scan_result.num_left_out:
        num_left_out = scan_result.num_left_out
        log.info("%d images were left out by source.max_per_class=%s", num_left_out, job.source.max_per_class)


def _check_listed(job: VectorizeJob, scan_result: Scan) -> None:
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


def _check_rejected(job: VectorizeJob, update: Update) -> None:
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


def _check_train(job: VectorizeJob, update: Update, manifest: Manifest) -> None:
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


def _result(job: VectorizeJob, manifest: Manifest, *, changed: bool) -> VectorizeResult:
    return VectorizeResult(
        dataset_uri=job.dataset_uri,
        digest=manifest.digest,
        changed=changed,
        num_examples={split: manifest.num_examples(split) for split in SPLITS},
        class_names=manifest.class_names,
        num_rejected=manifest.num_rejected,
        num_rejected_by_reason=manifest.num_rejected_by_reason,
    )
