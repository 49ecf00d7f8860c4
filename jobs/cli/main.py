"""The command line, and what spark-submit runs: parse, load the config, run, report.

Exit codes: 0; 2 for the user's mistakes (repeating can't help); 1 for the world's (the same command may succeed);
130 when stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmean.jobs.common.logging import set_up_logging
from shardmean.jobs.config.job import TrainJob, VectorizeJob, load_job
from shardmean.model.errors import RetryableError, UserError
from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

AGAIN_S = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parsed(arguments)
    set_up_logging()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_terminate)
    try:
        with _no_signal_lost():
            code: int = options.run(options)
            return code
    except UserError as error:
        return _fail(options, error, 2, "user")
    except (RetryableError, OSError) as error:
        return _fail(options, error, 1, "retryable")
    except KeyboardInterrupt:
        return _fail(options, RetryableError("stopped; the same command goes on"), 130, "retryable")
    except Exception as error:
        traceback.print_exc()
        return _fail(
            options, RetryableError(f"unexpected {type(error).__name__}: {error} (a bug: see above)"), 1, "retryable"
        )


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes overrides from one place only; here they may stand between options too.
    if any(word.startswith("-") or not hasattr(options, "overrides") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _on_terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _no_signal_lost() -> Iterator[None]:
    """Python goes on after what is raised while it removes an object: a SIGTERM that came just then comes again."""
    show, thread = sys.unraisablehook, threading.get_ident()
    waiting: list[threading.Timer] = []

    def send_again(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            show(lost)
            return
        waiting.append(threading.Timer(AGAIN_S, signal.pthread_kill, (thread, signal.SIGTERM)))
        waiting[-1].start()

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = show
        for timer in waiting:
            timer.cancel()


def _fail(options: argparse.Namespace, error: Exception, code: int, kind: str) -> int:
    sys.stdout.flush()
    print(f"shardmean: error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    _write_result(options, {"error": str(error), "kind": kind}, quietly=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shardmean", description="Images to a registered model, on Spark.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_job(commands, "vectorize", _vectorize, "make or update a DataSet from images")
    _add_job(commands, "train", _train, "train, evaluate and register a model; resumes a run that was cut off")
    show = commands.add_parser("inspect", help="say what a DataSet holds")
    show.add_argument("dataset", help="the DataSet's URI")
    show.add_argument("--verify", action="store_true", help="read all of it and name every damaged file")
    show.add_argument("--digest", metavar="VERSION", help="the version to inspect; the current one unless given")
    show.set_defaults(run=_inspect)
    doctor = commands.add_parser("doctor", help="say what is wrong with this environment and how to mend it")
    doctor.set_defaults(run=_doctor)
    demo = commands.add_parser("demo", help="run the whole pipeline on 1,797 handwritten digits")
    demo.set_defaults(run=_demo)
    up = commands.add_parser("up", help="run Airflow and MLflow on this machine until Ctrl-C")
    up.add_argument("--host", default="127.0.0.1", help="address to listen on; others than loopback are for containers")
    up.add_argument("--airflow-port", type=int, default=8080)
    up.add_argument("--mlflow-port", type=int, default=5000)
    up.set_defaults(run=_up)
    return parser


def _add_job(commands: Any, name: str, run: Any, text: str) -> None:
    command = commands.add_parser(name, help=text)
    command.add_argument("--config", type=Path, metavar="FILE", help="YAML or JSON")
    command.add_argument(
        "--params", default="{}", metavar="JSON", help="settings as an object of dotted keys; key=value wins over them"
    )
    command.add_argument("--result", metavar="URI", help="where to write the result, or the error, as JSON")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for example averaging.frequency=10")
    command.set_defaults(run=run)


def _vectorize(options: argparse.Namespace) -> int:
    from shardmean.jobs.vectorize.job import vectorize

    job = load_job(VectorizeJob, options.config, options.overrides, options.params)
    _check_result(options)
    _write_result(options, asdict(vectorize(job)))
    return 0


def _train(options: argparse.Namespace) -> int:
    from shardmean.jobs.train.job import train

    job = load_job(TrainJob, options.config, options.overrides, options.params)
    _check_result(options)
    _write_result(options, asdict(train(job)))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from shardmean.jobs.vectorize.report.terminal import show_dataset

    return show_dataset(filesystem.absolute(options.dataset), verify=options.verify, digest=options.digest)


def _doctor(_options: argparse.Namespace) -> int:
    from shardmean.jobs.cli.doctor import examine

    return examine()


def _demo(_options: argparse.Namespace) -> int:
    from shardmean.jobs.local.demo import demo

    return demo()


def _up(options: argparse.Namespace) -> int:
    from shardmean.jobs.local.demo import write_first_images
    from shardmean.jobs.local.stack import up

    ports = {"airflow_port": options.airflow_port, "mlflow_port": options.mlflow_port}
    return up(host=options.host, **ports, before_start=write_first_images)


def _check_result(options: argparse.Namespace) -> None:
    """Find out before the work whether its result can be written."""
    if options.result:
        _write_result(options, {"error": "the job was cut off before its end", "kind": "retryable"})


def _write_result(options: argparse.Namespace, document: dict[str, Any], *, quietly: bool = False) -> None:
    uri = getattr(options, "result", None)
    if not uri:
        return
    try:
        filesystem.write_bytes(uri, json.dumps(document, indent=1).encode())
    except (UserError, RetryableError) as error:
        if not quietly:
            raise
        print(f"shardmean: the error could not be written to {uri}: {error}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
