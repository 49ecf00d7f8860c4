"""A damaged DataSet: the run that needs the file says so and publishes nothing, and replacing mends it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardmean.model.dataset.manifest import load_manifest
from shardmean.model.errors import RetryableError
from tests.jobs.pile import EMPTY, GONE
from tests.jobs.whole import check_whole, rows_of


@pytest.mark.parametrize(("change", "said"), [("cut", "damaged"), ("gone", "missing")])
def test_a_damaged_index_is_told_and_replace_mends_it(pile, change, said):
    first = pile.run()
    (file,) = (Path(pile.uri) / "index").iterdir()
    file.write_bytes(file.read_bytes()[:-1]) if change == "cut" else file.unlink()
    pile.write({"a/new": 1})
    with pytest.raises(RetryableError, match=rf"{file.name}: {said}.*; restore .* replace=true"):
        pile.run()
    assert load_manifest(pile.uri).digest == first.digest
    pile.run(replace=True)
    check_whole(pile.uri)


@pytest.mark.parametrize("change", ["cut", "swapped", "gone"])
def test_a_damaged_shard_is_told_when_it_must_be_rewritten(pile, change):
    pile.write({f"a/{number}": number for number in range(80)})
    first = pile.run()
    rows = rows_of(pile.uri).set_index("path")
    name, other = rows.shard["a/7.ppm"], next(shard for shard in set(rows.shard) if shard != rows.shard["a/7.ppm"])
    file = Path(pile.uri) / "shards" / name
    if change == "gone":
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-9] if change == "cut" else file.with_name(other).read_bytes())
    pile.write({"a/7": GONE})
    with pytest.raises(
        RetryableError, match=rf"{name}: .*; the shard is damaged: restore the DataSet, or run vectorize with"
    ):
        pile.run()
    assert load_manifest(pile.uri).digest == first.digest
    pile.run(replace=True)
    check_whole(pile.uri)


@pytest.mark.parametrize("folder", ["index", "rejected", "reports", "versions", "shards"])
def test_replace_mends_any_file_though_all_is_as_it_was(pile, tmp_path, folder):
    """The version comes out the same, and its files are written all the same."""
    pile.write({"a/bad": EMPTY})
    first = pile.run()
    shutil.copytree(pile.uri, tmp_path / "whole")
    file = next((Path(pile.uri) / folder).iterdir())
    file.write_bytes(b"junk")
    assert not pile.run().changed, "nothing is new, so nothing is read"
    again = pile.run(replace=True)
    assert again.digest == first.digest
    assert not again.changed, "nobody need train anew"
    assert file.read_bytes() == (tmp_path / "whole" / folder / file.name).read_bytes()
    check_whole(pile.uri, first.digest)
