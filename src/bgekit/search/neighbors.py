"""Nearest neighbours of every row of an index, by cosine: exact, or candidates of an approximate index.

The k-nearest-neighbour graph that maps, near copies and lone texts are read from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import MissingExtraError, import_extra
from ..inference.similarity import unit
from .approximate import Approximate
from .approximate_build import build_in_memory
from .index import SearchIndex
from .nearest import (
    QUERIES,
    UNIT_LENGTH,
    Floats,
    Rows,
    nearest,
    pair_scores,
)

logger = logging.getLogger(__name__)
#: Up to so many rows every row is compared with every other.
EXACT_UP_TO: Final = 200_000

_Search = Callable[[Floats], list[tuple[Floats, Rows]]]


@dataclass(frozen=True)
class Neighbors:
    """Neighbours of every row, the row itself first.

    Attributes:
        ids: Rows from 0, [rows, k] int32, nearest first; in a file that is mapped.
        distances: 1 - cosine, [rows, k] float32; 0 for the row itself.
        method: How they were found: `exact`, `hnsw` or `ivf`.
    """

    ids: npt.NDArray[np.int32]
    distances: npt.NDArray[np.float32]
    method: str


def find_neighbors(
    index: SearchIndex,
    count: int,
    folder: Path,
    *,
    advance: Callable[[int], None] | None = None,
    exact_up_to: int = EXACT_UP_TO,
) -> Neighbors:
    """The nearest other rows of every row of an index, in files that are mapped: memory does not grow with the rows.

    Args:
        index: The index, with at least one row.
        count: Other rows wanted of each; there are fewer in a smaller index.
        folder: Where the two files go.
        advance: Called with the number of rows that were looked at.
        exact_up_to: Rows up to which all are compared. Above, an approximate index gives the candidates: the index's
            own, or a graph made in memory (extra `faiss`); without faiss all are compared, and a warning says so.
    """
    rows = len(index)
    width = min(count, rows - 1) + 1
    search, method = _searcher(index, width, exact_up_to)
    ids: Any = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.int32, (rows, width))
    distances: Any = np.lib.format.open_memmap(folder / "distances.npy", "w+", np.float32, (rows, width))
    for first in range(0, rows, QUERIES):
        asked = np.arange(first, min(first + QUERIES, rows))
        for row, (scores, found) in zip(asked, search(unit(index.live.vectors(asked))), strict=True):
            # The row itself stands first even if copies of it come before it.
            others = np.flatnonzero(found != row)[: width - 1]
            ids[row, 0], ids[row, 1:] = row, found[others]
            distances[row, 0], distances[row, 1:] = 0, np.clip(1 - scores[others], 0, 2)
        if advance is not None:
            advance(len(asked))
    return Neighbors(ids, distances, method)


def _searcher(index: SearchIndex, width: int, exact_up_to: int) -> tuple[_Search, str]:
    """What finds the nearest rows of queries of length 1, best first, and its name."""
    stored, units = index.live, index.facts.unit_vectors

    def compare_all(queries: Floats) -> list[tuple[Floats, Rows]]:
        longest = UNIT_LENGTH if units else None
        scores, rows = nearest(queries, stored.blocks, width, cosine=not units, longest=longest)
        return list(zip(scores, rows, strict=True))

    graph, method = (None, "exact") if len(index) <= exact_up_to else _graph(index)
    if graph is None:
        return compare_all, "exact"

    def look_up(queries: Floats) -> list[tuple[Floats, Rows]]:
        answers = []
        for query, rows in zip(queries, graph.candidates(queries, width), strict=True):
            one, places = np.zeros(len(rows), dtype=np.int64), np.arange(len(rows))
            wide = query[None].astype(np.float64)
            scores = pair_scores(wide, one, stored.vectors(rows), places, cosine=not units)
            order = np.lexsort((rows, -scores))[:width]
            answers.append((scores[order], rows[order]))
        if few := [place for place, (_, rows) in enumerate(answers) if len(rows) < width]:
            for place, complete in zip(few, compare_all(queries[few]), strict=True):
                answers[place] = complete
        return answers

    return look_up, method


def _graph(index: SearchIndex) -> tuple[Approximate | None, str]:
    """An approximate index by cosine and its type: the index's own, else one in memory; None without faiss."""
    facts, card = index.facts, index.facts.model_card
    if index.whole_structure is not None and (facts.similarity == "cosine" or card["normalize"]):
        return index.whole_structure, facts.index_type
    try:
        import_extra("faiss", "faiss")
    except MissingExtraError:
        logger.warning(
            "comparing %s texts with each other takes long: pip install 'bgekit[faiss]' brings a graph that finds "
            "nearly all of the nearest in a small part of the time", f"{len(index):,}",
        )  # fmt: skip
        return None, "exact"
    made = build_in_memory(
        "hnsw", index.live.blocks, len(index), index.dimension, cosine=True, normalized=facts.unit_vectors
    )
    return made, "hnsw"
