"""Scores between vectors, of each kind that a model can be trained for. Higher is nearer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..models.card import Similarity


def similarity(a: npt.ArrayLike, b: npt.ArrayLike, kind: Similarity) -> npt.NDArray[np.float32]:
    """Scores [n, m] of vectors [n, d] and [m, d], computed in float32.

    Args:
        a: Vectors, or one [d].
        b: Vectors, or one [d].
        kind: `cosine`, `dot` (product), or `euclidean` or `manhattan`, which are distances with a minus sign.

    Raises:
        ArgumentError: the vectors have different widths.
    """
    left, right = (np.atleast_2d(np.asarray(vectors, dtype=np.float32)) for vectors in (a, b))
    if left.shape[1] != right.shape[1]:
        raise ArgumentError(f"the vectors have different widths: {left.shape[1]} and {right.shape[1]}")
    if kind in ("euclidean", "manhattan"):
        order = 2 if kind == "euclidean" else 1
        # Row by row: the short cut through a product of matrices loses the small distances to rounding.
        rows = [np.linalg.norm(right - row, ord=order, axis=1) for row in left]
        return -np.stack(rows) if rows else np.empty((0, len(right)), dtype=np.float32)
    if kind == "cosine":
        left, right = (e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-12) for e in (left, right))
    return left @ right.T
