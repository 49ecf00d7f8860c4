"""Keys of examples: numbers made of their ids, the same in every process.

Shapes: N examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


GOLDEN_STEP = np.uint64(0x9E3779B97F4A7C15)


def example_keys(ids: pa.StringArray) -> NDArray[np.uint64]:
    """A key of 64 bits for each id, whatever its length, without a Python string.

    Each byte is multiplied by the weight of its position, and the sum mixed. Two ids share a key with chance near 2^-56
    (multilinear hashing: Lemire and Kaser, "Strongly universal string hashing is fast", 2014). The weights never
    change, so an id has the same key everywhere.
    """
    starts_N1 = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    lengths_N = np.diff(starts_N1)
    data = ids.buffers()[2]
    text = np.frombuffer(data if data is not None else b"", np.uint8)[starts_N1[0] : starts_N1[-1]]
    positions = np.arange(len(text)) - np.repeat(starts_N1[:-1] - starts_N1[0], lengths_N)
    weights = mix_bits(GOLDEN_STEP * np.arange(1, lengths_N.max(initial=0) + 2, dtype=np.uint64))
    # Sums between two positions of a running sum: wrapping round at 2**64 does them no harm.
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(text * weights[positions + 1], dtype=np.uint64)])
    ends_N1 = starts_N1 - starts_N1[0]
    return mix_bits(running[ends_N1[1:]] - running[ends_N1[:-1]] + weights[0] * lengths_N.astype(np.uint64))


def mix_bits(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64, of each value: each bit of a result depends on each bit of its value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
