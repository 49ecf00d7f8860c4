"""The command line as a user meets it: exit codes, messages, the result file, and what `inspect` says."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import shardmean.jobs.cli.doctor
import shardmean.jobs.vectorize.job
from shardmean.jobs.cli.execution import RESEND_S
from shardmean.jobs.cli.main import main
from shardmean.model.dataset.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

TRAIN = ["dataset_uri=/nowhere/set", "checkpoint_uri=/nowhere/checkpoints"]


@pytest.fixture(autouse=True)
def _same_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def command(capsys):
    """Run a command in this process and give its exit code and the text of both outputs."""

    def command(*arguments) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return command


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["COMMAND"]),
        (["fly"], ["No such command 'fly'"]),
        (["train", "--frequency", "3"], ["No such option: --frequency"]),
        (["train"], ["dataset_uri: missing", "checkpoint_uri: missing"]),
        (["train", *TRAIN, "num_epochs=0"], ["num_epochs = 0: input should be greater than or equal to 1"]),
        (["train", *TRAIN, "frequency=3"], ["did you mean averaging.frequency?"]),
        (["train", *TRAIN], ["/nowhere/set is no published DataSet", "run `shardmean vectorize`"]),
        (["train", "--config", "/nowhere/x.yaml"], ["config file /nowhere/x.yaml: not found"]),
        (["train", *TRAIN, "--params", "{"], ["--params is not JSON"]),
        (["vectorize", "source.uri=/nowhere/x", "dataset_uri=/nowhere/y"], ["no such folder; correct source.uri"]),
        (["vectorize", "source.uri=/x", "dataset_uri=/y", "source.layout=zip"], ["source.layout = 'zip'"]),
        (["inspect", "/nowhere/set"], ["/nowhere/set is no published DataSet"]),
        (["inspect", "ftp://x/y"], ["unknown store 'ftp'"]),
        (["inspect"], ["Missing argument 'DATASET'"]),
    ],
)
def test_the_users_mistakes_end_with_2_and_no_traceback(command, arguments, parts):
    code, text = command(*arguments)
    assert code == 2, text
    assert "Traceback" not in text
    for part in parts:
        assert part in text


def test_help_names_all_commands(command):
    code, text = command("--help")
    assert code == 0
    for name in ("vectorize", "train", "inspect", "doctor", "demo", "up"):
        assert re.search(rf"^\u2502 {name} +[A-Z]", text, re.MULTILINE)


def test_the_version(command):
    assert command("--version") == (0, f"shardmean {importlib.metadata.version('shardmean')}\n")


def test_help_and_completion_import_nothing_heavy():
    script = "import sys; from shardmean.jobs.cli.main import main; assert main(['train', '--help']) == 0; "
    script += "print(sorted({'torch', 'pyspark', 'mlflow', 'pandas', 'pyarrow', 'omegaconf'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_options_and_overrides_may_be_mixed(command):
    code, text = command("train", TRAIN[0], "--params", "{}", TRAIN[1], "--result", "", "num_epochs=0")
    assert "num_epochs = 0" in text, text
    assert code == 2


def test_a_process_of_its_own(run_cli):
    """What main() can't show: nothing but the message on stderr, and it is the last thing said."""
    ended = run_cli("train", *TRAIN)
    assert ended.code == 2
    assert ended.err.startswith("shardmean: error: /nowhere/set/manifest.json: not found")
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.text


def test_the_worlds_faults_end_with_1(command, dataset, tmp_path):
    arguments = [f"dataset_uri={dataset}", f"checkpoint_uri={tmp_path}/c", "tracking.uri=http://127.0.0.1:9"]
    code, text = command("train", *arguments, "--result", tmp_path / "result.json")
    assert code == 1
    assert "shardmean: error: MLflow at http://127.0.0.1:9 cannot be used" in text
    assert "Traceback" not in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kind"] == "retryable"
    assert result["error"] in text


