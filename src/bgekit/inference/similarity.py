"""Scores between vectors, of each kind that a model can be trained for. Higher is nearer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..models.card import Similarity

#: Orders of the norms that are distances.
_ORDERS: Final[Mapping[str, int]] = {"euclidean": 2, "manhattan": 1}


def unit(vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The vectors in float32 and of length 1 (a vector of zeros stays)."""
    wide = np.asarray(vectors, dtype=np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), np.float32(1e-12))


def _numbers(vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    try:
        return np.asarray(vectors, dtype=np.float32)
    except ValueError as error:
        raise ArgumentError(f"similarity is of vectors, as model.encode(texts) gives them: {error}") from None


def similarity(a: npt.ArrayLike, b: npt.ArrayLike, kind: Similarity) -> npt.NDArray[np.float32]:
    """Scores [n, m] of vectors [n, d] and [m, d], computed in float32.

    Args:
        a: Vectors, or one [d].
        b: Vectors, or one [d].
        kind: `cosine`, `dot` (product), or `euclidean` or `manhattan`, which are distances with a minus sign.

    Raises:
        ArgumentError: the vectors have different widths, or what is given for them are none.
    """
    left, right = np.atleast_2d(_numbers(a)), np.atleast_2d(_numbers(b))
    if left.shape[1] != right.shape[1]:
        raise ArgumentError(f"the vectors have different widths: {left.shape[1]} and {right.shape[1]}")
    if kind in _ORDERS:
        order = _ORDERS[kind]
        # Row by row: the short cut through a product of matrices loses the small distances to rounding.
        rows = [np.linalg.norm(right - row, ord=order, axis=1) for row in left]
        return -np.stack(rows) if rows else np.empty((0, len(right)), dtype=np.float32)
    if kind == "cosine":
        left, right = unit(left), unit(right)
    return left @ right.T


def share_of(score: Any, share: float) -> Any:
    """A share of a score, whatever its sign: for a share below 1 never above the score.

    As a factor, a share of a score below 0 would lie above it: 0.9 of -0.2 is -0.22 here, not -0.18.

    Args:
        score: A number, an array or a tensor.
        share: Such as 0.95.
    """
    return score - (1 - share) * abs(score)


def paired_similarity(
    a: npt.NDArray[np.float32], b: npt.NDArray[np.float32], kind: Similarity
) -> npt.NDArray[np.float64]:
    """Scores [n] of the vectors a[i] and b[i], both [n, d], added up in float64; kinds as in `similarity`."""
    if kind in _ORDERS:
        distances: npt.NDArray[np.float64] = np.linalg.norm(a.astype(np.float64) - b, ord=_ORDERS[kind], axis=1)
        return -distances
    if kind == "cosine":
        a, b = unit(a), unit(b)
    return np.einsum("nd,nd->n", a, b, dtype=np.float64)
