"""Unit vectors as one: what several images say of a product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPPOSITE = 1e-3
"""a sum of unit vectors shorter than this is what rounding left of opposite ones"""


def unit_means(vectors: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """The means, as unit vectors [P, D], of groups of rows of [N, D]; group p begins at row `starts[p]`.

    Vectors that cancel each other out count as the first of them.
    """
    if len(vectors) == 0:
        return vectors
    # most products have one image
    sums = vectors if len(starts) == len(vectors) else np.add.reduceat(vectors, starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    sums = np.where(lengths > OPPOSITE, sums, vectors[starts])
    means: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return means
