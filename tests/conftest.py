"""What all tests share: how hypothesis searches, and an S3 server on loopback."""

from __future__ import annotations

import logging
import os
from itertools import count

import pytest
from hypothesis import settings

from shardmean.model.storage import filesystem
from tests.environments import build_wheel

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
