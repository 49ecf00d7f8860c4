"""A pipeline's file: what it says once and which stage takes it, and how the command line overrides a stage."""

from __future__ import annotations

import pytest

from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.loading import load_job, load_pipeline, load_stage
from shardmean.model.errors import UserError

PIPELINE = """
name: pets
vectorize: {source: {uri: /images}, dataset_uri: /data, airflow: {retries: 7}}
train: {checkpoint_uri: "${vectorize.dataset_uri}/runs", num_epochs: 9, tracking: {experiment: mine}}
checks: {min_images_per_class: 5}
promote: {metric: f1_macro, min_metrics: {accuracy: 0.5}}
airflow: {schedule: "0 3 * * *", retries: 1, pool: gpus, owner: ann}
spark_note: 1
"""


@pytest.fixture
def file(write):
    return write(PIPELINE.replace("spark_note: 1\n", ""), "pets.yaml")


def test_stages_share_what_the_file_says_once_and_their_own_values_win(file):
    pipeline = load_pipeline(file)
    assert pipeline.train.dataset_uri == pipeline.vectorize.dataset_uri == "/data"
    assert pipeline.train.checkpoint_uri == "/data/runs", "references reach over sections"
    assert (pipeline.train.tracking.experiment, pipeline.train.tracking.registered_model) == ("mine", "pets")
    assert (pipeline.vectorize.airflow.retries, pipeline.train.airflow.retries) == (7, 1)
    assert pipeline.vectorize.airflow.pool == pipeline.train.airflow.pool == "gpus"
    assert pipeline.vectorize.checks.min_images_per_class == 5
    assert (pipeline.train.promote.metric, pipeline.train.promote.min_metrics) == ("f1_macro", {"accuracy": 0.5})
    assert (pipeline.airflow.schedule, pipeline.airflow.owner, pipeline.airflow.timezone) == ("0 3 * * *", "ann", "UTC")


def test_a_stage_is_the_pipelines_with_overrides_on_top(file):
    assert load_stage(VectorizeJob, file) == load_pipeline(file).vectorize
    job = load_stage(TrainJob, file, ["num_epochs=3", "promote.metric=loss"], '{"averaging.frequency": 9}')
    assert (job.num_epochs, job.promote.metric, job.averaging.frequency) == (3, "loss", 9)
    assert job.dataset_uri == "/data"


def test_a_key_that_no_pipeline_has_is_named(write):
    with pytest.raises(UserError, match="spark_note: unknown key"):
        load_pipeline(write(PIPELINE))


def test_a_wrong_key_of_a_stage_is_named_in_full(write):
    text = PIPELINE.replace("spark_note: 1\n", "").replace("num_epochs: 9", "num_epoch: 9")
    with pytest.raises(UserError, match=r"train\.num_epoch: unknown key; did you mean train\.num_epochs\?"):
        load_pipeline(write(text))
    with pytest.raises(UserError, match=r"num_epoch: unknown key; did you mean num_epochs\?"):
        load_stage(TrainJob, write(text))


def test_a_stage_that_is_missing_or_no_section(write):
    file = write("name: pets\nvectorize: 5\n")
    for kind, stage in ((TrainJob, "train"), (VectorizeJob, "vectorize")):
        with pytest.raises(UserError, match=f"no section {stage}; add it"):
            load_stage(kind, file)
    with pytest.raises(UserError, match="vectorize = 5: a section, which takes no value itself"):
        load_pipeline(file)


def test_a_training_on_another_dataset_is_another_pipeline(write):
    text = PIPELINE.replace("spark_note: 1\n", "").replace("num_epochs: 9", "dataset_uri: /other")
    with pytest.raises(UserError, match=r"train\.dataset_uri is /other and that of vectorize is /data"):
        load_pipeline(write(text))


def test_the_schedule_of_a_config_of_0_1_0_is_left_out_with_a_message(write, caplog):
    job = load_job(VectorizeJob, write("source: {uri: /images}\ndataset_uri: /data\nschedule: '0 3 * * *'\n"))
    assert job.dataset_uri == "/data"
    assert "schedule is left out: the DAG's schedule is airflow.schedule in a pipeline's file" in caplog.text


def test_notifications_need_what_their_kind_sends(write):
    section = "notifications: [{connection_id: mail, kind: smtp}]"
    with pytest.raises(UserError, match="a mail needs addresses"):
        load_pipeline(write(PIPELINE.replace("spark_note: 1\n", "").replace("owner: ann", section)))
