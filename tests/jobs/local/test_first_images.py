"""What a first `up` finds: the digits where configs ask for them, and nothing of ours where a user has images."""

from __future__ import annotations

import pytest

from shardmean.jobs.local.demo import write_first_images
from shardmean.model.errors import UserError


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARDMEAN_HOME", str(tmp_path))
    monkeypatch.delenv("SHARDMEAN_CONFIG_DIR", raising=False)
    return tmp_path / "images" / "digits"


def test_a_first_up_has_the_digits_and_says_so(images, capsys):
    write_first_images({"SHARDMEAN_HOME": str(images.parents[1])})
    assert len(list(images.glob("*/*.png"))) == 1797
    assert f"wrote 1797 PNG files of handwritten digits to {images}" in capsys.readouterr().out


def test_images_that_are_there_stay_alone(images):
    images.mkdir(parents=True)
    write_first_images({"SHARDMEAN_HOME": str(images.parents[1])})
    assert not list(images.iterdir())


def write_configs(folder, images):
    (folder / "pipelines").mkdir(parents=True)
    (folder / "pipelines" / "digits.yaml").write_text(
        f"name: digits\nvectorize: {{source: {{uri: '{images}'}}, dataset_uri: {folder}/set}}\n"
        f"train: {{checkpoint_uri: {folder}/ck}}\n"
    )


def test_configs_that_ask_for_other_images_get_none(images, monkeypatch, tmp_path):
    write_configs(tmp_path / "configs", tmp_path / "pets")
    monkeypatch.setenv("SHARDMEAN_CONFIG_DIR", str(tmp_path / "configs"))
    write_first_images({"SHARDMEAN_HOME": str(tmp_path)})
    assert not images.exists()
    assert not (tmp_path / "pets").exists()


def test_a_copy_of_our_configs_gets_the_digits(images, monkeypatch, tmp_path):
    write_configs(tmp_path / "configs", "${oc.env:SHARDMEAN_HOME}/images/digits")
    monkeypatch.setenv("SHARDMEAN_CONFIG_DIR", str(tmp_path / "configs"))
    write_first_images({"SHARDMEAN_HOME": str(tmp_path)})
    assert images.exists()


def test_a_config_folder_without_the_files_is_named_with_its_variable(images, monkeypatch, tmp_path):
    monkeypatch.setenv("SHARDMEAN_CONFIG_DIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"none/pipelines/digits\.yaml: not found .*SHARDMEAN_CONFIG_DIR hold"):
        write_first_images({"SHARDMEAN_HOME": str(tmp_path)})
