"""What a run says of rejected images: of each once, and where nothing is published for their sake, of some at least."""

from __future__ import annotations

import pytest

from shardmean.model.errors import UserError
from tests.jobs.pile import EMPTY, GONE


@pytest.fixture
def told(caplog):
    """The paths that were told as rejected since the last call."""

    def told() -> list[str]:
        paths = [m.split(":")[0] for m in caplog.messages if m.startswith("rejected ")]
        caplog.clear()
        return [path.removeprefix("rejected ").removesuffix(".ppm") for path in paths]

    return told


def test_a_rejection_is_told_once_and_again_when_its_reason_changes(pile, told):
    """Thirty conflicts would crowd out the one that is new."""
    pile.write({f"{name}/copy {number:02d}": number for name in "ab" for number in range(15)})
    pile.run()
    assert len(told()) == 20, "and how many more there are"
    pile.write({"b/new bad": EMPTY})
    pile.run()
    assert told() == ["b/new bad"]
    pile.write({"a/copy 03": EMPTY, "b/copy 03": GONE, "b/new bad": 77})
    pile.run()
    assert told() == ["a/copy 03"]
    pile.write({"b/new bad": EMPTY})
    pile.run()
    assert told() == ["b/new bad"], "it was none meanwhile"


def test_a_rejection_that_is_not_published_is_told_again(pile, told):
    pile.write({"a/bad": EMPTY})
    for _ in range(2):
        with pytest.raises(UserError, match="fix the images listed above, or raise the limit"):
            pile.run(max_rejected_fraction=0)
        assert told() == ["a/bad"]


def test_over_a_lowered_limit_known_rejections_are_named_after_the_new_ones(pile, told):
    pile.write({f"a/bad {number}": EMPTY for number in range(8)})
    pile.run()
    told()
    pile.write({"a/good": 1})
    with pytest.raises(UserError, match=r"8 of 21 images were rejected .* fix the images listed above"):
        pile.run(max_rejected_fraction=0.05)
    assert told() == [f"a/bad {number}" for number in range(8)]
    pile.write({"b/bad": EMPTY})
    with pytest.raises(UserError, match="9 of 22"):
        pile.run(max_rejected_fraction=0.05)
    assert told() == ["b/bad", *(f"a/bad {number}" for number in range(8))]


@pytest.mark.parametrize("limit", [1, 0.05])
def test_all_rejected_is_said_so(pile, told, limit):
    pile.write({f"{name}/always {number}": EMPTY for name in "ab" for number in range(6)})
    said = r"all 12 images were rejected \(12 empty\): nothing was published; fix the images listed above, or correct"
    with pytest.raises(UserError, match=said):
        pile.run(max_rejected_fraction=limit)
    assert len(told()) == 12


def test_no_image_in_train_by_chance(pile):
    """Of two images, by some seeds; where one of the thirty gives one to train, the run is good."""
    pile.write({f"{name}/always {number}": GONE for name in "ab" for number in range(1, 6)})
    said = set()
    for seed in range(30):
        split = {"train": 0.1, "validation": 0.2, "test": 0.7, "seed": seed}
        try:
            pile.run(f"set {seed}", split=split)
        except UserError as error:
            said.add(str(error))
    assert any("no image fell into train; 2 images (0 of them rejected) are too few for" in text for text in said)
    assert all(text.endswith("add images, or raise split.train") for text in said)


def test_no_image_in_train_by_the_source(pile):
    pile.write({f"{name}/always {number}": GONE for name in "ab" for number in range(6)})
    pile.write({"test/a/1": 1, "test/b/2": 2, "val/a/3": 3, "train/b/4": EMPTY})
    with pytest.raises(UserError) as caught:
        pile.run(source={"split_folders": True})
    assert str(caught.value) == (
        "split: no image is in train: of 4 images source.split_folders gives 1 to train, 1 to validation, 2 to test, "
        "and 1 were rejected; give some to train, fix those rejected, or correct source.split_folders"
    )
