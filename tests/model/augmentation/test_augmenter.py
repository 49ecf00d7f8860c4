"""Augmentation's laws: a function of (seed, epoch, example) alone, whatever the batch, and off where nothing is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmean.model.augmentation.augmenter import CPU_PIECE_BYTES, Augmenter
from shardmean.model.augmentation.random import Draws, Stream
from shardmean.model.config.augmentation import AugmentationConfig
from shardmean.model.config.image import ImageConfig
from shardmean.model.errors import UserError
from tests.model.augmenting import CHANGES, KEYS, RGB_ONLY, augmented, draws_of, random_images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@st.composite
def configs(draw, channels: int) -> AugmentationConfig:
    names = sorted(set(CHANGES) - (RGB_ONLY if channels == 1 else set()))
    chosen = draw(st.sets(st.sampled_from(names), min_size=1))
    return AugmentationConfig(**{name: CHANGES[name] for name in chosen})


@pytest.fixture(params=[1, 2])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def repainted(config: AugmentationConfig, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the device computes for some of the images, before it is rounded to uint8."""
    augmenter = Augmenter(config, seed=3, epoch=1, mean=[0.5] * images.shape[1])
    floats = torch.from_numpy(images[rows]).float() / 255
    return augmenter._transformed(floats, Draws.of(KEYS[rows], seed=3, epoch=1)).numpy()


@pytest.mark.parametrize("channels", [1, 3])
@settings(max_examples=60)
@given(data=st.data())
def test_an_image_becomes_the_same_in_any_batch(channels, data):
    config = data.draw(configs(channels))
    shape = (channels, data.draw(st.integers(5, 19)), data.draw(st.integers(5, 19)))
    rows = np.array(data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=12)))
    images = random_images(12, *shape)
    np.testing.assert_array_equal(augmented(config, images[rows], KEYS[rows]), augmented(config, images)[rows])
    np.testing.assert_array_equal(repainted(config, images, rows), repainted(config, images, np.arange(12))[rows])


ALONE = {name: {name: change} for name, change in CHANGES.items() if name not in ("probability", "border")}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("changes", [*ALONE.values(), CHANGES], ids=[*ALONE, "all"])
def test_a_large_image_becomes_the_same_alone_and_on_any_number_of_threads(channels, changes, threads):
    known = {key: value for key, value in changes.items() if channels == 3 or key not in RGB_ONLY}
    config = AugmentationConfig(**known)
    images = random_images(3, channels, 230, 221)
    whole = repainted(config, images, np.arange(3))
    for row in range(3):
        np.testing.assert_array_equal(repainted(config, images, np.array([row]))[0], whole[row])
    torch.set_num_threads(3 - threads)
    np.testing.assert_array_equal(repainted(config, images, np.arange(3)), whole)


def test_pieces_of_a_large_batch_become_what_they_are_alone():
    images = random_images(9, 3, 320, 320)
    assert images[0].nbytes * 4 * 7 > CPU_PIECE_BYTES
    config = AugmentationConfig(rotate_degrees=30, erase=0.5, probability=0.7)
    np.testing.assert_array_equal(augmented(config, images)[8], augmented(config, images[[8]], KEYS[[8]])[0])


@pytest.mark.parametrize("change", [{"epoch": 2}, {"seed": 4}, {"keys": KEYS[50:58]}], ids=["epoch", "seed", "example"])
def test_another_epoch_seed_or_example_is_changed_otherwise(change):
    config = AugmentationConfig(rotate_degrees=40, translate_fraction=0.2)
    images = random_images(8, 1, 12, 12)
    others = augmented(config, images, **change)
    assert all((one != other).any() for one, other in zip(augmented(config, images), others, strict=True))
    np.testing.assert_array_equal(augmented(config, images), augmented(config, images))


def test_nothing_is_on_by_default():
    assert not AugmentationConfig().is_on
    assert not AugmentationConfig(**(CHANGES | {"probability": 0})).is_on
    assert not AugmentationConfig(border="edge", blur_sigma_px=3, erase_area_max=0.5).is_on
    for name in set(CHANGES) - {"probability", "border"}:
        assert AugmentationConfig(**{name: CHANGES[name]}).is_on, name


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_the_share_of_changed_examples_is_the_probability_and_the_others_stay(probability):
    images = random_images(400, 1, 6, 6)
    changed = augmented(AugmentationConfig(brightness=0.9, probability=probability), images)
    is_changed = (changed != images).any(axis=(1, 2, 3))
    expected = draws_of(400).happens(Stream.CHANGE, probability)
    assert set(np.flatnonzero(is_changed)) <= set(expected)
    assert len(expected) - is_changed.sum() < 5, "a factor near 1 changes nothing"


@pytest.mark.parametrize("name", sorted(RGB_ONLY))
def test_colors_of_gray_images_are_refused(name):
    config = AugmentationConfig(**{name: 0.25})
    config.check(ImageConfig(channels=3))
    with pytest.raises(
        UserError, match=rf"augmentation\.{name} = 0\.25: images of 1 channel have no colors.*set it to 0"
    ):
        config.check(ImageConfig(channels=1))
