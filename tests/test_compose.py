"""docker/compose.yaml: what it says of the code must be so. That it runs is tried by hand, with an engine."""

from __future__ import annotations

import re

import pytest
import yaml

from shardmean.jobs.config.loading import load_pipeline
from shardmean.jobs.local.stack import STOP_TIMEOUT_S
from tests.paths import ROOT

DOCKER = ROOT / "docker"
SERVICES = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
GPU_SERVICES = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]


def default(value: str) -> str:
    """What Compose makes of `${NAME:-default}` where NAME is not set."""
    found = re.fullmatch(r"\$\{[A-Z_]+:-(.*)\}", value)
    assert found is not None, value
    return found[1]


def binds(service: str) -> dict[str, dict]:
    return {mount["target"]: mount for mount in SERVICES[service]["volumes"] if isinstance(mount, dict)}


@pytest.mark.parametrize("services", [SERVICES, GPU_SERVICES])
def test_one_worker_has_room_for_the_default_training(services):
    cores = int(default(services["spark-worker"]["environment"]["SPARK_WORKER_CORES"]))
    assert cores >= load_pipeline(ROOT / "configs" / "pipelines" / "digits.yaml").train.num_workers


def test_a_worker_has_room_for_an_executor():
    executor = re.search(r"^spark\.executor\.memory +(\d+)g$", (DOCKER / "spark-defaults.conf").read_text(), re.M)
    memory = default(SERVICES["spark-worker"]["environment"]["SPARK_WORKER_MEMORY"])
    assert executor is not None
    assert int(memory.removesuffix("g")) >= int(executor[1])


def test_docker_waits_until_up_has_ended():
    assert int(SERVICES["stack"]["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT_S


def test_driver_and_executors_see_the_users_images():
    assert binds("spark-worker")["/images"] == binds("stack")["/images"]


def test_folders_of_the_user_are_read_only_and_never_made():
    mounts = [*binds("spark-worker").values(), *binds("stack").values()]
    assert len(mounts) == 3
    for mount in mounts:
        assert mount["read_only"]
        assert mount["bind"] == {"create_host_path": False}
        assert (DOCKER / default(mount["source"])).is_dir()


def test_the_dags_read_the_mounted_configs():
    folder = SERVICES["stack"]["environment"]["SHARDMEAN_CONFIG_DIR"]
    assert (DOCKER / default(binds("stack")[folder]["source"])).resolve() == ROOT / "configs"
