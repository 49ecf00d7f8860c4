"""Runs one command: its errors become messages and exit codes, and its result is written where it was asked for."""

from __future__ import annotations

import json
import signal
import sys
import threading
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shardmean.model.errors import RetryableError, UserError

if TYPE_CHECKING:
    import functools
    from collections.abc import Iterator
    from types import FrameType

RESEND_S = 0.1
# What installs the packages of a command; those that start the whole stack need all.
EXTRAS = {"vectorize": "spark", "train": "train"}


def exit_code(run: functools.partial[int | None], result_uri: str) -> int:
    """Run a command and give its exit code; see `main`. Its error is written to `result_uri`, if there is one."""
    from shardmean.jobs.common.logging import set_up_logging
    from shardmean.jobs.common.parent_process import end_with_parent

    set_up_logging()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    end_with_parent()
    try:
        with _no_signal_lost():
            # Finds out before the work whether its result can be written.
            write_result(result_uri, {"error": "the job was killed before its end", "kind": "retryable"})
            return run() or 0
    except UserError as error:
        return _report(error, 2, "user", result_uri)
    except ModuleNotFoundError as error:
        command = run.func.__name__
        remedy = f"pip install 'shardmean[{EXTRAS.get(command, 'all')}]'"
        return _report(f"shardmean {command} needs {error.name}: {remedy}", 2, "user", result_uri)
    except (RetryableError, OSError) as error:
        return _report(error, 1, "retryable", result_uri)
    except KeyboardInterrupt:
        return _report("interrupted; run the same command to resume", 130, "retryable", result_uri)
    except Exception as error:
        traceback.print_exc()
        message = f"unexpected {type(error).__name__}: {error} (a bug: see the traceback)"
        return _report(message, 1, "retryable", result_uri)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _no_signal_lost() -> Iterator[None]:
    """Python drops an exception that is raised while it deletes an object: a signal that came just then is resent."""
    show, thread = sys.unraisablehook, threading.get_ident()
    timers: list[threading.Timer] = []

    def resend(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            show(lost)
            return
        timers.append(threading.Timer(RESEND_S, signal.pthread_kill, (thread, signal.SIGTERM)))
        timers[-1].start()

    sys.unraisablehook = resend
    try:
        yield
    finally:
        sys.unraisablehook = show
        for timer in timers:
            timer.cancel()


def _report(error: Exception | str, code: int, kind: str, result_uri: str) -> int:
    sys.stdout.flush()
    print(f"shardmean: error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    try:
        write_result(result_uri, {"error": str(error), "kind": kind})
    except (UserError, RetryableError) as problem:
        print(f"shardmean: the error could not be written to {result_uri}: {problem}", file=sys.stderr)  # noqa: T201
    return code


def write_result(uri: str, document: dict[str, Any]) -> None:
    """Write a result as JSON, unless the URI is empty. Raises UserError and RetryableError."""
    if uri:
        from shardmean.model.storage import filesystem

        filesystem.write_bytes(uri, json.dumps(document, indent=1).encode())
