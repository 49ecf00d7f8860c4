"""Conditional writes: of many that write at once one wins, and what was written meanwhile is never lost."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from pyarrow import fs

from shardmean.model.errors import RetryableError
from shardmean.model.storage import conditional, filesystem
from shardmean.model.storage.conditional import version_of, write_if_unchanged
from tests.model.like_hdfs import pretend_hdfs

EXACT = ("local", "s3")


@pytest.fixture(params=[*EXACT, "hdfs"])
def uri(request, tmp_path, new_bucket, monkeypatch):
    """A file in a folder that is not there yet."""
    if request.param == "hdfs":
        pretend_hdfs(monkeypatch)
    folder = new_bucket() if request.param == "s3" else str(tmp_path)
    return filesystem.join(folder, "some where", "100% odd?.json")


@pytest.fixture(params=EXACT)
def exact_uri(request, tmp_path, new_bucket):
    """The same, where the store decides at the write."""
    return filesystem.join(new_bucket() if request.param == "s3" else str(tmp_path), "some where", "x.json")


def test_a_file_is_created_once_and_replaced_only_as_it_was_seen(uri):
    assert version_of(uri) is None
    assert write_if_unchanged(uri, b"1", None)
    first = version_of(uri)
    assert not write_if_unchanged(uri, b"2", None)
    assert filesystem.read_bytes(uri) == b"1"
    assert write_if_unchanged(uri, b"2", first)
    assert version_of(uri) not in (None, first)
    assert not write_if_unchanged(uri, b"3", first)
    assert filesystem.read_bytes(uri) == b"2"
    filesystem.delete(uri)
    assert not write_if_unchanged(uri, b"3", first)
    assert version_of(uri) is None


def winners_of(race) -> list[int]:
    """Which of eight threads that begin at once won."""
    begin, won = threading.Barrier(8), []

    def run(number: int) -> None:
        begin.wait()
        if race(number):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_of_many_that_write_at_once_one_wins(exact_uri):
    version = None
    for number in range(5):
        won = winners_of(
            lambda thread, number=number, version=version: write_if_unchanged(
                exact_uri, f"{number} {thread}".encode(), version
            )
        )
        assert len(won) == 1
        assert filesystem.read_bytes(exact_uri) == f"{number} {won[0]}".encode()
        version = version_of(exact_uri)


def _count_up(uri: str, number: int) -> None:
    for _ in range(number):
        while True:
            version = version_of(uri)
            if write_if_unchanged(uri, str(int(filesystem.read_bytes(uri)) + 1).encode(), version):
                break


def test_processes_that_count_together_lose_no_number(tmp_path):
    uri = str(tmp_path / "number")
    filesystem.write_bytes(uri, b"0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count_up, args=(uri, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert filesystem.read_bytes(uri) == b"200"


def test_a_process_that_sleeps_between_look_and_write_keeps_others_out(tmp_path, monkeypatch):
    """On a local disk the lock is held from the look to the write, so the other one gives way."""
    uri = str(tmp_path / "x")
    filesystem.write_bytes(uri, b"1")
    version, write, others = version_of(uri), filesystem.write_bytes, []

    def slow(uri: str, data: bytes) -> None:
        monkeypatch.setattr(filesystem, "write_bytes", write)
        others.append(write_if_unchanged(uri, b"other", version))
        write(uri, data)

    monkeypatch.setattr(filesystem, "write_bytes", slow)
    assert write_if_unchanged(uri, b"mine", version)
    assert others == [False]
    assert filesystem.read_bytes(uri) == b"mine"


def test_a_lock_on_a_file_that_was_replaced_gives_no_right(tmp_path, monkeypatch):
    """It was opened before it was replaced, by one of the same content even, and locked after."""
    uri, lock = str(tmp_path / "x"), fcntl.flock
    filesystem.write_bytes(uri, b"1")
    version = version_of(uri)

    def late(handle: int, how: int) -> None:
        filesystem.write_bytes(uri, b"1")
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert not write_if_unchanged(uri, b"2", version)
    assert filesystem.read_bytes(uri) == b"1"


def test_a_disk_without_locks_is_looked_at_before_the_write(tmp_path, monkeypatch):
    uri = str(tmp_path / "x")
    filesystem.write_bytes(uri, b"1")

    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert not write_if_unchanged(uri, b"2", "another")
    assert write_if_unchanged(uri, b"2", version_of(uri))


def test_a_file_of_another_user_is_replaced_where_the_folder_allows_it(tmp_path):
    uri = str(tmp_path / "x")
    filesystem.write_bytes(uri, b"1")
    Path(uri).chmod(0o444)
    assert write_if_unchanged(uri, b"2", version_of(uri))


@pytest.fixture
def s3_uri(new_bucket):
    uri = filesystem.join(new_bucket(), "x.json")
    filesystem.write_bytes(uri, b"1")
    return uri


def test_a_write_whose_answer_was_lost_has_still_won(s3_uri):
    """The client sends it again, and S3 finds that the file has changed."""
    version = version_of(s3_uri)
    for _ in range(2):
        assert write_if_unchanged(s3_uri, b"mine", version)
    assert not write_if_unchanged(s3_uri, b"other", version)


def test_a_store_like_s3_without_conditions_is_looked_at_before_the_write(s3_uri, monkeypatch):
    client, _ = conditional._s3(s3_uri)
    refusal = {"Error": {"Code": "NotImplemented", "Message": "a header is not implemented"}}

    def put_object(**_: object) -> None:
        raise client.exceptions.ClientError(refusal, "PutObject")

    monkeypatch.setattr(client, "put_object", put_object)
    assert not write_if_unchanged(s3_uri, b"2", None)
    assert write_if_unchanged(s3_uri, b"2", version_of(s3_uri))
    assert filesystem.read_bytes(s3_uri) == b"2"


def test_what_s3_refuses_is_told(s3_uri):
    gone = s3_uri.replace("bucket-", "no-bucket-")
    with pytest.raises(RetryableError, match=r"cannot write s3://no-bucket-.*NoSuchBucket.*check permission"):
        write_if_unchanged(gone, b"2", None)
    away = "s3://bucket/x?endpoint_override=http://127.0.0.1:9&region=us-east-1"
    with pytest.raises(RetryableError, match=r"cannot read s3://bucket/x.*; check the path, permission and network"):
        version_of(away)


def test_options_of_a_uri_lead_to_the_same_server(s3_uri, s3_address, monkeypatch):
    bucket = s3_uri.partition("?")[0]
    host = s3_address.removeprefix("http://")
    assert version_of(f"{bucket}?endpoint_override={host}&scheme=http&region=eu-west-1") == version_of(s3_uri)
    assert version_of(f"{bucket.replace('s3:', 's3a:')}?endpoint_override={s3_address}") == version_of(s3_uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    filesystem._store.cache_clear()
    conditional._client.cache_clear()
    assert version_of(f"{bucket}?region=us-east-1") == version_of(s3_uri)
    assert filesystem.read_bytes(f"{bucket}?region=us-east-1") == b"1"


def test_credentials_come_from_the_places_where_pyarrow_looks(tmp_path, monkeypatch):
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = of-team\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "team")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    conditional._client.cache_clear()
    client, _ = conditional._s3("s3://bucket/x?region=us-east-1")
    conditional._client.cache_clear()
    assert client._request_signer._credentials.access_key == "of-team"


def test_what_stores_promise(monkeypatch):
    systems = {"s3": fs.S3FileSystem(region="x"), "gs": fs.GcsFileSystem(anonymous=True), "file": fs.LocalFileSystem()}
    monkeypatch.setattr(filesystem, "locate", lambda uri: (systems[uri.partition(":")[0]], ""))
    assert [conditional.is_exact(f"{name}://x") for name in systems] == [True, False, True]
