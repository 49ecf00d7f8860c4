"""The folder of one training run: its checkpoints, and `run.json` by which a later try resumes it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shardmean.jobs.config.former_names import with_former_names
from shardmean.jobs.config.job import TrainJob
from shardmean.jobs.tracking.run import TrainResult
from shardmean.model.errors import RetryableError
from shardmean.model.storage import filesystem
from shardmean.model.training import checkpoint

if TYPE_CHECKING:
    from shardmean.model.storage.lease import Lease
    from shardmean.model.training.checkpoint import Checkpoint

_EXCLUDED: dict[str, Any] = {**dict.fromkeys(TrainJob.CHANGEABLE, True), "tracking": {"uri", "artifact_uri"}}


class RunDirectory:
    """`run.json` holds the MLflow run, the DataSet's version, and at the end the result. Written under a lease."""

    def __init__(self, job: TrainJob, digest: str, lease: Lease) -> None:
        """`digest` is the DataSet's version that this try has read. Raises RetryableError."""
        self.uri = directory_of(job, digest)
        self.lease = lease
        self._job = job
        self._digest = digest
        self._record = _read(self.uri)
        if self._record.get("dataset_digest", digest) != digest:
            # It began while this try waited for the lease, on another version than the one that was current before.
            raise RetryableError(f"{self.uri}: begun on version {self._record['dataset_digest']}; repeat the command")
        self.result = _result(self._record["result"]) if self._record.get("result") else None
        # Without a key, a command after a finished run begins a new one.
        self._is_history = self.result is not None and job.run_key is None
        if self._is_history:
            self._record, self.result = {}, None

    @property
    def run_id(self) -> str | None:
        """The MLflow run that an earlier try began."""
        return self._record.get("run_id")

    @property
    def started_from(self) -> str | None:
        """The version or file from which an earlier try started."""
        return self._record.get("started_from")

    def begin(self, run_id: str, started_from: str | None) -> None:
        """Record the MLflow run and what the training starts from; delete the checkpoints of a finished run."""
        if self._is_history:
            self.lease.check()
            checkpoint.delete_all(self.uri)
            self._is_history = False
        self._write({"run_id": run_id, "started_from": started_from})

    def latest(self) -> Checkpoint | None:
        """The checkpoint to resume from; None where there is none. Raises RetryableError."""
        return None if self._is_history else checkpoint.load_latest(self.uri)

    def save(self, state: Checkpoint) -> None:
        """Write a checkpoint, unless another driver has taken the run over."""
        self.lease.check()
        checkpoint.save(
            self.uri, state, keep_last=self._job.keep_checkpoints, keep_every_epochs=self._job.keep_every_epochs
        )

    def finish(self, result: TrainResult) -> None:
        """Record the result."""
        self._write({"run_id": result.run_id, "result": asdict(result)})
        self.result = result

    def _write(self, record: dict[str, Any]) -> None:
        self.lease.check()
        record |= {"dataset_digest": self._digest}
        filesystem.write_bytes(filesystem.join(self.uri, "run.json"), json.dumps(record, indent=1).encode())


def directory_of(job: TrainJob, digest: str) -> str:
    """The folder of a job's run: by its key, and by all that decides the outcome on the DataSet's version `digest`.

    With a key and no version in the job it is one folder for all versions: the run keeps the one on which it began.
    """
    settings = with_former_names(job.model_dump(mode="json", exclude=_EXCLUDED))
    if not _keeps_its_version(job):
        settings |= {"digest": digest}
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return filesystem.join(job.checkpoint_uri, f"{job.run_key or 'auto'}-{fingerprint}")


def version_of(job: TrainJob) -> str | None:
    """The DataSet's version that a job names, or the one on which its run began; None: the current one."""
    if not _keeps_its_version(job):
        return job.dataset_digest
    return _read(directory_of(job, "")).get("dataset_digest")


def has_begun(job: TrainJob, digest: str) -> bool:
    """Whether an earlier try has begun this run; without a key, a run that has finished is another one."""
    record = _read(directory_of(job, digest))
    return bool(record) and (job.run_key is not None or not record.get("result"))


def _keeps_its_version(job: TrainJob) -> bool:
    return job.run_key is not None and job.dataset_digest is None


def _result(record: dict[str, Any]) -> TrainResult:
    for former, name in {"figures": "metrics", "pictures_uri": "plots_uri"}.items():  # the names in version 0.1.0
        if former in record:
            record[name] = record.pop(former)
    return TrainResult(**record)


def _read(folder: str) -> dict[str, Any]:
    uri = filesystem.join(folder, "run.json")
    try:
        record = json.loads(filesystem.read_bytes(uri))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RetryableError(f"{uri}: damaged ({error}); delete the folder to start over") from error
    assert isinstance(record, dict)
    return record
