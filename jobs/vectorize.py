"""The ETL job: scan a source, make shards in Spark tasks, check what came back, publish the DataSet.

Nothing is published before everything is known to be good: shards lie unseen until the manifest names them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.cluster import open_session, run_tasks
from jobs.partition import Moments, PartitionReport, Rejected, vectorize_partition
from jobs.sources import Item, Scan, scan
from model import storage
from model.errors import UserError, WorldError
from model.manifest import SPLITS, Manifest, Source, load_manifest, manifest_uri, publish, rejected_uri
from model.progress import INTERVAL_S, every

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyspark.sql import SparkSession

    from jobs.config import VectorizeJob

MAX_PARTITION_ITEMS = 8192
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VectorizeResult:
    """What a run did, for whoever started it. `changed` is false when the DataSet was up to date already."""

    dataset_uri: str
    digest: str
    changed: bool
    num_examples: dict[str, int]
    class_names: list[str]
    num_rejected: int
    num_rejected_by_reason: dict[str, int]


def vectorize(job: VectorizeJob) -> VectorizeResult:
    """Bring a DataSet up to date with its source. Raises UserError and WorldError; then nothing was published."""
    started = time.monotonic()
    found = scan(job.source)
    log.info("%s: %d images in %d classes", job.source.uri, len(found.items), len(found.class_names))
    if found.num_other_files:
        log.info("%d other files were passed over (not an image by their name)", found.num_other_files)
    present = _present(job)
    if present is not None and not job.replace and present.source.fingerprint == found.fingerprint:
        log.info("%s is up to date (%s): nothing was read or published", job.dataset_uri, present.digest)
        return _result(job, present, changed=False)
    storage.check_writable(storage.join(job.dataset_uri, "shards"))
    reports, items = _run(job, found)
    manifest, rejected = _manifest(job, found, reports, items)
    _check_rejected(job, rejected, len(found.items))
    if manifest.num_examples("train") == 0:
        raise UserError(f"split: no image fell into train; {len(found.items)} images are too few for {job.split}")
    storage.write_bytes(rejected_uri(job.dataset_uri, manifest.digest), _rejected_table(rejected))
    publish(manifest, job.dataset_uri)
    _summarise(job, manifest, time.monotonic() - started)
    # Files that were only touched give the same examples: the manifest notes their new times, and nobody need train.
    return _result(job, manifest, changed=present is None or present.digest != manifest.digest)


def _present(job: VectorizeJob) -> Manifest | None:
    if not storage.exists(manifest_uri(job.dataset_uri)):
        return None
    try:
        present = load_manifest(job.dataset_uri)
    except WorldError as error:
        if not job.replace:
            raise
        log.warning("%s; replacing it", error)
        return None
    differences = _differences(job, present)
    if differences and not job.replace:
        raise UserError(
            f"dataset_uri {job.dataset_uri} holds a DataSet made with other settings ({'; '.join(differences)}): "
            "choose another dataset_uri, or set replace=true to publish over it"
        )
    return present


def _differences(job: VectorizeJob, present: Manifest) -> list[str]:
    wanted = {"image": job.image.model_dump(), "split": job.split.model_dump()}
    there = {"image": present.image.model_dump(), "split": present.split.model_dump()}
    differences = [
        f"{group}.{key} is {there[group][key]} there and {value} here"
        for group, values in wanted.items()
        for key, value in values.items()
        if there[group][key] != value
    ]
    if (present.source.uri, present.source.layout) != (job.source.uri, job.source.layout):
        differences.append(f"source is {present.source.uri} there and {job.source.uri} here")
    return differences


def _run(job: VectorizeJob, found: Scan) -> tuple[list[PartitionReport], list[list[Item]]]:
    # In the order of a hash, classes are mixed in every shard; the partitions depend on the source alone.
    mixed = sorted(found.items, key=lambda item: hashlib.blake2b(item.path.encode(errors="surrogateescape")).digest())
    per_partition = max(1, min(job.shard_bytes // job.image.example_bytes, MAX_PARTITION_ITEMS))
    items = [mixed[first : first + per_partition] for first in range(0, len(mixed), per_partition)]
    with open_session("shardmean vectorize", job.spark) as session:
        reports = _partitions(session, job, found, items, range(len(items)), frozenset())
        conflicting = _conflicting(reports, items)
        if conflicting:
            log.warning("%d images have the bytes of an image in another class: rejected", len(conflicting))
            again = [i for i, part in enumerate(items) if any(item.path in conflicting for item in part)]
            mended = {r.index: r for r in _partitions(session, job, found, items, again, conflicting)}
            reports = [mended.get(report.index, report) for report in reports]
    return reports, items


def _partitions(
    session: SparkSession,
    job: VectorizeJob,
    found: Scan,
    items: list[list[Item]],
    indices: Sequence[int],
    conflicting: frozenset[str],
) -> list[PartitionReport]:
    done = session.sparkContext.accumulator(0)
    class_names = found.class_names

    def work(task: tuple[int, list[Item]]) -> PartitionReport:
        report = vectorize_partition(*task, job, class_names, conflicting)
        done.add(len(task[1]))
        return report

    total, started = sum(len(items[i]) for i in indices), time.monotonic()

    def say() -> None:
        elapsed = time.monotonic() - started
        log.info("%d of %d images (%.0f %%), %.0f s", done.value, total, 100 * done.value / total, elapsed)

    with every(INTERVAL_S, say):
        reports = run_tasks(session, work, [(i, items[i]) for i in indices])
    errors = [report.error for report in reports if report.error]
    if errors:
        raise WorldError(errors[0])
    return reports


def _conflicting(reports: list[PartitionReport], items: list[list[Item]]) -> frozenset[str]:
    by_hash: dict[bytes, list[Item]] = {}
    for report in reports:
        for row, content_hash in zip(report.rows, report.hashes, strict=True):
            by_hash.setdefault(content_hash.tobytes(), []).append(items[report.index][row])
    groups = (group for group in by_hash.values() if len({item.class_name for item in group}) > 1)
    return frozenset(item.path for group in groups for item in group)


def _manifest(
    job: VectorizeJob, found: Scan, reports: list[PartitionReport], items: list[list[Item]]
) -> tuple[Manifest, list[Rejected]]:
    moments = Moments(sums=[0] * job.image.channels, squares=[0] * job.image.channels)
    for report in reports:
        moments.add(report.moments)
    moments.num_values = max(1, moments.num_values)
    mean, std = moments.mean_and_std()
    rejected = sorted((r for report in reports for r in report.rejected), key=lambda r: r.path)
    shards = sorted((s for report in reports for s in report.shards), key=lambda s: (SPLITS.index(s.split), s.name))
    manifest = Manifest(
        image=job.image,
        split=job.split,
        class_names=found.class_names,
        mean=mean,
        std=std,
        shards=shards,
        source=Source(
            uri=job.source.uri,
            layout=job.source.layout,
            fingerprint=found.fingerprint,
            num_files=len(found.items),
        ),
        num_rejected=len(rejected),
        num_rejected_by_reason=dict(sorted(Counter(r.reason for r in rejected).items())),
    ).sealed()
    accepted = sum(manifest.num_examples(split) for split in SPLITS)
    assert accepted + len(rejected) == sum(map(len, items)), "every image is an example or rejected"
    return manifest, rejected


def _check_rejected(job: VectorizeJob, rejected: list[Rejected], num_items: int) -> None:
    for r in rejected[:20]:
        log.warning("rejected %s: %s: %s", r.path, r.reason, r.detail)
    if len(rejected) > 20:
        log.warning("... and %d more", len(rejected) - 20)
    share = len(rejected) / num_items
    if share > job.max_rejected_fraction:
        counts = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejected).most_common())
        raise UserError(
            f"{len(rejected)} of {num_items} images were rejected ({share:.1%}: {counts}), over the limit "
            f"max_rejected_fraction={job.max_rejected_fraction:g}: nothing was published; "
            "mend the images named above, or raise the limit"
        )


def _rejected_table(rejected: list[Rejected]) -> bytes:
    schema = pa.schema(
        [("path", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("size_bytes", pa.int64())]
    )
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(r) for r in rejected], schema=schema), stream)
    return stream.getvalue()


def _summarise(job: VectorizeJob, manifest: Manifest, seconds: float) -> None:
    log.info("published %s, version %s, in %.1f s", job.dataset_uri, manifest.digest, seconds)
    for split in SPLITS:
        counts = np.array(manifest.num_per_class(split))
        log.info("  %-10s %7d examples, %d to %d per class", split, counts.sum(), counts.min(), counts.max())
        absent = [name for name, n in zip(manifest.class_names, counts, strict=True) if n == 0]
        if absent and manifest.split.model_dump()[split]:
            log.warning("  %s has no example of %d classes: %s", split, len(absent), ", ".join(absent[:10]))
    if manifest.num_rejected:
        log.info("  rejected   %7d: %s", manifest.num_rejected, manifest.num_rejected_by_reason)


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
