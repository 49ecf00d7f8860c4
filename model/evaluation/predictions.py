"""Which class a model gives each row: what two models are compared by, row by row. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of N rows: their ids (32 hex digits), their own class number, and the predicted one."""

    ids_N: NDArray[np.bytes_]
    labels_N: NDArray[np.int32]
    predicted_N: NDArray[np.int32]

    def sorted(self) -> Predictions:
        """In the order of ids, so that two models' rows stand side by side."""
        order = np.argsort(self.ids_N, kind="stable")
        return Predictions(self.ids_N[order], self.labels_N[order], self.predicted_N[order])

    @classmethod
    def concatenated(cls, parts: Sequence[Predictions]) -> Predictions:
        """The rows of all parts, of which there is one at least."""
        columns = zip(*((part.ids_N, part.labels_N, part.predicted_N) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))
