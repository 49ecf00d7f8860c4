"""MLflow: one run for one training, with its settings, metrics and plots.

A server that goes away while epochs are trained does not stop them: what could not be sent stays in the checkpoint's
history and is sent after the next epoch, at the end, or by the next try.
"""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow
import pandas as pd
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from shardmean.jobs.common.local_paths import artifacts, store_uri
from shardmean.jobs.common.redaction import redact
from shardmean.jobs.tracking import plots, registry
from shardmean.jobs.tracking.client import connect, mlflow_error, short
from shardmean.jobs.tracking.history import params_of
from shardmean.model.dataset.manifest import report_uri
from shardmean.model.errors import UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from matplotlib.figure import Figure
    from mlflow.entities.model_registry import ModelVersion
    from numpy.typing import NDArray

    from shardmean.jobs.config.job import TrainJob
    from shardmean.model.dataset.manifest import Manifest
    from shardmean.model.evaluation.evaluator import Evaluation
    from shardmean.model.training.checkpoint import Checkpoint
    from shardmean.model.training.progress import EpochProgress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """The result of a training. `metrics` are of `split`; `run_url` needs an MLflow server.

    It is logged and shown: its URIs hold no user names and passwords.
    """

    run_id: str
    run_url: str | None
    tracking_uri: str
    model_name: str
    model_version: str
    aliases: list[str]
    best_epoch: int
    num_epochs: int
    split: str
    num_examples: int
    metrics: dict[str, float]
    plots_uri: str
    dataset_uri: str
    dataset_digest: str