def test_the_result_of_a_mistake_is_written_as_json(command, tmp_path):
    code, text = command("train", "num_epochs=0", "--result", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (code, result["kind"]) == (2, "user")
    assert result["error"] in text
    assert "num_epochs = 0" in result["error"]


def test_a_spark_master_on_the_command_line_is_used(run_cli, make_images, tmp_path):
    images = make_images(tmp_path / "images", num_per_class=2)
    ended = run_cli("vectorize", f"source.uri={images}", f"dataset_uri={tmp_path}/set", "spark.master=nowhere://host")
    assert ended.code == 1
    assert "Master must either be yarn or start with" in ended.err
    assert not (tmp_path / "set" / "manifest.json").exists()


@pytest.mark.usefixtures("spark")
def test_the_result_of_a_success(command, tmp_path, make_images):
    images = make_images(tmp_path / "images")
    arguments = [f"source.uri={images}", f"dataset_uri={tmp_path}/set", "--result", tmp_path / "deep" / "result.json"]
    code, text = command("vectorize", *arguments)
    assert code == 0, text
    result = json.loads((tmp_path / "deep" / "result.json").read_text())
    assert result["digest"] == load_manifest(str(tmp_path / "set")).digest
    assert result["changed"] is True
    assert sum(result["num_examples"].values()) == 60


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize("place", ["nosuch://x/result.json", "/proc/x/result.json"])
def test_a_result_that_cannot_be_written_is_refused_before_the_work(command, tmp_path, make_images, place):
    images = make_images(tmp_path / "images")
    code, text = command("vectorize", f"source.uri={images}", f"dataset_uri={tmp_path}/set", "--result", place)
    assert code == (2 if "nosuch" in place else 1)
    assert place in text
    assert not (tmp_path / "set").exists()


def test_a_bug_shows_its_traceback_and_ends_with_1(command, tmp_path, monkeypatch):
    def broken(_job, **_):
        return {}["no key"]

    monkeypatch.setattr(shardmean.jobs.vectorize.job, "vectorize", broken)
    code, text = command("vectorize", "source.uri=/x", "dataset_uri=/y", "--result", tmp_path / "result.json")
    assert code == 1
    assert "Traceback" in text
    assert "unexpected KeyError" in text
    assert json.loads((tmp_path / "result.json").read_text())["kind"] == "retryable"


class Struck:
    """An object during whose removal a signal comes."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def test_a_signal_that_comes_as_a_command_ends_does_no_harm(command, monkeypatch):
    monkeypatch.setattr(shardmean.jobs.cli.doctor, "examine", lambda: Struck(signal.SIGTERM) and 0)
    before = sys.unraisablehook
    assert command("doctor")[0] == 0
    assert sys.unraisablehook is before
    threading.Event().wait(2 * RESEND_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_python_cleans_up_is_not_lost(command, monkeypatch, number):
    def examine():
        Struck(number)
        threading.Event().wait(20)
        return 0

    monkeypatch.setattr(shardmean.jobs.cli.doctor, "examine", examine)
    code, text = command("doctor")
    assert code == 130
    assert text == "shardmean: error: interrupted; run the same command to resume\n"


def test_other_errors_while_python_cleans_up_are_shown(command, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)

    class Broken:
        def __del__(self):
            raise ValueError("unfit")

    monkeypatch.setattr(shardmean.jobs.cli.doctor, "examine", lambda: Broken() and 0)
    assert command("doctor")[0] == 0
    assert [str(lost.exc_value) for lost in shown] == ["unfit"]


def test_inspect_prints_what_a_dataset_holds(command, dataset):
    code, text = command("inspect", dataset)
    manifest = load_manifest(str(dataset))
    assert code == 0
    assert manifest.digest in text
    assert "1 x 28 x 28" in text
    rows = [line.replace("\u2502", " ").split() for line in text.splitlines()]
    columns = [manifest.num_per_class(split) for split in ("train", "validation", "test")]
    for name, *counts in zip(manifest.class_names, *columns, strict=True):
        assert [name, *map(str, counts)] in rows
    assert ["all", *(str(sum(column)) for column in columns)] in rows


def test_inspect_of_a_relative_path(command, dataset, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    assert command("inspect", dataset.name)[0] == 0


@pytest.fixture
def copied(dataset, tmp_path) -> Path:
    shutil.copytree(dataset, tmp_path / "set")
    return tmp_path / "set"


def test_verify_passes_a_good_dataset(command, copied):
    code, text = command("inspect", copied, "--verify")
    assert code == 0
    assert f"all {len(load_manifest(str(copied)).shards)} shards are as published" in text


def test_verify_finds_a_flipped_byte(command, copied):
    shard = sorted((copied / "shards").iterdir())[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    code, text = command("inspect", copied, "--verify")
    assert code == 1
    assert f"{shard.name}: damaged" in text
    assert "replace=true" in text, "the remedy"
    assert command("inspect", copied)[0] == 0, "without --verify no shard is read"


def test_verify_finds_a_missing_shard(command, copied):
    shard = sorted((copied / "shards").iterdir())[1]
    shard.unlink()
    code, text = command("inspect", copied, "--verify")
    assert code == 1
    assert shard.name in text
    assert "replace=true" in text, "the remedy"


def test_inspect_of_a_changed_manifest(command, copied):
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace("middle", "center"))
    code, text = command("inspect", copied)
    assert code == 1
    assert "changed after it was published" in text
