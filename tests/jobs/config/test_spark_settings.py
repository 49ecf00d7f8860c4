"""Spark's own settings in a config file, on the command line and in a form."""

from __future__ import annotations

import json

import pytest
import yaml

from shardmean.jobs.config.job import TrainJob
from shardmean.jobs.config.loading import load_job
from tests.jobs.config.loaded import YAML, refusal, train_job


def test_spark_settings_from_every_place(write):
    path = write(YAML + 'spark: {spark.executor.memory: 1g, spark.task.cpus: "2"}\n')
    params = json.dumps({"spark": {"spark.executor.memory": "2g"}})
    job = load_job(TrainJob, path, ['spark={"spark.master": "local[2]"}'], params)
    assert job.spark == {"spark.executor.memory": "2g", "spark.task.cpus": "2", "spark.master": "local[2]"}


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("spark.master=yarn", {"spark.master": "yarn"}),
        ("spark.master=local[2]", {"spark.master": "local[2]"}),
        ("spark.master=spark://host:7077", {"spark.master": "spark://host:7077"}),
        ("spark.executor.instances=2", {"spark.executor.instances": "2"}),
        ("spark.speculation=true", {"spark.speculation": "true"}),
        ("spark.memory.fraction=0.5", {"spark.memory.fraction": "0.5"}),
        ("spark.spark.executor.memory=1g", {"spark.executor.memory": "1g"}),
        ("spark={'spark.executor.memory': 1g}", {"spark.executor.memory": "1g"}),
        ("spark={spark: {executor: {memory: 1g}}}", {"spark.executor.memory": "1g"}),
        ("spark.executor.memory=null", {}),
    ],
)
def test_spark_settings_on_the_command_line(override, setting):
    """The help says `KEY=VALUE, such as averaging.frequency=10`: Spark's own keys are such keys too."""
    assert train_job(override).spark == setting
    key, _, value = override.partition("=")
    if key != "spark":
        assert train_job(**{key: yaml.safe_load(value)}).spark == setting, "so in --params"


def test_later_spark_settings_win_in_whatever_form_they_are(write):
    file = write(YAML + "spark: {spark.executor.memory: 1g, spark.speculation: true}\n")
    overrides = ["spark.executor.memory=2g", "spark={'spark.executor.memory': 3g}", "spark.speculation.interval=1s"]
    job = load_job(TrainJob, file, overrides)
    assert job.spark == {
        "spark.executor.memory": "3g", "spark.speculation": "true", "spark.speculation.interval": "1s"
    }  # fmt: skip
    assert load_job(TrainJob, file, overrides[:1]).spark["spark.executor.memory"] == "2g"


@pytest.mark.parametrize(
    ("text", "override", "part"),
    [
        (
            "spark: {master: yarn}",
            "",
            "spark: master is no setting of Spark's, whose names begin with spark.: write spark.",
        ),
        (
            "",
            "spark={master: yarn}",
            "spark: master is no setting of Spark's, whose names begin with spark.: write spark.",
        ),
        ("", "spark={executor: {cores: 2}}", "executor.cores is no setting of Spark's"),
        ("", "spark.jars=[a, b]", "spark: spark.jars is ['a', 'b']: expected text, a number, true or false"),
        ("", "spark=yarn", "spark = 'yarn': expected Spark's keys with values"),
        ("spark: yarn", "spark.master=yarn", "spark = 'yarn': expected Spark's keys with values"),
    ],
)
def test_what_is_no_setting_of_sparks_is_refused(write, text, override, part):
    assert part in refusal(file=write(YAML + text), overrides=[override] if override else [])