class Tracker:
    """One training's MLflow run."""

    def __init__(self, job: TrainJob, manifest: Manifest, run_id: str | None) -> None:
        """Start a run, or resume `run_id`.

        Raises UserError for a deleted experiment or a refusal, RetryableError when MLflow can't be reached.
        """
        self._job = job
        self._manifest = manifest
        self.checkpoint_s: dict[int, float] = {}
        """Seconds of saving checkpoints, by epoch: known after the epoch's metrics were saved with them."""
        self.tracking_uri = connect(job.tracking)
        self._client = mlflow.MlflowClient()
        with self._errors():
            self.run_id = run_id if run_id and self._is_there(run_id) else self._start()
            self._client.update_run(self.run_id, status="RUNNING")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:
            with suppress(MlflowException):
                self._experiment_id()
            raise mlflow_error(self.tracking_uri, error) from error

    def _is_there(self, run_id: str) -> bool:
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != registry.NOT_FOUND:
                raise
            return False

    def _experiment_id(self) -> str | None:
        """The experiment's id; None before there is one. Raises UserError where it is deleted."""
        name = self._job.tracking.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return None
        if experiment.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment {name} is deleted in MLflow at {self.tracking_uri}: restore it (mlflow experiments "
                f"restore --experiment-id {experiment.experiment_id}) and repeat the command, nothing is lost; or set "
                "tracking.experiment to another name, which begins a new run"
            )
        return str(experiment.experiment_id)

    def _start(self) -> str:
        experiment_id = self._experiment_id() or self._client.create_experiment(
            self._job.tracking.experiment, artifact_location=self._artifact_uri()
        )
        with mlflow.start_run(experiment_id=experiment_id) as run:
            self._client.log_batch(
                run.info.run_id, params=[Param(*pair) for pair in params_of(self._job, self._manifest).items()]
            )
            mlflow.log_input(_dataset(self._job.dataset_uri, self._manifest.digest), context="training")
        return str(run.info.run_id)

    def _artifact_uri(self) -> str | None:
        """Where a new experiment keeps its artifacts; None: MLflow or its server decides."""
        uri = self._job.tracking.artifact_uri
        if uri is None:
            return str(artifacts()) if self.tracking_uri == store_uri() else None
        if self.tracking_uri.startswith("http") and filesystem.local_path(uri) is not None:
            log.warning(
                "experiment %s of %s keeps its artifacts in this machine's %s from now on: other machines can't read "
                "them, unless that is mounted there too; without tracking.artifact_uri the server chooses a location",
                self._job.tracking.experiment, self.tracking_uri, uri,
            )  # fmt: skip
        return uri

    def log_augmentation(self, images_NECHW: NDArray[np.uint8]) -> None:
        """Plot what augmentation does (see `augmentation_preview`); when MLflow is away, only warn."""
        with self._best_effort("no plot of augmentation"):
            self._log_plot("augmentation", plots.augmentation(images_NECHW))

    def log_dataset_report(self) -> None:
        """Log the DataSet's report to the run; without one, or when MLflow is away, only say so."""
        uri = report_uri(self._job.dataset_uri, self._manifest.digest)
        with self._best_effort("no report of the DataSet"):
            if filesystem.exists(uri):
                self._client.log_text(self.run_id, filesystem.read_bytes(uri).decode(), "dataset/report.html")
            else:
                log.info("%s: no such report, so the run in MLflow has none", uri)

    @contextmanager
    def _best_effort(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:
            log.warning("MLflow at %s cannot be reached (%s): %s", self.tracking_uri, short(error), consequence)

    def log_pretrained(self, uri: str) -> None:
        """Log which version or file a fine-tuning started from. Raises UserError and RetryableError."""
        with self._errors():
            self._client.set_tag(self.run_id, "started_from", uri)

    def log_progress(self, progress: EpochProgress) -> None:
        """Send how far an epoch is, which MLflow shows live. Does not wait for the answer."""
        values = {
            "progress/loss": progress.loss,
            "progress/examples_per_second": progress.examples_per_second,
            "progress/epoch": progress.epoch + 1,
        }
        values |= {f"progress/worker_{rank}/examples_per_second": rate for rank, rate in progress.worker_rates.items()}
        self._log_metrics(values, step=progress.total_examples, synchronous=False)

    def _log_metrics(self, values: dict[str, float], *, step: int, synchronous: bool = True) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics, synchronous=synchronous)

    def log_epochs(self, history: list[dict[str, float]]) -> None:
        """Send the metrics of all epochs that MLflow does not have yet; when it is away, only warn."""
        with self._best_effort("the metrics follow later"):
            self._send(history)

    def _send(self, history: list[dict[str, float]]) -> None:
        sent = {metric.step for metric in self._client.get_metric_history(self.run_id, "train_loss")}
        for epoch, metrics in enumerate(history, start=1):
            if epoch not in sent:
                saved = {"checkpoint_s": self.checkpoint_s[epoch]} if epoch in self.checkpoint_s else {}
                self._log_metrics(metrics | saved, step=epoch)

    def finish(
        self,
        final: Checkpoint,
        evaluation: Evaluation,
        split: str,
        example: bytes,
        judge: Callable[[mlflow.MlflowClient, ModelVersion], list[str]],
    ) -> TrainResult:
        """Log what is left and register the model; `judge` decides on its aliases and gives them.

        Safe to repeat: what an earlier try has logged or registered is used. Raises UserError and RetryableError.
        """
        metrics, name = evaluation.metrics(), self._job.tracking.registered_model
        with self._errors():
            self._send(final.history)
            names, deciding = self._manifest.class_names, self._job.early_stopping.metric
            for plot, figure in plots.of_training(final, evaluation, names, split=split, metric=deciding).items():
                self._log_plot(plot, figure)
            self._log_evaluation(evaluation, metrics, split)
            version = registry.register(self._client, self.run_id, name, final, example)
            aliases = judge(self._client, self._client.get_model_version(name, version))
            self._client.set_terminated(self.run_id, "FINISHED")
            run = self._client.get_run(self.run_id)
        page = f"{self.tracking_uri.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{self.run_id}"
        return TrainResult(
            run_id=self.run_id,
            run_url=page if self.tracking_uri.startswith("http") else None,
            tracking_uri=self.tracking_uri,
            model_name=name,
            model_version=version,
            aliases=aliases,
            best_epoch=final.best_epoch,
            num_epochs=final.epoch,
            split=split,
            num_examples=evaluation.num_examples,
            metrics=metrics,
            plots_uri=redact(f"{run.info.artifact_uri}/plots"),
            dataset_uri=self._job.dataset_uri,
            dataset_digest=self._manifest.digest,
        )

    def end(self, status: str) -> None:
        """Mark the run as FAILED or KILLED; when MLflow is away, only warn. A later try resumes the run."""
        with self._best_effort(f"the run is not marked as {status}"):
            self._client.set_terminated(self.run_id, status)

    def _log_evaluation(self, evaluation: Evaluation, metrics: dict[str, float], split: str) -> None:
        # The names of the other splits belong to the epochs' series.
        prefix = split if split == "test" else f"final_{split}"
        # All are logged at once, so an earlier try has logged all or none.
        if f"{prefix}_accuracy" not in self._client.get_run(self.run_id).data.metrics:
            self._log_metrics({f"{prefix}_{name}": value for name, value in metrics.items()}, step=0)
        table = pd.DataFrame({"class": self._manifest.class_names, **evaluation.per_class()})
        self._client.log_text(self.run_id, table.to_csv(index=False), f"evaluation/{split}_classes.csv")

    def _log_plot(self, name: str, figure: Figure) -> None:
        self._client.log_figure(self.run_id, figure, f"plots/{name}.png", save_kwargs={"dpi": 110})


def _dataset(uri: str, digest: str) -> MetaDataset:
    with warnings.catch_warnings():
        # Two of MLflow's own source types claim a local path and it warns of that.
        warnings.simplefilter("ignore")
        source = resolve_dataset_source(uri)
    return MetaDataset(source, name=uri.rstrip("/").rsplit("/", 1)[-1][:64], digest=digest)  # type: ignore[abstract] # as MLflow documents it
