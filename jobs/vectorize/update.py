"""The next version of a DataSet, out of the last one and what the source holds now. Writes shards, publishes nothing.

Shapes: N images of the source, in the order of their paths.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardmean.jobs.common.arrow_tables import give_back_memory
from shardmean.jobs.spark.task_runner import Operation, run_all
from shardmean.jobs.vectorize.compaction import RewriteReport, RewriteTask, plan_rewrites, renumbered, rewrite
from shardmean.jobs.vectorize.index.duplicates import CONFLICT, IN_OTHER_SPLIT
from shardmean.jobs.vectorize.index.split_assignment import Candidates, assign_splits, fixed_codes
from shardmean.jobs.vectorize.index.table import (
    INDEX,
    REMEMBERED,
    RETRYABLE_REASONS,
    bytes_of,
    codes_of,
    compare,
    listed_table,
    published_splits,
    read_index,
    rows_or_null,
    with_known_hashes,
    with_splits_of,
)
from shardmean.jobs.vectorize.shard_task import (
    MAX_PARTITION_ITEMS,
    REPORT,
    PartitionTask,
    plan_tasks,
    vectorize_partition,
)
from shardmean.jobs.vectorize.summary import Counts, compose
from shardmean.model.dataset.manifest import SPLITS, Manifest
from shardmean.model.dataset.shard import one_chunk

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.jobs.spark.task_runner import Runner
    from shardmean.jobs.vectorize.shard_task import PartitionReport
    from shardmean.jobs.vectorize.source.scan import Scan
    from shardmean.model.dataset.manifest import Shard

DECIDED = (CONFLICT, IN_OTHER_SPLIT)


class Update:
    """One run's work, step by step: compare, read, assign splits, rewrite, compose."""

    def __init__(
        self,
        job: VectorizeJob,
        scan: Scan,
        published: Manifest | None,
        runner: Runner,
        candidate: Manifest | None = None,
    ) -> None:
        """`published` is the version to continue from; None: rebuild everything.

        What a `candidate` has read already is not read again, but only what was published keeps its split.
        """
        self.job = job
        self.scan = scan
        self.runner = runner
        self.listed = listed_table(scan.items)
        previous = candidate or published
        published_index = read_index(job.dataset_uri, published.index if published else None)
        previous_index = published_index
        if candidate is not None:
            previous_index = with_splits_of(published_index, read_index(job.dataset_uri, candidate.index))
        self.comparison = compare(self.listed, previous_index)
        # Shards by number; those of the last version come first.
        self.shards: dict[int, Shard] = dict(enumerate(previous.shards)) if previous and previous.index else {}
        self._num_before = self._num_shards = len(self.shards)
        # Shards that this run wrote and then replaced.
        self.intermediates: set[str] = set()
        self._names_before = {shard.name for shard in previous.shards} if previous else set()
        self._classes_before = previous.class_names if previous else []
        self.classes_N = codes_of(self.listed["class_name"], scan.class_names)
        given, groups = (one_chunk(scan.items.table[name]) for name in ("split", "group"))
        self.fixed_N = fixed_codes(given, groups, job.split)
        self._published_splits = published_splits(published_index)
        self._restore_previous(previous_index)
        if candidate is not None:
            is_elsewhere_N = (self.shard_N >= 0) & (self.published_N < 0)
            self.published_N[is_elsewhere_N] = self._splits_by_content(np.flatnonzero(is_elsewhere_N))

    def _restore_previous(self, previous: pa.Table) -> None:
        """Bring the state of the last version into the order of the listing; of new and changed images it is empty."""
        restored = previous.select(["shard", "published_split", *REMEMBERED]).take(
            rows_or_null(self.comparison.previous_N)
        )
        self.shard_N = codes_of(restored["shard"], [shard.name for shard in self.shards.values()]).astype(np.int32)
        self.published_N = codes_of(restored["published_split"], SPLITS).astype(np.int8)
        self.state = restored.select(list(REMEMBERED)).combine_chunks()
        is_known_N = self.comparison.is_known_N
        self.reasons_before = reason = self.state["reason"]
        is_lost_N = (self.shard_N < 0) & reason.is_null().to_numpy()
        is_retryable_N = pc.is_in(reason, pa.array(RETRYABLE_REASONS)).to_numpy()
        self.is_read_N = ~is_known_N | is_lost_N | is_retryable_N
        self.is_decided_N = pc.is_in(reason, pa.array(DECIDED)).to_numpy() & ~self.is_read_N
        self.num_same = 0

    def read(self) -> None:
        """Read the images that are new, changed, or to be tried again, into shards of their own."""
        self._read(self.is_read_N)

    def _read(self, is_chosen_N: NDArray[np.bool_]) -> None:
        job, class_names = self.job, self.scan.class_names
        operation: Operation[PartitionTask, PartitionReport] = Operation(
            do=lambda task: vectorize_partition(task, job, class_names),
            size=lambda task: len(task.items),
            num_rejected=lambda report: report.num_rejected,
        )
        is_touched_N = self.comparison.is_touched_N & (self.shard_N >= 0)
        known = pc.if_else(pa.array(is_touched_N), one_chunk(self.state["content_hash"]), None)
        rows_per_shard = job.shard_bytes // job.image.example_bytes
        # Passed on without a name: nothing holds the tasks when they are done.
        reports = run_all(
            self.runner,
            operation,
            plan_tasks(self.scan.items, is_chosen_N, known, self.fixed_N, rows_per_shard=rows_per_shard),
        )
        self._merge_reports(reports)
        give_back_memory()

    def _merge_reports(self, reports: list[PartitionReport]) -> None:
        shard_numbers, tables = [], [REPORT.empty_table()]
        for report in reports:
            first = self._num_shards
            self.shards |= dict(enumerate(report.shards, first))
            self._num_shards += len(report.shards)
            numbers_M = report.rows["shard_number"].to_numpy()
            shard_numbers.append(np.where(numbers_M >= 0, numbers_M + first, -1))
            tables.append(report.rows)
        rows = with_known_hashes(pa.concat_tables(tables), self.state)
        positions_M = rows["position"].to_numpy()
        is_same_M = rows["is_same"].to_numpy()
        self.num_same += int(is_same_M.sum())
        changed = np.flatnonzero(~is_same_M)
        changed_M = positions_M[changed]
        self.shard_N[changed_M] = np.concatenate([np.zeros(0, np.int32), *shard_numbers])[changed]
        is_new_content = ~pc.fill_null(
            pc.equal(rows["content_hash"], self.state["content_hash"].take(rows["position"])), fill_value=False
        ).to_numpy()
        # Rows of the reports replace those of the last version.
        source_N = np.arange(self.state.num_rows)
        source_N[changed_M] = self.state.num_rows + changed
        both = pa.concat_tables([self.state, rows.select(self.state.column_names)])
        self.state = both.take(pa.array(source_N)).combine_chunks()
        new = positions_M[is_new_content]
        self.published_N[new] = self._splits_by_content(new)

    def _splits_by_content(self, positions: NDArray[np.int64]) -> NDArray[np.int8]:
        """The splits in which images with these contents were published, under whatever name; -1: in none.

        With another name, label or group it is still the same image. Where the source assigns the split, a file that
        was moved to another follows it.
        """
        hashes = self.state["content_hash"].take(pa.array(positions))
        known = pc.index_in(hashes, value_set=self._published_splits["content_hash"].combine_chunks())
        codes = codes_of(self._published_splits["published_split"].take(known), SPLITS).astype(np.int8)
        codes[self.fixed_N[positions] >= 0] = -1
        return codes

    def assign_splits(self) -> None:
        """Give each example its split, and reject copies that conflict.

        One that was rejected because of another is read when that other is gone, and only then.
        """
        while True:
            self.codes_N, rejected = self._assigned((self.shard_N >= 0) | self.is_decided_N)
            is_freed_N = self.is_decided_N & (self.codes_N >= 0)
            if not is_freed_N.any():
                break
            # One that can't be read after all conflicts with none: that may free others.
            self.is_decided_N &= ~is_freed_N
            self.is_read_N |= is_freed_N
            self._read(is_freed_N)
        self.shard_N[self.codes_N < 0] = -1
        reasons, details = self.state["reason"].to_pylist(), self.state["detail"].to_pylist()
        for image in np.flatnonzero(self.is_decided_N | (self.codes_N >= 0)).tolist():
            reasons[image] = details[image] = None
        for image, (reason, detail) in rejected.items():
            reasons[image], details[image] = reason, detail
        assert all(reasons[image] for image in np.flatnonzero(self.shard_N < 0)), "an image is an example or rejected"
        for name, values in (("reason", reasons), ("detail", details)):
            column = self.state.column_names.index(name)
            self.state = self.state.set_column(column, name, pa.array(values, pa.string()))

    def _assigned(self, is_candidate_N: NDArray[np.bool_]) -> tuple[NDArray[np.int8], dict[int, tuple[str, str]]]:
        positions = np.flatnonzero(is_candidate_N)
        candidates = Candidates(
            one_chunk(self.listed["path"]).take(pa.array(positions)),
            self.classes_N[positions],
            bytes_of(self.state["content_hash"].take(pa.array(positions))),
            self.fixed_N[positions],
            self.published_N[positions],
        )
        codes, rejected = assign_splits(candidates, self.job.split)
        codes_N = np.full(len(is_candidate_N), -1, np.int8)
        codes_N[positions] = codes
        return codes_N, {int(positions[number]): why for number, why in rejected.items()}

    def rewrite(self) -> None:
        """Rewrite the shards with examples that are gone or moved, and merge small ones."""
        job = self.job
        wanted = pa.table(
            {
                "path": self.listed["path"],
                "split": pa.array(self.codes_N),
                "label": pa.array(self.classes_N),
                "position": pa.array(np.arange(len(self.codes_N))),
            }
        )
        operation: Operation[RewriteTask, RewriteReport] = Operation(
            do=lambda task: rewrite(task, job),
            size=lambda task: sum(table.num_rows for table in task.wanted),
            num_rejected=lambda _: 0,
        )
        old = {number: self.shards[number] for number in range(self._num_before)}
        stale = renumbered(old, self._classes_before, self.scan.class_names)
        while True:
            self.shards = {number: self.shards[number] for number in np.unique(self.shard_N).tolist() if number >= 0}
            tasks = plan_rewrites(
                self.shards,
                self.shard_N,
                wanted,
                stale,
                rows_per_shard=max(1, job.shard_bytes // job.image.example_bytes),
                rows_per_task=MAX_PARTITION_ITEMS,
            )
            if not tasks:
                return
            reports = run_all(self.runner, operation, tasks)
            gone = {shard.name for task in tasks for shard in task.shards}
            self.intermediates |= gone - self._names_before
            self.shards = {number: shard for number, shard in self.shards.items() if shard.name not in gone}
            for report in reports:
                for shard, positions in zip(report.shards, report.positions, strict=True):
                    self.shards[self._num_shards] = shard
                    self.shard_N[positions] = self._num_shards
                    self._num_shards += 1
            stale &= self.shards.keys()

    def index(self) -> pa.Table:
        """The index of the new version."""
        shards = {number: shard.name for number, shard in self.shards.items()}
        columns = {name: self.listed[name] for name in self.listed.column_names}
        columns |= {name: self.state[name] for name in self.state.column_names}
        columns["split"] = pa.array(SPLITS).take(rows_or_null(self.codes_N))
        published_N = np.where(self.codes_N >= 0, self.codes_N, self.published_N)
        columns["published_split"] = pa.array(SPLITS).take(rows_or_null(published_N))
        columns["shard"] = pa.array([shards.get(number) for number in self.shard_N.tolist()], pa.string())
        return pa.table([columns[name] for name in INDEX.names], schema=INDEX)

    def manifest(self) -> Manifest:
        """The new version's manifest, sealed, without the names of its tables."""
        has_more_frames = pc.sum(self.state["has_more_frames"].filter(pa.array(self.shard_N >= 0))).as_py()
        reasons = Counter(filter(None, self.state["reason"].to_pylist()))
        return compose(self.job, self.scan, self.shards.values(), reasons, num_first_frames=int(has_more_frames or 0))

    def counts(self) -> Counts:
        """What was done; call it at the end."""
        compared = self.comparison
        num_new = int((compared.previous_N < 0).sum())
        num_changed = int((~compared.is_known_N).sum()) - num_new - self.num_same
        num_kept = sum(number < self._num_before for number in self.shards)
        return Counts(
            num_new=num_new,
            num_changed=num_changed,
            num_deleted=compared.num_deleted,
            num_unchanged=len(compared.previous_N) - num_new - num_changed,
            num_read=int(self.is_read_N.sum()),
            num_kept=num_kept,
            num_rewritten=self._num_before - num_kept,
            num_written=len(self.shards) - num_kept,
        )
