"""Copies of the same bytes: which images have some, and why a copy is rejected.

Shapes: N images that may become examples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


HASH_BYTES = 16
CONFLICT, IN_OTHER_SPLIT = "conflicting_labels", "duplicate_in_other_split"


def copies(hashes: NDArray[np.uint8], *keys_N: NDArray[np.generic]) -> list[list[int]]:
    """Positions of equal hashes (N, HASH_BYTES), two or more, sorted by the keys, the last first, then by position."""
    high_N, low_N = hashes.view(">u8").reshape(-1, 2).T
    order = np.lexsort((*keys_N, low_N, high_N))
    differs = (np.diff(high_N[order]) != 0) | (np.diff(low_N[order]) != 0)
    groups = np.split(order, np.flatnonzero(differs) + 1)
    return [group.tolist() for group in groups if len(group) > 1]
