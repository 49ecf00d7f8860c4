"""A pipeline in one file: a pile of images, its DataSet, its model, and how Airflow runs them. Imports no Airflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from shardmean.jobs.config.airflow import AirflowConfig, Name
from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.model.config.base import Settings

# What the file says once, and which stage's job takes it.
SECTIONS = {"checks": "vectorize", "promote": "train"}
STAGES = ("vectorize", "train")
PipelineName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,49}$")]


def _known_time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError("no such time zone: give a name of the IANA database, such as Europe/Berlin") from None
    return name


class Notification(Settings):
    """Whom a pipeline tells of what, by one of Airflow's connections."""

    connection_id: Name
    """Airflow's connection: of type smtp, slackwebhook, or http for any webhook that takes JSON."""
    kind: Annotated[str, Field(pattern="^(smtp|slack|webhook)$")]
    """smtp: a mail; slack: a message to a Slack webhook; webhook: a POST of JSON with the key text."""
    to: Annotated[list[Name], Field(max_length=100)] = []
    """Addresses of a mail."""
    events: Annotated[
        list[Annotated[str, Field(pattern="^(failure|approval|promotion|deadline)$")]], Field(min_length=1)
    ] = ["failure"]
    """When: a task failed for good, a model waits for approval, a model became champion, a deadline was missed."""

    @model_validator(mode="after")
    def _mail_has_addresses(self) -> Self:
        if self.kind == "smtp" and not self.to:
            raise ValueError("a mail needs addresses: set to: [someone@example.org]")
        return self


class PipelineAirflow(AirflowConfig):
    """How Airflow runs the pipeline's DAGs; the keys of AirflowConfig are the defaults of each stage's own."""

    schedule: Annotated[str, Field(max_length=250)] | None = None
    """Cron expression by which NAME_vectorize runs; null: by hand only."""
    timezone: Annotated[str, Field(max_length=100), AfterValidator(_known_time_zone)] = "UTC"
    """Time zone of the schedule, obeyed over changes of the clock."""
    owner: Name = "airflow"
    """Owner of all tasks."""
    tags: Annotated[list[Name], Field(max_length=50)] = []
    """Tags of the DAGs, beside shardmean and the pipeline's name."""
    access_control: dict[Name, list[Name]] = {}
    """What a role may do with the DAGs, for auth managers with permissions of a DAG: {team: [can_read, can_edit]}."""
    deadline_s: Annotated[float, Field(gt=0, le=10**8)] | None = None
    """Seconds from a run's start in the queue within which it must end; null: no limit."""
    notifications: Annotated[list[Notification], Field(max_length=20)] = []
    """Whom to tell of failures, approvals, promotions and missed deadlines."""


class Pipeline(Settings):
    """All of a pipeline. `checks` and `promote` of the file are settings of the stages that use them."""

    name: PipelineName
    """Begins the ids of the DAGs; the MLflow experiment and the registered model have it too, unless set."""
    vectorize: VectorizeJob
    train: TrainJob
    airflow: PipelineAirflow = PipelineAirflow()

    @model_validator(mode="before")
    @classmethod
    def _give_stages_what_they_share(cls, document: Any) -> Any:
        return with_shared_settings(document) if isinstance(document, Mapping) else document

    @model_validator(mode="after")
    def _stages_meet(self) -> Self:
        if self.train.dataset_uri != self.vectorize.dataset_uri:
            raise ValueError(
                f"train.dataset_uri is {self.train.dataset_uri} and that of vectorize is {self.vectorize.dataset_uri}: "
                "leave out the former; a training on another DataSet is a pipeline of its own"
            )
        return self


def with_shared_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's document in which each stage has what the file says once; a stage's own value wins.

    What is no section where one is expected is left as it is, for the check to refuse.
    """
    filled = {key: value for key, value in document.items() if key not in SECTIONS}
    for section, stage in SECTIONS.items():
        if section in document:
            _fill(filled, stage, {section: document[section]})
    airflow = document.get("airflow")
    if isinstance(airflow, Mapping):
        common = {key: value for key, value in airflow.items() if key in AirflowConfig.model_fields}
        for stage in STAGES:
            _fill(filled, stage, {"airflow": common})
    vectorize, name = document.get("vectorize"), document.get("name")
    if isinstance(vectorize, Mapping) and "dataset_uri" in vectorize:
        _fill(filled, "train", {"dataset_uri": vectorize["dataset_uri"]})
    if isinstance(name, str):
        _fill(filled, "train", {"tracking": {"experiment": name, "registered_model": name}})
    return filled


def _fill(document: dict[str, Any], section: str, defaults: Mapping[str, Any]) -> None:
    """Give a section of a document what it lacks, level by level, without changing what others hold."""
    present = document.get(section, {})
    if not isinstance(present, Mapping):
        return
    filled = dict(present)
    for key, value in defaults.items():
        if key not in filled:
            filled[key] = value
        elif isinstance(value, Mapping):
            _fill(filled, key, value)
    document[section] = filled
