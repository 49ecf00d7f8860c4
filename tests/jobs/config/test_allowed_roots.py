"""`airflow.allowed_roots`: no setting, row of a table or link leads a job outside of what a deployment allows."""

from __future__ import annotations

import json

import pytest

from shardmean.jobs.config.job import TrainJob, VectorizeJob
from shardmean.jobs.config.loading import load_job
from shardmean.jobs.config.uris import AllowedRoots, check_servers
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.errors import UserError

SERVER = "endpoint_override=http://127.0.0.1:9000&region=us-east-1"
OUTSIDE = r"lies outside airflow\.allowed_roots \(.*\): choose a place below one of them, or add a root"


@pytest.mark.parametrize(
    ("root", "uri", "is_allowed"),
    [
        ("/data", "/data", True),
        ("/data", "/data/pets", True),
        ("/data/", "/data/pets", True),
        ("/data", "file:///data/pets", True),
        ("/", "/anywhere", True),
        ("/data", "/database", False),
        ("/data", "/data/../etc", False),
        ("/data", "/data/pets/../cats", True),
        ("/data", "file:///data/%2e%2e/etc", False),
        ("/data", "/", False),
        ("/data", "s3://data/data", False),
        ("s3://bucket", "s3://bucket/pets", True),
        ("s3://bucket/", "s3a://bucket/pets", True),
        ("s3://bucket/pets", "s3://bucket/pets", True),
        ("s3://bucket/pets", "s3://bucket/pets2", False),
        ("s3://bucket/a%20b", "s3://bucket/a b/c", True),
        ("s3://bucket", "s3://bucket-evil/pets", False),
        ("s3://bucket", "s3://bucket@evil/pets", False),
        ("s3://bucket", "s3://someone@bucket/pets", False),
        ("s3://bucket", f"s3://bucket/pets?{SERVER}", False),
        (f"s3://bucket?{SERVER}", f"s3://bucket/pets?{SERVER}", True),
        (f"s3://bucket?{SERVER}", "s3://bucket/pets", False),
        ("s3://bucket/pets", "s3://bucket/pets/../x", False),
        ("s3://bucket/pets", "s3://bucket/pets/%2e%2E/x", False),
        ("s3://bucket/pets", "s3://bucket/x/../pets/y", False),
        ("s3://bucket", "gs://bucket/pets", False),
        ("hdfs://one:8020/pets", "hdfs://two:8020/pets", False),
        ("hdfs://one:8020/pets", "hdfs://root@one:8020/pets", False),
        ("hdfs://one:8020/pets", "hdfs://one:8020/pets/cats", True),
    ],
)
def test_places_below_a_root_are_allowed(root, uri, is_allowed):
    allowed = AllowedRoots([root, "/elsewhere"])
    if is_allowed:
        assert allowed.check(uri) == uri
    else:
        with pytest.raises(UserError, match=OUTSIDE):
            allowed.check(uri)
    assert AllowedRoots().check(uri) == uri, "without roots every place is allowed"


def test_a_link_to_another_place_is_no_way_out(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "link").symlink_to(outside)
    with pytest.raises(UserError, match=OUTSIDE):
        AllowedRoots([str(root)]).check(f"{root}/link/new")
    (tmp_path / "other_name").symlink_to(root)
    AllowedRoots([str(tmp_path / "other_name")]).check(f"{root}/new")
    AllowedRoots([str(root)]).check(f"{tmp_path}/other_name/new")


TRAIN = {"dataset_uri": "/data/set", "checkpoint_uri": "/data/checkpoints", "fine_tuning.start_from": "models:/pets/1"}
VECTORIZE = {"source.uri": "/data/images", "dataset_uri": "/data/set"}


@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [(VectorizeJob, VECTORIZE, key) for key in VECTORIZE] + [(TrainJob, TRAIN, key) for key in TRAIN],
)
def test_every_place_of_a_job_is_checked(kind, settings, key):
    def load(**changes: object) -> object:
        return load_job(kind, None, ["airflow.allowed_roots=[/data]"], json.dumps(settings | changes))

    load()
    with pytest.raises(UserError, match=rf"  {key}: /etc/x {OUTSIDE}"):
        load(**{key: "/etc/x"})


@pytest.mark.parametrize("row", ["/{}/outside/1.png", "../outside/1.png", "link/1.png", "file:///{}/outside/1.png"])
def test_no_row_of_a_table_names_an_image_outside(tmp_path, make_images, row):
    make_images(tmp_path / "root" / "images", num_per_class=2)
    outside = make_images(tmp_path / "outside", ("some",), num_per_class=2) / "some"
    (tmp_path / "outside" / "1.png").symlink_to(outside / "001.png")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    rows = ["path,label", "images/low/000.png,a", "images/top/000.png,b", f"{row.format(str(tmp_path)[1:])},b"]
    (tmp_path / "root" / "table.csv").write_text("\n".join(rows))
    settings = [f"source.uri={tmp_path}/root/table.csv", "source.layout=table", f"dataset_uri={tmp_path}/root/set"]
    with pytest.raises(UserError, match=rf"source .*/table\.csv: .*1\.png {OUTSIDE}"):
        vectorize(load_job(VectorizeJob, None, [*settings, f"airflow.allowed_roots=[{tmp_path}/root]"]))


@pytest.mark.parametrize("is_folder", [True, False])
def test_no_link_in_a_folder_leads_to_an_image_outside(tmp_path, make_images, is_folder):
    images = make_images(tmp_path / "root" / "images", num_per_class=2)
    outside = make_images(tmp_path / "outside", ("some",), num_per_class=2) / "some"
    (images / "low" / "link.png").symlink_to(outside if is_folder else outside / "001.png")
    settings = [f"source.uri={images}", f"dataset_uri={tmp_path}/root/set"]
    with pytest.raises(UserError, match=rf"source .*/images: .*link\.png {OUTSIDE}"):
        vectorize(load_job(VectorizeJob, None, [*settings, f"airflow.allowed_roots=[{tmp_path}/root]"]))


@pytest.mark.parametrize(
    ("uri", "is_known"),
    [
        ("/anywhere", True),
        ("s3://other/x", True),
        ("gs://other/x", True),
        (f"s3://other/x?{SERVER}", True),
        (f"s3a://other/x?{SERVER}", True),
        (f"gs://other/x?{SERVER}", False),
        ("s3://bucket/x?endpoint_override=https://evil", False),
        (f"s3://bucket/x?{SERVER}&allow_bucket_creation=true", False),
        ("hdfs://namenode:8020/x", True),
        ("hdfs:///x", True),
        ("hdfs://evil:8020/x", False),
        ("hdfs://root@namenode:8020/x", False),
        ("http://evil/x", False),
    ],
)
def test_a_run_names_no_server_that_the_config_file_does_not_name(uri, is_known):
    known = ["/data", f"s3://bucket/pets?{SERVER}", "hdfs://namenode:8020/pets"]
    if is_known:
        check_servers({"dataset_uri": uri}, known)
    else:
        with pytest.raises(UserError, match=r"dataset_uri = '.*': no URI of the config file names this server with"):
            check_servers({"dataset_uri": uri}, known)
