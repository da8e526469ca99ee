"""The nearest vectors, found by looking at every one of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..encoding.similarity import unit as unit

#: Queries compared at once; with a block of vectors this bounds the memory that scores take.
QUERIES: Final = 256

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class TopK:
    """The best rows for each query so far, of vectors that come block by block."""

    def __init__(self, queries: Floats, top_k: int, *, cosine: bool) -> None:
        """Nothing seen yet.

        Args:
            queries: [n, d] float32, at most `QUERIES` of them.
            top_k: Rows wanted; there are fewer when there are fewer vectors.
            cosine: Compare by cosine; otherwise by dot product. Both are computed in float32.
        """
        self._queries = unit(queries) if cosine else np.asarray(queries, dtype=np.float32)
        self._top_k, self._cosine = top_k, cosine
        self._best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
        # What a row must exceed to be among the best so far: an equal row comes later, so it loses.
        self._floors = np.full((len(queries), 1), -np.inf, dtype=np.float32)

    def add(self, first: int, block: npt.NDArray[Any]) -> None:
        """Look at the vectors [rows, d] of a block, of any float type, whose first row has this number."""
        vectors = unit(block) if self._cosine else np.asarray(block, dtype=np.float32)
        scores = self._queries @ vectors.T
        better = scores > self._floors
        for query in np.flatnonzero(better.any(axis=1)):
            columns = np.flatnonzero(better[query])
            self._best[query] = _merge(self._best[query], scores[query, columns], first + columns, self._top_k)
            if len(self._best[query][0]) == self._top_k:
                self._floors[query] = self._best[query][0][-1]

    def found(self) -> list[tuple[Floats, Rows]]:
        """Scores and rows for each query, both [k], best first; the earlier of equal ones first."""
        return self._best


def nearest(
    queries: Floats, blocks: Iterable[tuple[int, npt.NDArray[Any]]], top_k: int, *, cosine: bool
) -> list[tuple[Floats, Rows]]:
    """The rows with the highest scores for each query, of all blocks.

    Args:
        queries: [n, d] float32, at most `QUERIES` of them.
        blocks: The first row of each block of vectors, and the block [rows, d] in any float type, in order.
        top_k: Rows wanted; there are fewer when there are fewer vectors.
        cosine: Compare by cosine; otherwise by dot product.

    Returns:
        As `TopK.found`.
    """
    best = TopK(queries, top_k, cosine=cosine)
    for first, block in blocks:
        best.add(first, block)
    return best.found()


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
