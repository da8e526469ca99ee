"""How wide an approximate index is searched: measured on a sample, against exact search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..inference.similarity import unit
from .approximate import SCATTERED, Approximate, Effort, Measured, Tuning
from .nearest import QUERIES, UNIT_LENGTH, Blocks, Floats, Rows, nearest

#: Recall that is aimed at unless told otherwise.
RECALL: Final = 0.99
#: Queries that a search is measured with, numbers of nearest rows it is measured for, and candidates at most.
_SAMPLE: Final = 256
_DEPTHS: Final = (10, 100)
_CANDIDATES_MOST: Final = 4096
#: Scores that count as equal.
_TIE: Final = 1e-6


def check_recall(recall: float | None) -> None:
    """Raise ArgumentError unless a recall is left out (None) or lies between 0.5 and 1, 1 itself excluded."""
    if recall is not None and not 0.5 <= recall < 1:
        raise ArgumentError(
            f"recall must be at least 0.5 and less than 1, the share of the nearest texts found, not {recall}; "
            "the index type exact finds all of them"
        )


def tuned(
    index: Approximate,
    blocks: Callable[[], Blocks],
    vectors: Callable[[Rows], npt.NDArray[np.float32]],
    *,
    recall: float,
    queries: Floats | None = None,
    unit_vectors: bool,
) -> Tuning:
    """The least work that finds as much of the nearest rows as is wanted, measured on a sample.

    Args:
        index: The index.
        blocks: Gives all vectors, in order, each time it is called; of length 1 if scores are cosines.
        vectors: Gives those of some rows.
        recall: Share of the nearest that is to be found. It is reached by the mean over the sample less its standard
            error.
        queries: Vectors [n, d] of queries, of length 1 if scores are cosines. Without, what lies half way between
            two rows of the index stands for one, and these two are left out of what it should find.
        unit_vectors: Whether all vectors have length 1.
    """
    if index.count <= 2 * _DEPTHS[0]:
        return Tuning(recall, 0, False, (Measured(_DEPTHS[0], index.widths()[-1], max(index.count, 1), 1.0),))
    own: Rows | None = None
    if queries is None or not len(queries):
        size = 2 * min(_SAMPLE, index.count // 2)
        own = np.sort(np.random.default_rng(0).permutation(index.count)[:size])
        queries = np.asarray(vectors(own), dtype=np.float32)
        mixed = np.random.default_rng(1).permutation(size)
        own = own[mixed].reshape(2, -1).T  # Two rows for each, which it must not find.
        queries = _between(queries[mixed])
        queries = unit(queries) if unit_vectors else queries
    else:
        queries = queries[np.sort(np.random.default_rng(0).permutation(len(queries))[:_SAMPLE])]
    depths = [depth for depth in _DEPTHS if depth <= max(index.count // 4, _DEPTHS[0])]
    truth = _truth(queries, blocks, depths[-1], own, unit_vectors)
    most = min(_CANDIDATES_MOST, index.count)
    # For each width so far, the fewest candidates that reach the recall at each depth; None where it is not reached.
    measured: list[list[Measured | None]] = []

    def work(point: Measured | None) -> float:
        if point is None:
            return math.inf
        scored = SCATTERED * point.candidates * 4.0 * queries.shape[1]
        return index.work(Effort(point.width, point.candidates)) + scored

    def least(column: int) -> int | None:
        """The place in `measured` of the least work at a depth; None where no width reaches the recall."""
        works = [work(points[column]) for points in measured]
        return int(np.argmin(works)) if min(works) < math.inf else None

    for at, width in enumerate(index.widths()):
        found = index.ranked(queries, Effort(width, most))
        if own is not None:
            found = [rows[~np.isin(rows, two)] for rows, two in zip(found, own, strict=True)]
        measured.append([_measured(found, truth, depth, recall, most, width) for depth in depths])
        best = [least(column) for column in range(len(depths))]
        if all(place is not None and place <= at - 2 for place in best):
            break  # Two more were no less work: none is.
    points = []
    for column, depth in enumerate(depths):
        place = least(column)
        point = None if place is None else measured[place][column]
        if point is None:  # Nothing reaches the recall: as wide as there is.
            places = [_places(rows, scores, known, depth) for rows, (scores, known) in zip(found, truth, strict=True)]
            point = Measured(depth, width, most, round(float(_recall(places, depth, most).mean()), 4))
        points.append(point)
    return Tuning(recall, len(queries), own is None, tuple(_rising(points)))


def _measured(
    found: Sequence[Rows], truth: Sequence[tuple[Floats, Rows]], depth: int, wanted: float, most: int, width: int
) -> Measured | None:
    """The fewest candidates of what a width found that reach a recall at a depth; None if all do not."""
    places = [_places(rows, scores, known, depth) for rows, (scores, known) in zip(found, truth, strict=True)]
    reached = _least(places, depth, wanted, most)
    return None if reached is None else Measured(depth, width, reached[0], round(reached[1], 4))


def _between(vectors: Floats) -> Floats:
    """Vectors [n, d] half way between one of the first n and one of the last n of 2 n rows: they stand for queries.

    Rows themselves would be found too easily: a graph has links to their neighbours, and cells are made of them.
    What is nearest to a query lies in many cells, as it does half way between two rows.
    """
    half = len(vectors) // 2
    return np.ascontiguousarray((vectors[:half] + vectors[half:]) / 2)


def _rising(points: Sequence[Measured]) -> list[Measured]:
    """Points of which none is narrower than one for fewer rows."""
    rising: list[Measured] = []
    for point in points:
        before = rising[-1] if rising else point
        rising.append(
            Measured(point.k, max(point.width, before.width), max(point.candidates, before.candidates), point.recall)
        )
    return rising


def _truth(
    queries: Floats, blocks: Callable[[], Blocks], depth: int, own: Rows | None, unit_vectors: bool
) -> list[tuple[Floats, Rows]]:
    """Scores and rows of the nearest of each query, best first, without its own rows; a few more than `depth`."""
    longest = UNIT_LENGTH if unit_vectors else None
    found: list[tuple[Floats, Rows]] = []
    for first in range(0, len(queries), QUERIES):
        part = queries[first : first + QUERIES]
        scores, rows = nearest(part, blocks, depth + 2, cosine=False, longest=longest)
        found += [(best[there >= 0], there[there >= 0]) for best, there in zip(scores, rows, strict=True)]
    if own is not None:
        shown = [~np.isin(rows, two) for (_, rows), two in zip(found, own, strict=True)]
        found = [(scores[each], rows[each]) for (scores, rows), each in zip(found, shown, strict=True)]
    return found


def _places(rows: Rows, scores: Floats, known: Rows, depth: int) -> npt.NDArray[np.int64]:
    """Places in a ranking of the nearest rows, in order; rows that tie with the last of these are as good."""
    good = known[scores >= scores[min(depth, len(scores)) - 1] - _TIE]
    return np.flatnonzero(np.isin(rows, good))[:depth]


def _recall(places: Sequence[npt.NDArray[np.int64]], depth: int, candidates: int) -> npt.NDArray[np.float64]:
    """Recall of each query if so many candidates are scored."""
    return np.array([np.searchsorted(each, candidates) / depth for each in places])


def _least(places: Sequence[npt.NDArray[np.int64]], depth: int, wanted: float, most: int) -> tuple[int, float] | None:
    """The fewest candidates that reach a recall, and the recall; None if `most` do not."""

    def reached(candidates: int) -> tuple[bool, float]:
        each = _recall(places, depth, candidates)
        mean = float(each.mean())
        error = float(each.std()) / math.sqrt(len(each))
        return mean - error >= wanted or mean == 1.0, mean

    if not reached(most)[0]:
        return None
    low, high = min(depth, most), most
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle)[0] else (middle, high)
    return high, reached(high)[1]
