"""Images that were rejected for another's sake are read when that other is gone, and whatever happens then is decided.

In each of these the run once ended with an image that was neither an example nor rejected, and so did all later ones.
"""

from __future__ import annotations

import pytest

from shardmean.jobs.config.job import SourceConfig
from shardmean.jobs.spark.task_runner import LocalRunner
from shardmean.jobs.vectorize.job import vectorize
from shardmean.model.errors import RetryableError
from shardmean.model.storage import filesystem
from tests.jobs.pile import GONE, Pile
from tests.jobs.whole import check_whole, index_of

X = 7


@pytest.fixture
def out_of_reach(monkeypatch):
    """The names of images that can't be read at the moment."""
    names: set[str] = set()
    original = filesystem.read_bytes

    def read_bytes(uri, **more):
        if uri.rpartition("/")[2].removesuffix(".ppm") in names:
            error = PermissionError(13, "Permission denied")
            raise RetryableError(f"cannot read {uri}") from error
        return original(uri, **more)

    monkeypatch.setattr(filesystem, "read_bytes", read_bytes)
    return names


def run(pile: Pile, *rows: str) -> dict[str, str]:
    """A run over a table of the rows (`name,label,split`) and of what every pile has: each row's split or reason."""
    always = [f"{name}/always {number},{name}," for name in "ab" for number in range(6)]
    lines = [row.replace(",", ".ppm,", 1) for row in (*always, *rows)]
    (pile.home / "images" / "t.csv").write_text("\n".join(["path,label,split", *lines]))
    source = SourceConfig(uri=str(pile.home / "images" / "t.csv"), layout="table", split_column="split")
    vectorize(pile.job().model_copy(update={"source": source}), runner=LocalRunner())
    check_whole(pile.uri)
    index = index_of(pile.uri)
    index = index[~index.path.str.contains("always")]
    return dict(zip(index.path.str.removesuffix(".ppm"), index.split.fillna(index.reason), strict=True))


def test_one_that_is_free_but_unreadable_leaves_the_place_to_the_next(pile, out_of_reach):
    """Both b and c were rejected for the sake of A. When A is gone, b would come first."""
    pile.write({"A": X, "b": X, "c": X})
    run(pile, "A,a,train")
    copies = dict.fromkeys("bc", "duplicate_in_other_split")
    assert run(pile, "A,a,train", "b,a,test", "c,a,validation") == {"A": "train"} | copies
    out_of_reach.add("b")
    assert run(pile, "b,a,test", "c,a,validation") == {"b": "no_permission", "c": "validation"}
    out_of_reach.clear()
    assert run(pile, "b,a,test", "c,a,validation") == {"b": "duplicate_in_other_split", "c": "validation"}


def test_a_file_that_is_missing_is_no_rival(pile):
    """Of the missing A the bytes are still known, and they are those of B, which stands in another class."""
    pile.write({"A": X, "B": X, "C": X})
    home = run(pile, "A,a,")["A"]
    pile.write({"A": GONE})
    conflict = {"A": "missing"} | dict.fromkeys("BC", "conflicting_labels")
    assert run(pile, "A,a,", "B,b,", "C,a,") == conflict
    assert run(pile, "A,a,", "B,b,") == {"A": "missing", "B": home}


def test_one_that_comes_back_may_free_another(pile, out_of_reach):
    """Published in train and in test, at different times: when both are there, the first by path leads the copies."""
    pile.write({"a first": X, "b second": X, "c third": X})
    run(pile, "a first,a,test")
    out_of_reach.add("a first")
    pile.touch("a first")
    rows = {"a first": "no_permission", "b second": "train", "c third": "duplicate_in_other_split"}
    assert run(pile, "a first,a,test", "b second,a,train", "c third,a,test") == rows
    out_of_reach.clear()
    assert run(pile, "a first,a,", "b second,a,", "c third,a,test") == dict.fromkeys(rows, "test")
