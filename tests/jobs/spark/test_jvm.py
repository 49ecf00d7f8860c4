"""What happens when Spark's JVM ends beside its driver: a clear message, and the next session has a JVM of its own."""

from __future__ import annotations

import subprocess
import sys

# 300 MiB a task come back to a heap of 512 MiB; then the JVM is killed from outside; then all is well. At last the JVM
# of a session is killed that the caller opened.
SCRIPT = """
import psutil
from pyspark.sql import SparkSession
from shardmean.jobs.spark.session import open_session, run_tasks
from shardmean.jobs.spark.task_runner import Operation, SparkRunner
from shardmean.model.errors import RetryableError

def kill(jvm):
    jvm.kill()
    jvm.wait()

def jvm():
    return next(child for child in psutil.Process().children() if child.name() == "java")

small = {"spark.master": "local[2]", "spark.driver.memory": "512m", "spark.driver.maxResultSize": "0"}
try:
    with open_session("too large", small) as session:
        run_tasks(session, bytes, [300 * 2**20] * 2)
except RetryableError as error:
    print(error)
work = Operation(do=bytes, size=lambda _: 1, num_rejected=lambda _: 0)
try:
    with SparkRunner("killed", {"spark.master": "local[2]"}) as runner:
        runner.run(work, [1])
        kill(jvm())
        runner.run(work, [1])
except RetryableError as error:
    print(error)
with open_session("well", {"spark.master": "local[2]"}) as session:
    print(run_tasks(session, bytes, [1, 2]))
callers = SparkSession.builder.master("local[2]").getOrCreate()
kill(jvm())
with open_session("well", {"spark.master": "local[1]"}) as session:
    print(session.sparkContext.master, run_tasks(session, bytes, [1, 2]))
"""


def test_a_jvm_that_ends_is_told_of_and_replaced():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    first, second, *others = [line for line in done.stdout.splitlines() if not line.startswith("Terminating")]
    assert first == second
    assert first.startswith("Spark's JVM has ended: it ran out of memory, or")
    assert "raise spark.driver.memory" in first
    assert others == [repr([bytes(1), bytes(2)]), f"local[1] {[bytes(1), bytes(2)]}"]
