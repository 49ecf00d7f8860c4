"""Runs a program, follows its output, and ends it. Standard library only: it serves before anything is installed."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HEARTBEAT_S, GRACE_S = 4.0, 15.0


def follow(command: list[str], show: Callable[[str], bool], beat: Callable[[float], None], **options: Any) -> int:
    """Run a command, give each line of its output to `show`, and return its exit code.

    When `show` has shown nothing for a while (it says so), `beat` is called with the seconds since the start. The
    command has a session of its own, and all that runs there is ended when this call is interrupted or fails.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        **options,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    started = shown = time.monotonic()
    try:
        while True:
            line: str | None = ""
            with suppress(queue.Empty):
                line = lines.get(timeout=0.5)
            if line is None:
                return process.wait()
            now = time.monotonic()
            if line and show(line.rstrip()):
                shown = now
            elif now - shown > HEARTBEAT_S:
                beat(now - started)
                shown = now
    finally:
        _end_session(process)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None, "the output is a pipe"
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _end_session(process: subprocess.Popen[str]) -> None:
    """End what is left of a process's group: by SIGTERM, after a while by SIGKILL."""
    deadline = time.monotonic() + GRACE_S
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()  # a zombie counts as running
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
