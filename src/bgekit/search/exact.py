"""The nearest vectors, found by looking at every one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Queries compared at once; with a block of vectors this bounds the memory that scores take.
QUERIES: Final = 256

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def unit(vectors: npt.NDArray[Any]) -> Floats:
    """The vectors in float32 and of length 1 (a vector of zeros stays)."""
    wide = np.asarray(vectors, dtype=np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), np.float32(1e-12))


def nearest(
    queries: Floats, blocks: Iterable[tuple[int, npt.NDArray[Any]]], top_k: int, *, cosine: bool
) -> list[tuple[Floats, Rows]]:
    """The rows with the highest scores for each query, best first; the earlier of equal ones first.

    Args:
        queries: [n, d] float32, at most `QUERIES` of them.
        blocks: The first row of each block of vectors, and the block [rows, d] in any float type, in order.
        top_k: Rows wanted; there are fewer when there are fewer vectors.
        cosine: Compare by cosine; otherwise by dot product. Both are computed in float32.

    Returns:
        Scores and rows for each query, both [k].
    """
    if cosine:
        queries = unit(queries)
    best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
    # What a row must exceed to be among the best so far: an equal row comes later, so it loses.
    floors = np.full((len(queries), 1), -np.inf, dtype=np.float32)
    for first, block in blocks:
        vectors = unit(block) if cosine else np.asarray(block, dtype=np.float32)
        scores = queries @ vectors.T
        better = scores > floors
        for query in np.flatnonzero(better.any(axis=1)):
            columns = np.flatnonzero(better[query])
            best[query] = _merge(best[query], scores[query, columns], first + columns, top_k)
            if len(best[query][0]) == top_k:
                floors[query] = best[query][0][-1]
    return best


def _merge(best: tuple[Floats, Rows], scores: Floats, rows: Rows, top_k: int) -> tuple[Floats, Rows]:
    """The best of two sets, of which all rows of the second come after those of the first."""
    if len(scores) > top_k:
        # No full sort of a block: only what reaches the score of the k-th best.
        least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        kept = scores >= least
        scores, rows = scores[kept], rows[kept]
    scores, rows = np.concatenate([best[0], scores]), np.concatenate([best[1], rows])
    order = np.argsort(-scores, kind="stable")[:top_k]
    return scores[order], rows[order]
