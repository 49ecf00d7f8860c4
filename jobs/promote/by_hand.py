"""What a person does with a registered model on the command line: promote, roll back, look."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.table import Table

from shardmean.jobs.common.redaction import truncate_printable
from shardmean.jobs.config.job import TrackingConfig
from shardmean.jobs.config.promote import PromoteConfig
from shardmean.jobs.promote.promotion import (
    NOT_FOUND,
    PROMOTED_AT,
    PROMOTED_BECAUSE,
    PROMOTED_BY,
    ROLLED_BACK,
    Promoter,
)
from shardmean.jobs.tracking.client import connect, mlflow_error
from shardmean.jobs.tracking.measurement import ACCURACY, DATASET, ROWS
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_TEXT, PIPE_WIDTH = 100, 200


@contextmanager
def promoter(name: str, tracking_uri: str | None) -> Iterator[Promoter]:
    """The aliases of a registered model, with MLflow's errors as ours. Raises UserError where there is none."""
    uri = connect(TrackingConfig(uri=tracking_uri))
    client = mlflow.MlflowClient()
    try:
        client.get_registered_model(name)
        yield Promoter(client, name, PromoteConfig())
    except MlflowException as error:
        if error.error_code in (NOT_FOUND, "INVALID_PARAMETER_VALUE"):
            raise UserError(f"MLflow at {uri} has no registered model {name!r}, or no such version of it") from error
        raise mlflow_error(uri, error) from error


def show(name: str, promoter: Promoter) -> None:
    """Print the versions, the newest first, and whether a rollback holds one."""
    table = Table("version", "aliases", "accuracy", "on", "DataSet", "notes", title=name, title_justify="left")
    aliases = promoter.aliases()
    for version in promoter.versions():
        number, tags = str(version.version), version.tags
        own = sorted(alias for alias, of in aliases.items() if of == number)
        accuracy = f"{float(tags[ACCURACY]):.2%}" if ACCURACY in tags else ""
        split, _, rows = tags.get(ROWS, "").partition(":")
        table.add_row(
            number, ", ".join(own), accuracy, f"{split} {rows[:8]}".strip(), tags.get(DATASET, "")[:8], _notes(tags)
        )
    # In a pipe nothing is known of the reader's width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table, markup=False)
    held = promoter.hold()
    if held is not None:
        console.print(f"held at version {held} by a rollback, until a better model or `shardmean promote` replaces it")


def _notes(tags: dict[str, str]) -> str:
    notes = []
    if PROMOTED_AT in tags:
        notes.append(f"{tags[PROMOTED_AT]} by {tags.get(PROMOTED_BY)}: {tags.get(PROMOTED_BECAUSE)}")
    if ROLLED_BACK in tags:
        notes.append(f"rolled back {tags[ROLLED_BACK]}")
    return truncate_printable("; ".join(notes), MAX_TEXT)
