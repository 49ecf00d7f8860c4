"""`shardmean inspect`: the terminal says what the index says, and --verify finds every damage and names each file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from shardmean.jobs.cli.main import main
from shardmean.jobs.vectorize.report.terminal import show
from shardmean.model.config.image import ImageConfig
from shardmean.model.dataset.manifest import report_uri
from shardmean.model.dataset.reader import Dataset
from shardmean.model.storage import filesystem
from tests.jobs.indexed import Made, publish_indexed, write_table


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, 6, 6), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two classes, one of which is not in test, with copies, broken files and a conflict."""
    splits = ["train"] * 7 + ["validation"] * 2 + ["test"]
    items = [Made(f"cat/{n}.png", "cat", pixels(n), splits[n], size_px=(10 * n + 5, 20)) for n in range(10)]
    items += [Made(f"dog/{n}.png", "dog", pixels(50 + n), splits[n], size_px=(400, 20)) for n in range(9)]
    items += [Made("cat/a [bold]copy[/bold].png", "cat", pixels(0), size_px=(5, 20))]
    items += [Made(f"dog/broken {n}\n.png", "dog", reason="unreadable", detail="cut short") for n in range(9)]
    items += [Made(f"{name}/both", name, reason="conflicting_labels", content=b"x") for name in ("cat", "dog")]
    return publish_indexed(tmp_path_factory.mktemp("made"), items, shard_bytes=150)


@pytest.fixture
def copied(made, tmp_path):
    """The same DataSet in a folder of its own, to damage, and its index."""
    dataset, index = made
    shutil.copytree(dataset.uri, tmp_path / "set")
    return Dataset(str(tmp_path / "set"), dataset.manifest), index


@pytest.fixture
def inspect(capsys):
    """Show a DataSet and give the exit code and the lines, with single spaces and without the table's frame."""

    def inspect(dataset: Dataset, *, verify: bool = False) -> tuple[int, list[str]]:
        code = show(dataset, verify=verify)
        lines = capsys.readouterr().out.translate({0x2502: " ", 0x2503: " "}).splitlines()
        return code, [" ".join(line.split()) for line in lines]

    return inspect


def test_the_terminal_says_what_the_index_says(inspect, made):
    code, lines = inspect(made[0])
    assert code == 0
    assert f"version {made[0].manifest.digest}" in lines
    for line in (
        "newest image 2025-11-24 16:00 UTC", "report none", "class train validation test rejected", "cat 8 2 1 1",
        "dog 7 2 0 10", "all 15 4 1 11", "test has no example of 1 class: dog", "Rejected: 11",
        "9 unreadable", "dog/broken 0\\n.png: cut short", "... and 4 more", "2 conflicting_labels",
        "cat, dog: 1 image in 2 files", "Exact copies: 1", "2 x cat, train", "cat/a [bold]copy[/bold].png",
        "Height: all 20 px", "Width: 5 px to 400 px, median 90 px",
    ):  # fmt: skip
        assert line in lines
    bars = [line for line in lines if line.endswith(" 9") and "\u2588" in line]
    assert bars == ["334 px to 401 px " + "\u2588" * 40 + " 9"]


def test_a_report_that_is_there_is_named(inspect, copied):
    dataset, _ = copied
    uri = report_uri(dataset.uri, dataset.manifest.digest)
    filesystem.write_bytes(uri, b"<html>")
    assert f"report {uri}" in inspect(dataset)[1]


def test_many_classes_are_cut(inspect, tmp_path):
    items = [Made(f"{n}", f"class {n:03d}", pixels(n)) for n in range(90)] + [Made("x", "class 077", pixels(99))]
    lines = inspect(publish_indexed(tmp_path, items)[0])[1]
    assert lines[lines.index("class train validation test") + 2] == "class 077 2 0 0"
    assert "... 50 between ..." in lines
    assert "all 91 0 0" in lines
    assert sum(line.startswith("class 0") for line in lines) == 40


