"""A training that goes on from any of its checkpoints ends with the bits of one that was never interrupted."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch

from shardmean.model.training import checkpoint

from .fitting import bits, fit, state_bits, training

if TYPE_CHECKING:
    from shardmean.model.training.checkpoint import Checkpoint

OUTER = {"learning_rate": 0.8, "momentum": 0.6}
RESUMED = {
    "adam": (1, {"averaging": {"frequency": 2}}),
    "outer momentum": (1, {"averaging": {"frequency": 2, "outer": OUTER}}),
    "keep, two workers": (
        2,
        {"averaging": {"frequency": 1, "optimizer_state": "keep", "outer": {"momentum": 0.5}}},
    ),
    "average, three workers": (3, {"averaging": {"frequency": "epoch"}}),
    "schedule, synchronous at first, halves sent": (
        2,
        {
            "averaging": {"frequency": 1, "synchronous_steps": 3, "comm_dtype": "bfloat16", "outer": OUTER},
            "optimizer": {"name": "adam", "schedule": {"name": "cosine", "warmup_examples": 40}},
        },
    ),
}


class DeathError(Exception):
    """The driver's."""


@pytest.mark.parametrize("every_rounds", [None, 1, 2])
@pytest.mark.parametrize("case", RESUMED)
def test_resumed_from_any_checkpoint_is_uninterrupted_to_the_bit(tiny_data, launchers, tmp_path, case, every_rounds):
    num_workers, config = RESUMED[case]
    settings = {"optimizer": {"name": "adam"}, "num_epochs": 2, "checkpoint_every_rounds": every_rounds} | config
    trained = training(tiny_data, launchers, num_workers=num_workers, **settings)
    undisturbed: list[Checkpoint] = []
    trained.fit(None, undisturbed.append)
    num_segments = len(undisturbed)
    assert num_segments == 2 if every_rounds is None or case == "average, three workers" else num_segments > 2

    def die(state: Checkpoint) -> None:
        checkpoint.save(str(tmp_path), state)
        raise DeathError

    for number in range(num_segments):
        torch.rand(3)  # the process's own generator must not matter
        with pytest.raises(DeathError):
            trained.fit(checkpoint.load_latest(str(tmp_path)), die)
        resumed = checkpoint.load_latest(str(tmp_path))
        assert state_bits(resumed) == state_bits(undisturbed[number])
    assert resumed.epoch == 2
    assert [metrics["examples"] for metrics in resumed.history] == [50, 50]


def test_a_segment_from_the_same_state_gives_the_same_bits(tiny_data, launchers):
    config = {"optimizer": {"name": "adam"}, "averaging": {"frequency": 2, "outer": {"momentum": 0.5}}}
    start = fit(training(tiny_data, launchers, num_epochs=1, **config))
    before = copy.deepcopy(start)
    segment = training(tiny_data, launchers, num_epochs=2, **config)
    once, again = fit(segment, start), fit(segment, start)
    assert state_bits(start) == state_bits(before), "the state that was passed in was changed"
    assert state_bits(once) == state_bits(again)
    assert bits(once.model) != bits(start.model)
