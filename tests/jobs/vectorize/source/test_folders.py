"""What the folders in paths say, against Python's own splitting of each path."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardmean.jobs.vectorize.source.folders import SPLIT_NAMES, Folders
from shardmean.model.errors import UserError

NAMES = st.sampled_from(["a", "b\n", "caf\xe9", "train", "Val", "TEST", ""])
PATHS = st.lists(st.lists(NAMES, max_size=3).map(lambda parts: "/".join([*parts, "1.png"])), min_size=1, max_size=6)


@given(PATHS)
def test_classes_are_the_first_and_the_last_folder(paths):
    folders = [path.split("/")[:-1] for path in paths]
    loose = [path for path, parts in zip(paths, folders, strict=True) if not any(parts)]
    for which, place in (("top_folder", 0), ("parent_folder", -1)):
        if loose:
            with pytest.raises(UserError) as caught:
                Folders(pa.array(paths)).classes(which)
            assert f"{len(loose)} images are outside any class folder (first: {loose[0]})" in str(caught.value)
        else:
            assert Folders(pa.array(paths)).classes(which).to_pylist() == [parts[place] for parts in folders]


@given(PATHS, st.sampled_from(["train", "Test"]), st.integers(0, 2))
def test_a_level_of_splits_gives_them_and_is_no_class(paths, split, level):
    """A folder is put into each path at one level from the top: that, or one above it that is all splits too."""
    folders = [path.split("/")[:-1] for path in paths]
    level = min(level, *map(len, folders))
    with_split = ["/".join([*parts[:level], split, *parts[level:], "1.png"]) for parts in folders]
    found = Folders(pa.array(with_split))
    levels = [n for n in range(level + 1) if all(p.split("/")[n].lower() in SPLIT_NAMES for p in with_split)]
    assert found.splits().to_pylist() == [SPLIT_NAMES[p.split("/")[levels[0]].lower()] for p in with_split]
    rest = [[part for n, part in enumerate(p.split("/")[:-1]) if n != levels[0]] for p in with_split]
    if all(any(parts) for parts in rest):
        assert found.classes("top_folder", are_split=True).to_pylist() == [parts[0] for parts in rest]
