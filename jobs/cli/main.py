"""The command line: a function per command, whose docstring is its help; its errors become messages and exit codes.

Exit codes: 0; 2 for the user's mistakes (repeating can't help); 1 for failures that may pass (the same command may
succeed later); 130 when interrupted by Ctrl-C or SIGTERM. Imports nothing heavy: help and completion are quick.
"""

from __future__ import annotations

import functools
import getpass
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shardmean.jobs.cli.execution import exit_code, write_result
from shardmean.model.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardmean.jobs.config.loading import Job


app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="KEY=VALUE", default_factory=list, show_default=False, help="Such as averaging.frequency=10."
    ),
]
PipelineFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A pipeline's file, of which the command's section is taken.")
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="The registered model's name.")]
TrackingUri = Annotated[
    str | None, typer.Option(metavar="URI", help="MLflow's; else MLFLOW_TRACKING_URI, else this machine's store.")
]
Config = Annotated[Path | None, typer.Option(metavar="FILE", help="Settings of this command alone, in YAML or JSON.")]
Params = Annotated[
    str, typer.Option(metavar="JSON", help="An object of dotted keys; KEY=VALUE wins over it.", show_default=False)
]
Result = Annotated[str, typer.Option(metavar="URI", help="Where to write the result, or the error, as JSON.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        app(arguments, prog_name="shardmean")
    except SystemExit as ended:
        return int(ended.code or 0)
    raise AssertionError("Typer ends by SystemExit")


def _command(function: Callable[..., int | None]) -> Callable[..., NoReturn]:
    """Add a function to the command line; it returns an exit code, or None for 0."""

    @functools.wraps(function)
    def run(**options: Any) -> NoReturn:
        raise typer.Exit(exit_code(functools.partial(function, **options), options.get("result", "")))

    return app.command()(run)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"shardmean {version('shardmean')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Images to a registered model, on Spark."""


@_command
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pipeline's name.", show_default=False)] = "",
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder or table of images.", show_default=False)
    ] = "",
    converted: Annotated[
        Path | None, typer.Option("--from", metavar="FOLDER", help="Convert the configs of version 0.1.0 there.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to write it; else where Airflow looks.")
    ] = None,
) -> None:
    """Write a pipeline's file for a pile of images."""
    from shardmean.jobs.config.loading import pipelines_folder
    from shardmean.jobs.pipeline.starter import convert_configs, write_pipeline
    from shardmean.model.storage import filesystem

    if bool(name and source) == bool(converted) or bool(name) != bool(source):
        raise UserError("give NAME and SOURCE, or --from FOLDER")
    if converted is not None:
        file = convert_configs(converted, folder or converted / "pipelines")
    else:
        file = write_pipeline(name, filesystem.absolute(source), folder or pipelines_folder())
    typer.echo(f"wrote {file}\nnext: shardmean vectorize --pipeline {file}\n      shardmean train --pipeline {file}")


@_command
def vectorize(
    overrides: Overrides,
    pipeline: PipelineFile = None,
    config: Config = None,
    params: Params = "{}",
    result: Result = "",
    candidate: Annotated[
        bool, typer.Option("--candidate", help="Leave a new version unpublished, for `shardmean publish`.")
    ] = False,
) -> None:
    """Make or update a DataSet from images."""
    from shardmean.jobs.config.job import VectorizeJob
    from shardmean.jobs.vectorize import job

    settings = _load(VectorizeJob, pipeline, config, overrides, params)
    write_result(result, asdict(job.vectorize(settings, is_published=not candidate)))


@_command
def publish(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Its URI.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The candidate, as `vectorize` named it.")],
    result: Result = "",
) -> None:
    """Make a DataSet's candidate its current version, whatever its checks said."""
    from shardmean.jobs.checks.candidate import publish_candidate
    from shardmean.model.storage import filesystem

    uri = filesystem.absolute(dataset)
    manifest = publish_candidate(uri, version)
    typer.echo(f"{uri}: version {manifest.digest} is current")
    write_result(result, {"dataset_uri": uri, "digest": manifest.digest})


