"""Random numbers that depend on (seed, epoch, example, stream) alone, so not on the batch, the worker or the retry.

Shapes: N examples, S streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


class Stream(IntEnum):
    """What a number is drawn for. A new purpose goes to the end, so that the others keep their numbers."""

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
    CORNERS = 27  # and the seven after it: x and y of four corners


NUM_STREAMS = Stream.CORNERS + 8


@dataclass(frozen=True)
class Draws:
    """Numbers of N examples, uniform in [0, 1): one row an example, one column a stream."""

    uniform_NS: NDArray[np.float64]

    @classmethod
    def of(cls, keys_N: NDArray[np.uint64], *, seed: int, epoch: int) -> Self:
        """The draws of the examples with these keys: an example's row is the SplitMix64 sequence of its own state.

        SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
        """
        (salt,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
        states_N = _mixed(keys_N ^ salt)
        steps_S = _STEP * np.arange(1, NUM_STREAMS + 1, dtype=np.uint64)
        bits_NS = _mixed(states_N[:, None] + steps_S) >> np.uint64(11)
        return cls(bits_NS.astype(np.float64) * 2.0**-53)

    def take(self, rows: NDArray[np.int64] | slice) -> Draws:
        """The draws of the examples at the given places."""
        return Draws(self.uniform_NS[rows])

    def happens(self, stream: Stream, probability: float) -> NDArray[np.int64]:
        """Places of the examples to which something of this probability happens."""
        return np.flatnonzero(self.uniform_NS[:, stream] < probability)

    def between(self, stream: Stream, low: float, high: float) -> NDArray[np.float64]:
        """One number an example, uniform from `low` to `high`."""
        return low + (high - low) * self.uniform_NS[:, stream]


def example_keys(ids: pa.StringArray) -> NDArray[np.uint64]:
    """A key of 64 bits for each id, whatever its length, without a Python string.

    Each byte is multiplied by a weight of its place, and the sum mixed. Two ids share a key with a chance near 2**-56
    (multilinear hashing: Lemire and Kaser, "Strongly universal string hashing is fast", 2014). The weights never
    change, so an id has the same key everywhere.
    """
    starts_N1 = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    lengths_N = np.diff(starts_N1)
    data = ids.buffers()[2]
    text = np.frombuffer(data if data is not None else b"", np.uint8)[starts_N1[0] : starts_N1[-1]]
    places = np.arange(len(text)) - np.repeat(starts_N1[:-1] - starts_N1[0], lengths_N)
    weights = _mixed(_STEP * np.arange(1, lengths_N.max(initial=0) + 2, dtype=np.uint64))
    # Sums between two places of a running sum: wrapping round at 2**64 does them no harm.
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(text * weights[places + 1], dtype=np.uint64)])
    ends_N1 = starts_N1 - starts_N1[0]
    return _mixed(running[ends_N1[1:]] - running[ends_N1[:-1]] + weights[0] * lengths_N.astype(np.uint64))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The output function of SplitMix64: each bit of the result depends on each bit of the value.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
