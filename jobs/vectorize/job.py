"""The ETL job: scan a source, make shards of what is new in Spark tasks, publish the next version of the DataSet.

Nothing is published before everything is known to be good: shards lie unseen until the manifest names them.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from shardmean.jobs.checks import candidate
from shardmean.jobs.checks.dataset import check
from shardmean.jobs.config.source import SOURCE_SETTINGS
from shardmean.jobs.spark.task_runner import SparkRunner
from shardmean.jobs.vectorize.dataset_folder import check_folder
from shardmean.jobs.vectorize.garbage_collection import collect_garbage
from shardmean.jobs.vectorize.index.table import RETRYABLE_REASONS, rejected_table, to_parquet
from shardmean.jobs.vectorize.limits import check_listed, check_rejected, check_train
from shardmean.jobs.vectorize.report.html import make_report
from shardmean.jobs.vectorize.source.scan import scan
from shardmean.jobs.vectorize.summary import log_version
from shardmean.jobs.vectorize.update import Update
from shardmean.model.dataset.manifest import (
    SPLITS,
    Manifest,
    current_version,
    index_uri,
    load_current,
    load_manifest,
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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VectorizeResult:
    """What a run did. `changed` is false when the DataSet was up to date already.

    A version that is not published awaits its checks: see `jobs.checks`.
    """

    dataset_uri: str
    digest: str
    changed: bool
    num_examples: dict[str, int]
    class_names: list[str]
    num_rejected: int
    num_rejected_by_reason: dict[str, int]
    is_published: bool = True


def vectorize(job: VectorizeJob, *, runner: Runner | None = None, is_published: bool = True) -> VectorizeResult:
    """Bring a DataSet up to date with its source, on Spark unless a `runner` is given.

    A new version is checked and published, or with `is_published=False` left as the candidate, for others to check.
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
            log.info("another run has published in the meantime: listing the source again")
            scan_result = _scan(job)
        tasks = runner or ends.enter_context(SparkRunner("shardmean vectorize", job.spark))
        base = None if job.replace else previous
        update = Update(job, scan_result, base, tasks, _load_candidate(job, base, replaced_version))
        write = partial(_write, job, previous, replaced_version, lease, is_published=is_published)
        result = _make_version(job, update, previous, lease, write, started)
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
    check_listed(job, scan_result)
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


def _make_version(
    job: VectorizeJob,
    update: Update,
    previous: Manifest | None,
    lease: Lease,
    write: Callable[[Manifest], bool],
    started: float,
) -> VectorizeResult:
    update.read()
    update.assign_splits()
    check_rejected(job, update)
    update.rewrite()
    manifest = update.manifest()
    check_train(job, update, manifest)
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
    has_published = write(manifest)
    log_version(job, manifest, update.counts(), time.monotonic() - started, is_published=has_published)
    log.info("  report: %s", report_uri(job.dataset_uri, manifest.digest))
    # Files that were only touched give the same examples: the manifest notes their new times, and no training is due.
    is_new = previous is None or previous.digest != manifest.digest
    return _result(job, manifest, changed=is_new, is_published=has_published)


def _write(
    job: VectorizeJob,
    previous: Manifest | None,
    replaced_version: str | None,
    lease: Lease,
    manifest: Manifest,
    *,
    is_published: bool,
) -> bool:
    """Write the manifest as the current version or as the candidate; whether it is published now."""
    if previous is not None and previous.digest == manifest.digest:
        publish(manifest, job.dataset_uri, replaces=replaced_version, before_write=lease.check)
        return True
    candidate.propose(manifest, job.dataset_uri, replaced_version, lease.check)
    if is_published:
        check(job.checks, manifest, previous, job.dataset_uri)
        candidate.publish_with_lease(job.dataset_uri, manifest.digest, lease.check)
    return is_published


def _load_candidate(job: VectorizeJob, base: Manifest | None, replaces: str | None) -> Manifest | None:
    """A candidate whose shards this run can take over: made from the same version with the same settings."""
    found = candidate.load_candidate(job.dataset_uri)
    if found is None or found.replaces != replaces or job.replace:
        return None
    try:
        manifest = load_manifest(job.dataset_uri, found.digest)
    except (RetryableError, UserError) as error:
        log.warning("the candidate of an earlier run is of no use: %s", error)
        return None
    return None if manifest == base or _differences(job, manifest) else manifest


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


def _result(job: VectorizeJob, manifest: Manifest, *, changed: bool, is_published: bool = True) -> VectorizeResult:
    return VectorizeResult(
        dataset_uri=job.dataset_uri,
        digest=manifest.digest,
        changed=changed,
        num_examples={split: manifest.num_examples(split) for split in SPLITS},
        class_names=manifest.class_names,
        num_rejected=manifest.num_rejected,
        num_rejected_by_reason=manifest.num_rejected_by_reason,
        is_published=is_published,
    )
