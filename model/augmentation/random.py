"""Random numbers that depend only on (seed, epoch, example, stream), not on the batch, the worker or a retry.

Shapes: N examples, S streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Self

import numpy as np

from ..dataset.hashing import GOLDEN_STEP, mix_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Stream(IntEnum):
    """What a number is drawn for. A new one goes to the end, so that the others keep their numbers."""

    CHANGE = 0
    FLIP_HORIZONTAL = 1
    FLIP_VERTICAL = 2
    CROP_AREA = 3
    CROP_ASPECT = 4
    CROP_X = 5
    CROP_Y = 6
    SCALE = 7
    SHEAR = 8
    ROTATE = 9
    TRANSLATE_X = 10
    TRANSLATE_Y = 11
    SHIFT_X = 12
    SHIFT_Y = 13
    BLUR = 14
    BLUR_SIGMA = 15
    BRIGHTNESS = 16
    CONTRAST = 17
    SATURATION = 18
    HUE = 19
    GRAYSCALE = 20
    EQUALIZE = 21
    ERASE = 22
    ERASE_AREA = 23
    ERASE_ASPECT = 24
    ERASE_X = 25
    ERASE_Y = 26
    CORNERS = 27  # and the seven after it: x and y of each of four corners


NUM_STREAMS = Stream.CORNERS + 8


@dataclass(frozen=True)
class Draws:
    """Random numbers of N examples, uniform in [0, 1): a row for each example, a column for each stream."""

    uniform_NS: NDArray[np.float64]

    @classmethod
    def of(cls, keys_N: NDArray[np.uint64], *, seed: int, epoch: int) -> Self:
        """The numbers of the examples with these keys: the SplitMix64 sequence of a state made of key, seed and epoch.

        SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
        """
        (salt,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
        states_N = mix_bits(keys_N ^ salt)
        steps_S = GOLDEN_STEP * np.arange(1, NUM_STREAMS + 1, dtype=np.uint64)
        bits_NS = mix_bits(states_N[:, None] + steps_S) >> np.uint64(11)
        return cls(bits_NS.astype(np.float64) * 2.0**-53)

    def take(self, rows: NDArray[np.int64] | slice) -> Draws:
        """The numbers of the given rows."""
        return Draws(self.uniform_NS[rows])

    def happens(self, stream: Stream, probability: float) -> NDArray[np.int64]:
        """The rows for which an event of this probability happens."""
        return np.flatnonzero(self.uniform_NS[:, stream] < probability)

    def between(self, stream: Stream, low: float, high: float) -> NDArray[np.float64]:
        """A number for each example, uniform from `low` to `high`."""
        return low + (high - low) * self.uniform_NS[:, stream]
