"""Tables that name files which are not there: their rows are rejected, and the others become examples."""

from __future__ import annotations

import os

import pyarrow.parquet as pq
import pytest

from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.config.image import SplitConfig
from shardmean.model.dataset.manifest import load_manifest, rejected_uri
from shardmean.model.errors import UserError
from shardmean.model.storage import filesystem
from tests.jobs.pile import Pile
from tests.jobs.whole import check_whole, rows_of


class NoRunner:
    """A runner for runs that have nothing to read."""

    def run(self, work, tasks):
        raise AssertionError(f"{len(tasks)} tasks")


@pytest.fixture
def pile(tmp_path):
    """Twelve images in two classes, and a table of them and of absent ones."""
    pile = Pile(tmp_path, {"max_rejected_fraction": 0.3, "split": SplitConfig(train=0.5, validation=0.3, test=0.2)})
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in (tmp_path / "images").rglob("*.ppm"))
    write_table(pile, [*paths, "images/a/late.ppm", "/no/where.ppm"])
    return pile


def write_table(pile: Pile, paths: list[str]) -> None:
    (pile.home / "t.csv").write_text("path,label\n" + "".join(f"{path},{'ab'['b' in path]}\n" for path in paths))


def run(pile: Pile, runner=None, **changes):
    source = SourceConfig(uri=str(pile.home / "t.csv"), layout="table")
    job = pile.job().model_copy(update={"source": source, **changes})
    return vectorize(job, runner=runner or LocalRunner())


def rejected(pile: Pile) -> dict[str, tuple[str, str]]:
    table = pq.read_table(rejected_uri(pile.uri, load_manifest(pile.uri).rejected)).to_pylist()
    return {row["path"]: (row["reason"], row["detail"]) for row in table}


def test_rows_without_a_file_are_rejected_with_where_it_was_looked_for(pile):
    result = run(pile)
    assert sum(result.num_examples.values()) == 12
    assert result.num_rejected_by_reason == {"missing": 2}
    assert rejected(pile) == {
        "/no/where.ppm": ("missing", "no file at /no/where.ppm"),
        "images/a/late.ppm": ("missing", f"no file at {pile.home}/images/a/late.ppm"[:200]),
    }
    check_whole(pile.uri)
    assert not run(pile, NoRunner()).changed, "and are not looked for again by tasks"


def test_a_file_that_comes_is_read(pile):
    run(pile)
    pile.write({"a/late": 77})
    assert run(pile).num_rejected_by_reason == {"missing": 1}
    assert "images/a/late.ppm" in rows_of(pile.uri).path.tolist()


def test_files_that_are_away_for_a_while_come_back_into_their_splits(pile):
    """Without memory of them, stratified splits would be dealt anew."""
    names = [f"a/{number}" for number in range(20)]
    pile.write(dict(zip(names, range(20), strict=True)))
    write_table(pile, [f"images/{name}.ppm" for name in [*names, *(f"b/always {number}" for number in range(6))]])
    changes = {"split": pile.job().split.model_copy(update={"method": "stratified"}), "max_rejected_fraction": 0.5}
    run(pile, **changes)
    before = rows_of(pile.uri)
    away = [pile.home / "images" / f"{name}.ppm" for name in names[::2]]
    for file in away:
        file.rename(file.with_suffix(".away"))
    assert run(pile, **changes).num_rejected_by_reason == {"missing": 10}
    pile.write({"a/13": 99})
    for file in away:
        file.with_suffix(".away").rename(file)
    run(pile, **changes)
    after = rows_of(pile.uri)
    for frame in (before, after):
        frame.drop(frame[frame.path == "images/a/13.ppm"].index, inplace=True)
    assert after[["path", "split"]].equals(before[["path", "split"]])


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nowhere"])
def test_what_stands_there_is_no_file(pile, kind):
    odd = pile.home / "images" / "a" / "late.ppm"
    match kind:
        case "folder":
            odd.mkdir()
        case "pipe":
            os.mkfifo(odd)
        case _:
            odd.symlink_to("nowhere")
    reason = "missing" if kind == "link to nowhere" else "not_a_file"
    run(pile)
    assert rejected(pile)["images/a/late.ppm"][0] == reason


def test_too_many_are_refused_before_any_image_is_read(pile):
    with pytest.raises(
        UserError, match=r"t.csv: 2 of 14 paths are no files \(14.3%, first: /no/where.ppm\), over the "
    ):
        run(pile, NoRunner(), max_rejected_fraction=0.1)


def test_none_there_is_an_error_at_any_limit(pile):
    write_table(pile, ["a/1.ppm", "b/2.ppm"])
    with pytest.raises(UserError, match=r"source .*t.csv: none of its 2 paths is a file \(first: .*a/1.ppm\); correct"):
        run(pile, NoRunner(), max_rejected_fraction=1)


def test_of_a_store(pile, new_bucket):
    bucket = new_bucket()
    for file in (pile.home / "images").rglob("*.ppm"):
        filesystem.write_bytes(filesystem.join(bucket, "images", file.parent.name, file.name), file.read_bytes())
    filesystem.write_bytes(filesystem.join(bucket, "t.csv"), (pile.home / "t.csv").read_bytes())
    source = SourceConfig(uri=filesystem.join(bucket, "t.csv"), layout="table")
    result = run(pile, source=source)
    assert result.num_rejected_by_reason == {"missing": 2}
    assert sum(result.num_examples.values()) == 12
