"""What Airflow parses: the DAGs of all pipelines in the folder `pipelines` of SHARDMEAN_CONFIG_DIR."""

from __future__ import annotations

from shardmean.dags import load_pipelines
from shardmean.jobs.config.loading import pipelines_folder

globals().update(load_pipelines(pipelines_folder()))
