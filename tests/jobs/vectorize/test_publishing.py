"""Publishing: whatever kills a run and wherever, the last version stays whole, and the next run completes."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import shardmean.jobs.vectorize.update
from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.dataset.manifest import load_manifest, manifest_uri
from shardmean.model.errors import LeaseLostError, RetryableError, UserError
from shardmean.model.storage import conditional, filesystem
from shardmean.model.storage.atomic_file import LocalFile
from tests.jobs.pile import GONE, Pile, picture
from tests.jobs.whole import check_whole, rows_of
from tests.model.like_hdfs import pretend_hdfs
from tests.paths import ROOT

KILLED_RUN = """
import os, signal, sys
from shardmean.jobs.config.job import VectorizeJob
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.storage import conditional, filesystem

def deadly(original):
    def write(uri, *content):
        if sys.argv[2] in uri:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(uri, *content)
    return write

filesystem.write_bytes = deadly(filesystem.write_bytes)
conditional.write_if_unchanged = deadly(conditional.write_if_unchanged)
vectorize(VectorizeJob.model_validate_json(sys.argv[1]), runner=LocalRunner())
"""


def deadly(original, number: int, count, *, after: bool):
    def step(*arguments):
        is_last = next(count) == number
        if is_last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return step


def killed_at(pile: Pile, number: int, *, after: bool) -> bool:
    """Run in a process that dies by SIGKILL before or after this step of writing a file; False when it ended before."""
    child = os.fork()
    if child == 0:
        try:
            count = itertools.count(1)
            LocalFile.flush = deadly(LocalFile.flush, number, count, after=after)
            LocalFile.publish = deadly(LocalFile.publish, number, count, after=after)
            LocalFile.publish_new = deadly(LocalFile.publish_new, number, count, after=after)
            pile.run()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("after", [False, True])
def test_a_run_killed_at_any_write_leaves_the_last_version_whole(pile, is_first, after):
    pile.write({f"a/{number}": number for number in range(40)})
    if not is_first:
        pile.run()
        pile.write({"a/3": 100, "a/5": GONE} | {f"b/{number}": 200 + number for number in range(8)})
    digests = {None} if is_first else {load_manifest(pile.uri).digest}
    expected = pile.run("undisturbed").digest
    rows = rows_of(str(pile.home / "undisturbed"))[["id", "features", "split"]]
    number = 1
    state = pile.home / "before"
    if not is_first:
        shutil.copytree(pile.uri, state)
    ended = set()
    while True:
        shutil.rmtree(pile.uri, ignore_errors=True)
        if not is_first:
            shutil.copytree(state, pile.uri)
        if not killed_at(pile, number, after=after):
            break
        try:
            found = check_whole(pile.uri).digest
        except UserError:
            found = None
        ended.add(found)
        result = pile.run()
        assert found in digests | {result.digest}
        check_whole(pile.uri)
        assert rows_of(pile.uri)[["id", "features", "split"]].equals(rows)
        if is_first:
            assert result.digest == expected
        number += 1
    assert number > 8
    assert len(ended) == 2, "the version before and the one after, and nothing between"


@pytest.fixture
def in_bucket(new_bucket):
    """A bucket with images, and a function that writes more of them."""
    bucket = new_bucket()

    def write(files):
        for path, content in files.items():
            filesystem.write_bytes(filesystem.join(bucket, "images", *f"{path}.ppm".split("/")), picture(content))

    write({f"{name}/{number}": 100 * place + number for place, name in enumerate("ab") for number in range(20)})
    return bucket, write


def bucket_job(pile: Pile, bucket: str):
    return pile.job().model_copy(
        update={
            "source": SourceConfig(uri=filesystem.join(bucket, "images")),
            "dataset_uri": filesystem.join(bucket, "set"),
        }
    )


def test_a_store_without_rename(pile, in_bucket):
    """Growth, versions, the lease and cleaning on S3, and a run killed before its first and its last step."""
    bucket, write = in_bucket
    job = bucket_job(pile, bucket)
    first = vectorize(job, runner=LocalRunner())
    assert check_whole(job.dataset_uri).digest == first.digest
    assert not vectorize(job, runner=LocalRunner()).changed
    write({"a/new": 500, "b/new": 501})
    filesystem.delete(filesystem.join(bucket, "images", "a", "3.ppm"))
    for step in ("/shards/t", "/manifest.json"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", KILLED_RUN, job.model_dump_json(), step]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert check_whole(job.dataset_uri).digest == first.digest
    second = vectorize(job.model_copy(update={"keep_versions": 1, "clean_after_hours": 0}), runner=LocalRunner())
    check_whole(job.dataset_uri)
    paths = rows_of(job.dataset_uri).path.tolist()
    assert len(paths) == 41
    assert "a/3.ppm" not in paths
    assert filesystem.list_names(filesystem.join(job.dataset_uri, "versions")) == [f"{second.digest}.json"]
    named = {shard.name for shard in load_manifest(job.dataset_uri).shards}
    assert set(filesystem.list_names(filesystem.join(job.dataset_uri, "shards"))) == named


@pytest.fixture
def meanwhile(monkeypatch):
    """A function that has something done while a run reads its images."""

    def meanwhile(act):
        original = shardmean.jobs.vectorize.update.vectorize_partition

        def meddled(*arguments):
            monkeypatch.setattr(shardmean.jobs.vectorize.update, "vectorize_partition", original)
            act()
            return original(*arguments)

        monkeypatch.setattr(shardmean.jobs.vectorize.update, "vectorize_partition", meddled)

    return meanwhile


def test_of_two_runs_at_once_one_wins_and_the_other_says_so(pile, meanwhile):
    refused = []

    def second():
        with pytest.raises(RetryableError) as caught:
            pile.run()
        refused.append(str(caught.value))

    meanwhile(second)
    pile.run()
    check_whole(pile.uri)
    assert f"the ETL of {pile.uri} is already running: process {os.getpid()} on " in refused[0]
    assert "wait until it ends, or stop it, then repeat the command" in refused[0]


def test_a_run_that_was_taken_over_publishes_nothing(pile, meanwhile):
    first = pile.run()
    pile.write({"a/new": 7})
    holder = {"pid": 1, "host": "elsewhere"}
    meanwhile(lambda: filesystem.write_bytes(f"{pile.uri}/lease/00000099.json", json.dumps(holder).encode()))
    before = {file.name for file in Path(pile.uri).rglob("*") if file.parent.name != "lease"}
    with pytest.raises(LeaseLostError, match=r"was taken over by process 1 on elsewhere .* writes nothing more"):
        pile.run()
    assert check_whole(pile.uri).digest == first.digest
    after = {file.name for file in Path(pile.uri).rglob("*") if file.parent.name not in ("lease", "shards")}
    assert after <= before


@pytest.mark.parametrize("store", ["local", "s3"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_run_that_slept_before_its_last_write_does_not_replace_the_winners(
    pile, in_bucket, monkeypatch, store, is_first
):
    """It still held the lease when it looked; while it sleeps, another takes the lease over and publishes."""
    bucket, write_images = in_bucket
    job = pile.job() if store == "local" else bucket_job(pile, bucket)

    def add(number: int) -> None:
        pile.write({f"a/{number}": number}) if store == "local" else write_images({f"a/{number}": number})

    if not is_first:
        vectorize(job, runner=LocalRunner())
    add(700)
    original, winners = conditional.write_if_unchanged, []

    def sleep_before(uri, *content):
        if uri != manifest_uri(job.dataset_uri) or winners:
            return original(uri, *content)
        winners.append(None)
        (name,) = (n for n in filesystem.list_names(lease) if n.endswith(".json"))
        holder = json.loads(filesystem.read_bytes(filesystem.join(lease, name)))
        filesystem.write_bytes(filesystem.join(lease, name), json.dumps(holder | {"released": True}).encode())
        add(800)
        winners[0] = vectorize(job, runner=LocalRunner()).digest
        return original(uri, *content)

    lease = filesystem.join(job.dataset_uri, "lease")
    monkeypatch.setattr(conditional, "write_if_unchanged", sleep_before)
    with pytest.raises(RetryableError, match="another process has published, or is publishing, since this one began"):
        vectorize(job, runner=LocalRunner())
    assert check_whole(job.dataset_uri).digest == winners[0]
    assert not vectorize(job, runner=LocalRunner()).changed


def test_a_run_killed_while_hdfs_replaces_the_manifest_is_followed(pile, monkeypatch):
    """The current manifest is absent, and neither reader nor next run takes it for no DataSet."""
    first = pile.run()
    pile.write({"a/new": 7})

    def crash(path: str) -> None:
        if path.endswith("/manifest.json"):
            raise KeyboardInterrupt

    system = pretend_hdfs(monkeypatch)
    system.between = crash
    with pytest.raises(KeyboardInterrupt):
        pile.run()
    assert not Path(manifest_uri(pile.uri)).exists()
    second = check_whole(pile.uri)
    assert second.digest != first.digest
    system.between = lambda _path: None
    assert not pile.run().changed
    pile.write({"a/newer": 8})
    result = pile.run()
    assert result.changed
    assert check_whole(pile.uri).digest == result.digest


def test_a_task_that_fails_once_costs_that_task_alone(pile, monkeypatch, caplog):
    """A store that is away for a moment: only the failed partition is done again."""
    pile.write({f"a/{number}": number for number in range(150)})
    original, calls = LocalFile.publish, []

    def publish(file, name):
        if name.startswith("train"):
            calls.append(name)
            if len(calls) == 2:
                raise OSError(errno.EIO, "away")
        original(file, name)

    monkeypatch.setattr(LocalFile, "publish", publish)
    pile.run()
    check_whole(pile.uri)
    assert re.search(rf"1 of \d tasks failed and are repeated: cannot write {pile.uri}/shards: away", caplog.text)