def test_an_older_encoding_is_no_error(made, monkeypatch, tmp_path):
    dataset, _ = publish_indexed(tmp_path / "sät", [Made(f"ü{n}", "写真", pixels(n // 2)) for n in range(4)])
    with (tmp_path / "out").open("w", encoding="ascii") as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", file)
        assert show(dataset, verify=True) == 0
        Path(dataset.uri, "shards", dataset.manifest.shards[0].name).unlink()
        assert show(dataset, verify=True) == 1
    text = (tmp_path / "out").read_text()
    assert "\\u5199\\u771f" in text
    assert "\\xfc1" in text
    assert "/s\\xe4t/shards/" in text


def test_one_version_of_several(made, capsys, tmp_path):
    first, _ = publish_indexed(tmp_path, [Made("a", "a", pixels(0))])
    second, _ = publish_indexed(tmp_path, [Made("a", "a", pixels(0)), Made("b", "a", pixels(1))])
    assert main(["inspect", str(tmp_path), "--digest", first.manifest.digest]) == 0
    text = capsys.readouterr().out
    assert first.manifest.digest in text
    assert second.manifest.digest not in text
    assert main(["inspect", str(tmp_path), "--digest", "0" * 32]) == 2


def test_a_whole_dataset_is_as_published(inspect, made):
    code, lines = inspect(made[0], verify=True)
    assert (code, lines[-1]) == (0, f"all {len(made[0].manifest.shards)} shards are as published")


def test_a_whole_dataset_in_a_folder_of_any_name(inspect, tmp_path):
    dataset, _ = publish_indexed(tmp_path / "a?b 100%25 [red]", [Made("a/0.png", "a", pixels(0))])
    code, lines = inspect(dataset, verify=True)
    assert (code, lines[-1]) == (0, "all 1 shards are as published")
    assert lines[0] == dataset.uri


def files(dataset: Dataset) -> list[Path]:
    manifest = dataset.manifest
    names = [("shards", shard.name) for shard in manifest.shards]
    names += [("index", manifest.index), ("rejected", manifest.rejected)]
    return [Path(dataset.uri, *name) for name in names]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(("damage", "word"), [(flip, "damaged"), (cut, ""), (Path.unlink, "missing")])
def test_every_damaged_file_is_named(inspect, copied, damage, word):
    dataset, _ = copied
    for path in files(dataset):
        damage(path)
    code, lines = inspect(dataset, verify=True)
    assert code == 1
    for path in files(dataset):
        (line,) = (line for line in lines if f"{path}: " in line and "index cannot be read" not in line)
        assert word in line
        assert "replace=true" in line, "the remedy"
    assert lines[-1] == f"{len(files(dataset))} faults: the DataSet is not as it was published"


def test_a_damaged_file_alone_is_named_alone(inspect, copied):
    dataset, _ = copied
    path = files(dataset)[3]
    flip(path)
    code, lines = inspect(dataset, verify=True)
    assert code == 1
    assert [line.split(": ")[0] for line in lines if "replace=true" in line] == [str(path)]
    assert lines[-1].startswith("1 fault: ")
    assert "Rejected: 11" in lines, "the rest is shown all the same"


def test_swapped_shards_are_both_named(inspect, copied):
    dataset, _ = copied
    one, other = files(dataset)[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    _, lines = inspect(dataset, verify=True)
    assert {line.split(": ")[0] for line in lines if "replace=true" in line} == {str(one), str(other)}


def with_manifest(dataset: Dataset, **changes) -> Dataset:
    return Dataset(dataset.uri, dataset.manifest.model_copy(update=changes))


def with_shard(dataset: Dataset, number: int, **changes) -> Dataset:
    shards = list(dataset.manifest.shards)
    shards[number] = shards[number].model_copy(update=changes)
    return with_manifest(dataset, shards=shards)


def faults(inspect, dataset: Dataset) -> list[str]:
    code, lines = inspect(dataset, verify=True)
    assert code == 1
    return [line for line in lines if "replace=true" in line]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_examples": 6}, r"5 examples, the manifest says 6"),
        ({"num_examples": 4}, r"5 examples, the manifest says 4"),
        ({"num_per_class": {1: 5}}, r"the examples of its classes are not as many"),
    ],
)
def test_a_shard_that_its_manifest_describes_wrongly(inspect, made, changes, said):
    dataset = with_shard(made[0], 0, **changes)
    found = faults(inspect, dataset)
    assert f"{dataset.manifest.shards[0].name}: {said}" in found[0]
    assert len(found) > 1, "the index differs too"


def test_a_label_without_a_class(inspect, made):
    shards = [s.model_copy(update={"num_per_class": {0: s.num_per_class.get(0, 0)}}) for s in made[0].manifest.shards]
    dataset = with_manifest(made[0], class_names=["cat"], shards=shards)
    assert any("label 1 in a DataSet of 1 classes" in line for line in faults(inspect, dataset))


def test_another_shape_than_the_manifests(inspect, made):
    dataset = with_manifest(made[0], image=ImageConfig(height_px=6, width_px=5))
    found = [line for line in faults(inspect, dataset) if "/shards/" in line]
    assert len(found) == len(dataset.manifest.shards)


def test_ids_that_stand_twice(inspect, made):
    train = made[0].manifest.shards_of("train")
    dataset = with_manifest(made[0], shards=[*made[0].manifest.shards, train[0]])
    assert any(f"{train[0].num_examples} ids are there more than once" in line for line in faults(inspect, dataset))


def test_bytes_that_stand_in_train_and_test(inspect, tmp_path):
    items = [Made("a/0", "a", pixels(0)), Made("a/1", "a", pixels(0), "test"), Made("a/2", "a", pixels(1), "test")]
    (line,) = faults(inspect, publish_indexed(tmp_path, items)[0])
    assert "train and test share the bytes of 1 images" in line


def changed_index(index: pa.Table, column: str, values: list) -> pa.Table:
    place = index.schema.get_field_index(column)
    return index.set_column(place, index.schema.field(column), pa.array(values, index.schema.field(column).type))


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("split", lambda value: value and "test", "0 images of 'cat' in train, the manifest says 8"),
        ("class_name", lambda value: "dog", "images of 'cat' in train, the manifest says 8"),
        ("shard", lambda value: value and f"train-{'0' * 20}.parquet", "images of the shards are not as many"),
        ("path", lambda value: "one", "a path is in it more than once"),
        ("reason", lambda value: value and "odd", "rejected are {'odd': 11}, the manifest says"),
    ],
)
def test_an_index_that_does_not_fit_its_manifest(inspect, copied, column, change, said):
    dataset, index = copied
    values = [change(value) for value in index[column].to_pylist()]
    name = write_table(Path(dataset.uri, "index"), changed_index(index, column, values))
    found = faults(inspect, with_manifest(dataset, index=name))
    assert all(f"/index/{name}: " in line for line in found)
    assert any(said in line for line in found)


def test_a_table_of_rejected_images_that_does_not_fit(inspect, copied):
    dataset, _ = copied
    path = Path(dataset.uri, "rejected", dataset.manifest.rejected)
    table = pq.read_table(path)
    name = write_table(path.parent, table.filter(pc.not_equal(table["reason"], "unreadable")))
    (line,) = faults(inspect, with_manifest(dataset, rejected=name))
    assert f"{name}: rejected are {{'conflicting_labels': 2}}, the manifest says" in line
