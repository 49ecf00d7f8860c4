"""The runner's progress lines and its second try."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from shardmean.jobs.spark import task_runner
from shardmean.jobs.spark.session import run_tasks
from shardmean.jobs.spark.task_runner import LocalRunner, Operation, SparkRunner, progress, run_all
from shardmean.model.errors import RetryableError, UserError


def test_progress_says_done_rate_rejected_and_time_left():
    line = progress(3_000, 12_000, 7, 6.0)
    assert line == "3,000 of 12,000 images (25 %), 7 rejected, 500 images/s, 18 s left"
    assert progress(0, 10, 0, 4.0) == "0 of 10 images (0 %), 0 rejected, 4 s"


def failing(error: Exception, times: int) -> tuple[Operation[int, int], list[int]]:
    """An operation that fails for the task 2 so many times, and the tasks done, as they come."""
    done: list[int] = []

    def do(task: int) -> int:
        done.append(task)
        if task == 2 and done.count(2) <= times:
            raise error
        return 10 * task

    return Operation(do, size=lambda _: 1, num_rejected=lambda _: 0), done


def test_what_the_world_refuses_is_tried_once_more_and_alone():
    operation, done = failing(RetryableError("away"), 1)
    assert run_all(LocalRunner(), operation, [1, 2, 3]) == [10, 20, 30]
    assert done == [1, 2, 3, 2]
    with pytest.raises(RetryableError, match="away"):
        run_all(LocalRunner(), failing(RetryableError("away"), 2)[0], [1, 2, 3])


def test_the_users_mistake_is_not_tried_again():
    operation, done = failing(UserError("no such store"), 1)
    with pytest.raises(UserError, match="no such store"):
        run_all(LocalRunner(), operation, [1, 2, 3])
    assert done == [1, 2, 3]


def test_a_task_that_spark_runs_twice_counts_once(spark, monkeypatch):
    """As after an executor is lost, whose finished tasks are run again."""

    def twice(session, run, tasks):
        return [run_tasks(session, run, tasks) for _ in range(2)][1]

    @contextmanager
    def at_the_end(_interval_s, log_progress):
        yield
        log_progress()

    lines = []
    monkeypatch.setattr(task_runner, "run_tasks", twice)
    monkeypatch.setattr(task_runner, "run_periodically", at_the_end)
    monkeypatch.setattr(task_runner, "progress", lambda *counts: lines.append(counts[:3]))
    operation = Operation(do=abs, size=lambda task: 10 * task, num_rejected=lambda report: report)
    with SparkRunner("twice", {}) as runner:
        assert runner.run(operation, [1, 2]) == [1, 2]
    assert lines == [(30, 30, 3)]
