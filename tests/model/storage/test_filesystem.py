"""URIs and what stands behind them: joined names are found again, on a disk and on S3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardmean.model.errors import UserError
from shardmean.model.storage import filesystem
from tests.model.like_hdfs import pretend_hdfs

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..")
)


@given(names=st.lists(NAMES, min_size=1, max_size=3))
@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/data/a b?#%20", "/data/a b?#%20"),
        ("file:///data/a%20b", "/data/a b"),
        ("s3://bucket?region=x", "bucket"),
        ("s3a://bucket/?region=x", "bucket"),
        ("s3://bucket/a%20b%2520?endpoint_override=http://127.0.0.1:1/&region=x", "bucket/a b%20"),
    ],
)
def test_names_that_were_joined_are_the_path_in_the_store(uri, path, names):
    assert filesystem.locate(filesystem.join(uri, *names))[1] == "/".join((path, *names))


@pytest.mark.parametrize(
    "name", ["plain.bin", "a b", "percent%20.bin", "what?x=1#y", "caf\xe9 \u732b", "quo'\"te", "a+b=c&d"]
)
@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_files_of_odd_names_are_written_listed_read_and_deleted(tmp_path, new_bucket, kind, name):
    folder = filesystem.join(new_bucket() if kind == "s3" else str(tmp_path), "some where")
    uri = filesystem.join(folder, name)
    assert not filesystem.exists(uri)
    filesystem.write_bytes(uri, b"0123456789")
    assert filesystem.exists(uri)
    assert filesystem.list_names(folder) == [name]
    assert filesystem.read_bytes(uri) == bytes(filesystem.read_buffer(uri)) == b"0123456789"
    assert [filesystem.read_bytes(uri, max_bytes=n) for n in (0, 3, 11)] == [b"", b"012", b"0123456789"]
    filesystem.delete(uri)
    with pytest.raises(FileNotFoundError):
        filesystem.read_bytes(uri)


def test_a_packed_file_is_read_as_it_stands(new_bucket):
    uri = filesystem.join(new_bucket(), "x.gz")
    filesystem.write_bytes(uri, b"not unpacked")
    assert filesystem.read_bytes(uri) == b"not unpacked"


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("s3://bucket/a#b", "write %23"),
        ("s3://bucket/a?region=x&color=red", "color"),
        ("s3://buc ket/a?region=x", "correct the URI"),
        ("s3://?region=x", "correct the URI"),
        ("ftp://host/a", "unknown store 'ftp'"),
    ],
)
def test_wrong_uris_are_the_callers_mistake(uri, part):
    with pytest.raises(UserError, match=part):
        filesystem.locate(uri)


def test_on_hdfs_writers_of_one_file_have_unfinished_files_of_their_own(tmp_path, monkeypatch):
    """Also on two machines, where processes may have the same number."""
    system, uri = pretend_hdfs(monkeypatch), str(tmp_path / "a")

    def write_too(_path: str) -> None:
        system.between = lambda _path: None
        filesystem.write_bytes(uri, b"second")

    system.between = write_too
    filesystem.write_bytes(uri, b"first")
    assert filesystem.read_bytes(uri) == b"first"
    assert filesystem.list_names(str(tmp_path)) == ["a"]


def test_the_home_of_an_unknown_user_is_the_callers_mistake():
    with pytest.raises(UserError, match=r"^~no-such-user/pets: .*home directory. Give the folder's path in full"):
        filesystem.absolute("~no-such-user/pets")


def test_a_password_in_a_uri_is_refused():
    with pytest.raises(UserError, match="must hold no password"):
        filesystem.absolute("s3://key:secret@bucket/a")
    assert filesystem.absolute("hdfs://user@host/a") == "hdfs://user@host/a"
