"""A DataSet to a registered model: a DAG that runs when the DataSet's asset is updated, and by hand."""

from __future__ import annotations

import pendulum
from airflow.sdk import dag

from shardmean.dags.spark_operator import DATASET, MODEL, SparkJobOperator
from shardmean.dags.trigger_form import config_file, form, load_defaults
from shardmean.jobs.config.job import TrainJob

JOB = load_defaults(TrainJob, "train.yaml")
MAIN = [
    "num_epochs",
    "num_workers",
    "averaging.frequency",
    "optimizer.learning_rate",
    "batch_size_per_worker",
    "network",
]


@dag(
    schedule=[DATASET],
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params=form(JOB, MAIN),
    tags=["shardmean"],
)
def train_cnn() -> None:
    """Train a CNN by parameter averaging on the newest version of its DataSet (or, by hand, on any DataSet).

    The model is evaluated and registered in MLflow. A retry resumes from the last checkpoint, in the same MLflow run.
    When another DataSet than that of the config was published, the task is skipped and says how to train on it.
    """
    SparkJobOperator(
        task_id="train",
        command="train",
        config_file=config_file("train.yaml"),
        asset=MODEL,
        job=JOB,
    )


train_cnn()
