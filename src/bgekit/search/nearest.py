"""The nearest vectors, found by looking at every one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..inference.similarity import unit

#: Queries compared at once; with a block of vectors this bounds the memory that scores take.
QUERIES: Final = 256
#: No vector of length 1 is longer, however it was rounded.
UNIT_LENGTH: Final = 1.001

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
#: The first row of each block of vectors, and the block [rows, d] in any float type, in order.
Blocks = Iterable[tuple[int, npt.NDArray[Any]]]
#: The same, or with the number of each row where these do not follow one another.
AnyBlocks = Iterable[tuple[int | Rows, npt.NDArray[Any]]]


class TopK:
    """The best rows for each query so far, of vectors that come block by block.

    A product of matrices finds who may be among the best, but it rounds a row's score by the row's place in the
    block and by the number of rows. What it finds is therefore scored once more, each row for itself: equal vectors
    have equal scores, whatever block they lie in.
    """

    def __init__(self, queries: Floats, top_k: int, *, cosine: bool, longest: float | None = None) -> None:
        """Nothing seen yet.

        Args:
            queries: [n, d] float32, at most `QUERIES` of them.
            top_k: Rows wanted; there are fewer when there are fewer vectors.
            cosine: Compare by cosine; otherwise by dot product. Both are computed in float32.
            longest: A length that no vector exceeds, where it is known: it need not be measured.
        """
        self._queries = unit(queries) if cosine else np.asarray(queries, dtype=np.float32)
        self._top_k, self._cosine = top_k, cosine
        self._longest = UNIT_LENGTH if cosine else longest
        self._lengths = np.sqrt(np.einsum("nd,nd->n", self._queries, self._queries))[:, None]
        self._best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
        # What a row must exceed to be among the best so far: an equal row comes later, so it loses.
        self._floors = np.full((len(queries), 1), -np.inf, dtype=np.float32)

    def add(self, rows: int | Rows, block: npt.NDArray[Any]) -> None:
        """Look at the vectors [rows, d] of a block, of any float type.

        Args:
            rows: The number of its first row, if all follow one another, or of each of them, in order.
            block: Their vectors.
        """
        vectors = unit(block) if self._cosine else np.asarray(block, dtype=np.float32)
        if not len(vectors):
            return
        for query, columns, scores in self._promising(vectors, self._lengths * self._rounding(vectors)):
            found = rows + columns if isinstance(rows, int) else rows[columns]
            self._best[query] = _merge(self._best[query], scores, found, self._top_k)
            if len(self._best[query][0]) == self._top_k:
                self._floors[query] = self._best[query][0][-1]

    def found(self) -> list[tuple[Floats, Rows]]:
        """Scores and rows for each query, both [k], best first; the earlier of equal ones first."""
        return self._best

    def _rounding(self, vectors: Floats) -> float:
        """Bound on the difference of two ways of adding up a product, for a query of length 1."""
        longest = self._longest
        if longest is None:
            # More than the longest has, and far quicker to find than its length.
            longest = float(np.sqrt(vectors.shape[1])) * max(float(vectors.max()), -float(vectors.min()))
        return (vectors.shape[1] * float(np.finfo(np.float32).eps) + self._coarseness()) * longest

    def _coarseness(self) -> float:
        """Bound on the error of a matrix product beyond the rounding of float32, for vectors of length 1."""
        return 0.0

    def _promising(self, vectors: Floats, rounding: Floats) -> Iterator[tuple[int, Rows, Floats]]:
        """Queries, columns that may be among their best, in order, and the scores of these, each for itself.

        Args:
            vectors: [rows, d].
            rounding: [queries, 1], how far the scores of a product may be off.
        """
        products = self._queries @ vectors.T
        better = products > self._floors - rounding
        for query in np.flatnonzero(better.any(axis=1)):
            columns = np.flatnonzero(better[query])
            if len(columns) > self._top_k:
                # No scores for all of a block: only for what may reach that of the k-th best.
                found = products[query, columns]
                least = np.partition(found, len(found) - self._top_k)[len(found) - self._top_k]
                columns = columns[found >= least - 2 * rounding[query]]
            yield int(query), columns, row_scores(self._queries[query], vectors[columns])


def row_scores(query: Floats, vectors: Floats) -> Floats:
    """Dot products [n] of a query [d] and vectors [n, d], in float32; each depends on its two vectors alone."""
    return np.einsum("nd,d->n", np.ascontiguousarray(vectors), query)


def nearest(
    queries: Floats,
    blocks: AnyBlocks,
    top_k: int,
    *,
    cosine: bool,
    longest: float | None = None,
) -> list[tuple[Floats, Rows]]:
    """The rows with the highest scores for each query, of all blocks.

    Args:
        queries: [n, d] float32, at most `QUERIES` of them.
        blocks: All vectors that are looked at.
        top_k: Rows wanted; there are fewer when there are fewer vectors.
        cosine: Compare by cosine; otherwise by dot product.
        longest: A length that no vector exceeds, where it is known.

    Returns:
        As `TopK.found`.
    """
    best = TopK(queries, top_k, cosine=cosine, longest=longest)
    for rows, block in blocks:
        best.add(rows, block)
    return best.found()


def _merge(best: tuple[Floats, Rows], scores: Floats, rows: Rows, top_k: int) -> tuple[Floats, Rows]:
    """The best of two sets, of which all rows of the second come after those of the first."""
    scores, rows = np.concatenate([best[0], scores]), np.concatenate([best[1], rows])
    order = np.argsort(-scores, kind="stable")[:top_k]
    return scores[order], rows[order]
