"""Images to a DataSet: a DAG that runs on a schedule and by hand, and announces the DataSet as an asset."""

from __future__ import annotations

import pendulum
from airflow.sdk import dag

from shardmean.dags.spark_operator import DATASET, SparkJobOperator
from shardmean.dags.trigger_form import config_file, form, load_defaults
from shardmean.jobs.config.job import VectorizeJob

JOB = load_defaults(VectorizeJob, "vectorize.yaml")
MAIN = ["source.uri", "dataset_uri", "image.height_px", "image.width_px", "image.channels", "max_rejected_fraction"]


@dag(
    schedule=JOB.schedule,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params=form(JOB, MAIN),
    tags=["shardmean"],
)
def vectorize_images() -> None:
    """Read images, make Parquet shards and publish them as a new version of a DataSet.

    With nothing new the task is skipped; a new version starts `train_cnn`.
    """
    SparkJobOperator(
        task_id="vectorize",
        command="vectorize",
        config_file=config_file("vectorize.yaml"),
        asset=DATASET,
        job=JOB,
    )


vectorize_images()
