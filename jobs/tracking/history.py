"""Which versions of a DataSet were trained with which settings, by MLflow's runs, those of version 0.1.0 among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

from shardmean.jobs.config.former_names import with_current_names
from shardmean.jobs.config.job import TrainJob
from shardmean.jobs.tracking.client import connect, mlflow_error

if TYPE_CHECKING:
    from shardmean.model.dataset.manifest import Manifest

MAX_RUNS = 1000
# What a run says of itself beside the settings that decide its outcome.
_OTHERS = ("dataset_uri", *TrainJob.CHANGEABLE)


def params_of(job: TrainJob, manifest: Manifest) -> dict[str, str]:
    """A training's settings as MLflow's params, with the DataSet's version and image."""
    described = job.model_dump(exclude={"tracking", "checkpoint_uri", "run_key", "spark", "airflow", "promote"})
    described |= {"dataset_digest": manifest.digest, "image": manifest.image.model_dump()}
    (flat,) = pd.json_normalize(described).to_dict("records")
    return {str(key): str(value) for key, value in flat.items()}


def finished_run(job: TrainJob, manifest: Manifest) -> str | None:
    """The run that has trained this version with these settings, its id; None where there is none.

    A training that starts from another model is never found: what its URI names may have changed. Raises UserError and
    RetryableError.
    """
    if job.fine_tuning.start_from is not None:
        return None
    uri = connect(job.tracking)
    client = mlflow.MlflowClient()
    try:
        experiment = client.get_experiment_by_name(job.tracking.experiment)
        if experiment is None:
            return None
        of_version = f"params.dataset_digest = '{manifest.digest}' and attributes.status = 'FINISHED'"
        runs = client.search_runs([experiment.experiment_id], of_version, max_results=MAX_RUNS)
    except MlflowException as error:
        raise mlflow_error(uri, error) from error
    # A setting that a run of an earlier version did not know had today's default then.
    defaults = params_of(TrainJob(dataset_uri="/", checkpoint_uri="/"), manifest)
    wanted = _deciding(params_of(job, manifest))
    for run in runs:
        if _deciding(defaults | with_current_names(run.data.params)) == wanted:
            return str(run.info.run_id)
    return None


def _deciding(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key.split(".")[0] not in _OTHERS}
