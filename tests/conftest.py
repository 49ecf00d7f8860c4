"""What all tests share: how hypothesis searches, and an S3 server on loopback."""

from __future__ import annotations

import logging
import os
import shutil
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from shardmean.jobs.config.job import TrackingConfig
from shardmean.model.storage import filesystem
from tests.environments import build_wheel

if TYPE_CHECKING:
    from pathlib import Path

# Without deadlines, since machines differ, and in CI from the same seed each time.
settings.register_profile("everywhere", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("everywhere")

# Set before Spark starts, whose workers inherit them: no test uses credentials of whoever runs it, or looks for some.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of this tree."""
    return build_wheel(tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def s3_address():
    """The HTTP address of an S3 server (moto) in a thread of this process, on a free port of loopback."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="session")
def new_bucket(s3_address):
    """A function that makes an empty bucket and gives its URI, which holds the server's address: any process reads it.

    `filesystem.join(new_bucket(), "folder")` is a folder in it, `filesystem.write_bytes` fills it.
    """
    numbers = count()

    def new_bucket() -> str:
        name = f"bucket-{next(numbers)}"
        options = f"endpoint_override={s3_address}"
        system, _ = filesystem.locate(f"s3://{name}?{options}&allow_bucket_creation=true")
        system.create_dir(name)
        return f"s3://{name}?{options}"

    return new_bucket


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory) -> Path:
    """An empty MLflow database: making one runs some fifty migrations, so the tests copy this one."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def new_store(mlflow_store):
    """A function that makes a tracking config with an MLflow database of its own in a folder."""

    def make(folder: Path, **names) -> TrackingConfig:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(mlflow_store, folder / "mlflow.db")
        return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", artifact_uri=str(folder / "artifacts"), **names)

    return make


@pytest.fixture
def shelf(tmp_path, new_store):
    """A registered model in an MLflow store of its own: see tests/jobs/promote/shelf.py."""
    import mlflow

    from tests.jobs.promote.shelf import NAME, Shelf

    before, tracking = mlflow.get_tracking_uri(), new_store(tmp_path / "mlflow")
    mlflow.set_tracking_uri(tracking.uri)
    client = mlflow.MlflowClient()
    client.create_registered_model(NAME)
    yield Shelf(client, client.create_experiment("one", artifact_location=str(tmp_path / "artifacts")))
    mlflow.set_tracking_uri(before)