@_command
def train(
    overrides: Overrides,
    pipeline: PipelineFile = None,
    config: Config = None,
    params: Params = "{}",
    result: Result = "",
    skip_trained: Annotated[
        bool, typer.Option("--skip-trained", help="Do nothing where this version was trained with these settings.")
    ] = False,
    register_only: Annotated[
        bool, typer.Option("--register-only", help="Leave the new model challenger, whatever the gate says.")
    ] = False,
) -> None:
    """Train, evaluate and register a model; resume a run that was interrupted."""
    from shardmean.jobs.config.job import TrainJob
    from shardmean.jobs.train import job

    settings = _load(TrainJob, pipeline, config, overrides, params)
    skipped = job.skip_reason(settings) if skip_trained else None
    if skipped is not None:
        typer.echo(skipped["skipped"])
    write_result(result, skipped or asdict(job.train(settings, may_promote=not register_only)))


@_command
def evaluate(
    overrides: Overrides,
    version: Annotated[str, typer.Option(metavar="VERSION", help="Of the registered model; else the challenger.")] = "",
    pipeline: PipelineFile = None,
    config: Config = None,
    params: Params = "{}",
    result: Result = "",
) -> None:
    """Measure a registered model and the champion on the same rows, and show what the gate says."""
    from shardmean.jobs.config.job import TrainJob
    from shardmean.jobs.promote import job

    write_result(result, job.evaluate(_load(TrainJob, pipeline, config, overrides, params), version or None))


@_command
def promote(
    name: ModelName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="See `shardmean models NAME`.")],
    why: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the version.")] = "by hand",
    tracking_uri: TrackingUri = None,
) -> None:
    """Make a version of a registered model its champion, whatever the gate says."""
    from shardmean.jobs.promote.by_hand import promoter

    with promoter(name, tracking_uri) as aliases:
        aliases.promote(version, by=_user(), why=why)


@_command
def rollback(
    name: ModelName,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the version.")] = "by hand",
    tracking_uri: TrackingUri = None,
) -> None:
    """Make the former champion champion again, and hold it until a better model or a person replaces it."""
    from shardmean.jobs.promote.by_hand import promoter

    with promoter(name, tracking_uri) as aliases:
        aliases.rollback(by=_user(), why=why)


@_command
def models(name: ModelName, tracking_uri: TrackingUri = None) -> None:
    """Show the versions of a registered model."""
    from shardmean.jobs.promote.by_hand import promoter, show

    with promoter(name, tracking_uri) as aliases:
        show(name, aliases)


def _user() -> str:
    return getpass.getuser()


def _load(kind: type[Job], pipeline: Path | None, config: Path | None, overrides: list[str], params: str) -> Job:
    from shardmean.jobs.config.loading import load_job, load_stage

    if pipeline is None:
        return load_job(kind, config, overrides, params)
    if config is not None:
        raise UserError(f"--pipeline {pipeline} and --config {config}: give one of them")
    return load_stage(kind, pipeline, overrides, params)


@_command
def inspect(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Its URI.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read all of it and name every damaged file.")] = False,
    digest: Annotated[str | None, typer.Option(metavar="VERSION", help="The version; else the current one.")] = None,
) -> int:
    """Show what a DataSet holds."""
    from shardmean.jobs.vectorize.report.terminal import show_dataset
    from shardmean.model.storage import filesystem

    return show_dataset(filesystem.absolute(dataset), verify=verify, digest=digest)


@_command
def doctor() -> int:
    """Show what is wrong with this environment and how to fix it."""
    from shardmean.jobs.cli import doctor

    return doctor.examine()


@_command
def demo() -> int:
    """Run the whole pipeline on 1,797 handwritten digits."""
    from shardmean.jobs.local import demo

    return demo.demo()


@_command
def up(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback are for containers.")
    ] = "127.0.0.1",
    airflow_port: int = 8080,
    mlflow_port: int = 5000,
) -> int:
    """Run Airflow and MLflow on this machine until Ctrl-C."""
    from shardmean.jobs.local import demo, stack

    return stack.up(host=host, airflow_port=airflow_port, mlflow_port=mlflow_port, before_start=demo.write_first_images)
