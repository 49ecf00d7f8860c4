"""A session that the caller has open is used and stays open; an interrupt cancels the job and nothing else."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from shardmean.jobs.spark.session import open_session, run_job, run_tasks


@pytest.fixture
def context(spark):
    return spark.sparkContext


def test_the_callers_session_is_used_and_stays_open(spark, caplog):
    for _ in range(2):
        with open_session("ours", {"spark.master": "local[3]"}) as session:
            assert session.sparkContext is spark.sparkContext
            assert run_tasks(session, abs, [-1, 2]) == [1, 2]
    assert spark.range(3).count() == 3
    assert caplog.text == ""


def test_settings_that_the_callers_session_lacks_are_named_without_their_values(spark, caplog):
    before = dict(spark.sparkContext.getConf().getAll())
    key = "spark.hadoop.fs.s3a.secret.key"
    with open_session("ours", {"spark.master": "local[2]", key: "secret!", "spark.app.name": "tests"}) as session:
        assert session.sparkContext.master == "local[3]"
    assert (
        f"open already (local[3]) and is used as it is, so these settings have no effect: {key}, spark.master; to"
        in (caplog.text)
    )
    assert "secret!" not in caplog.text
    assert dict(spark.sparkContext.getConf().getAll()) == before


def test_a_failure_within_leaves_the_callers_session_open(spark):
    with pytest.raises(ZeroDivisionError), open_session("ours", {}):
        raise ZeroDivisionError
    assert spark.range(3).count() == 3


def test_an_interrupt_cancels_the_job_and_logs_no_traceback(context, wait_for, caplog):
    running = context.statusTracker().getActiveJobsIds

    def interrupt() -> None:
        wait_for(running, what="the job")
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        run_job(context, lambda: context.parallelize([300, 300], 2).map(time.sleep).collect())
    interrupter.join()
    wait_for(lambda: not running(), what="the job's end")
    assert caplog.text == ""
    assert context.parallelize([1]).collect() == [1]
