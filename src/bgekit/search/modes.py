"""Modes of search: by the meaning of a question, by its words, and by several of these together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from .bm25 import Bm25
from .fusion import Found, by_ranks, by_weights, candidates
from .nearest import Floats, Rows
from .postings import best_rows

logger = logging.getLogger(__name__)
Mode = Literal["dense", "bm25", "hybrid"]
MODES: Final = ("dense", "bm25", "hybrid")
#: Rows that each mode of a hybrid search finds before they are put together, at least; and for each row wanted.
_DEPTH: Final = 100
_DEEPER: Final = 2
#: Scores and rows [questions, k] of some of the questions, best first, filled with -inf and -1.
Find: TypeAlias = "Callable[[Sequence[int], int], tuple[Floats, Rows]]"
#: Scores that a mode gives to rows of a question, 0 where it says nothing of one.
Score: TypeAlias = "Callable[[int, Rows], npt.NDArray[np.float64]]"


def check_mode(mode: str) -> None:
    """Raise ArgumentError if there is no such mode."""
    if mode not in MODES:
        raise ArgumentError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")


@dataclass(frozen=True)
class Part:
    """A mode as a part of others.

    Attributes:
        find: What it finds.
        score: What it gives to rows that others found.
    """

    find: Find
    score: Score


def by_words(bm25: Bm25, queries: Sequence[str], kept: Rows | None) -> Part:
    """Questions compared with texts by BM25.

    Args:
        bm25: Over the rows.
        queries: The questions.
        kept: Rows that may be found, in order; None for all that are not deleted.
    """
    last: dict[int, npt.NDArray[np.float32] | None] = {}

    def scores_of(query: int) -> npt.NDArray[np.float32] | None:
        if query not in last:
            last.clear()  # A question is scored and looked up again at once, and then no more.
            last[query] = bm25.of_rows(queries[query])
        return last[query]

    def find(chosen: Sequence[int], k: int) -> tuple[Floats, Rows]:
        found, rows = _empty(len(chosen), k)
        for at, query in enumerate(chosen):
            if (scores := scores_of(query)) is None:
                continue
            own = scores if kept is None else scores[kept]
            best = best_rows(own, k)
            best = best[own[best] > 0]
            found[at, : len(best)], rows[at, : len(best)] = own[best], best if kept is None else kept[best]
        return found, rows

    def score(query: int, rows: Rows) -> npt.NDArray[np.float64]:
        scores = scores_of(query)
        return np.zeros(len(rows)) if scores is None else scores[rows].astype(np.float64)

    return Part(find, score)


def together(parts: Mapping[str, Part], weights: Mapping[str, float] | None) -> Find:
    """Several modes as one: each finds some rows, and all of these are ranked by what every mode says of them.

    Args:
        parts: The modes, by name.
        weights: A weight for each; None to go by reciprocal ranks. A mode without a weight is not asked.
    """
    if weights is not None:
        parts = {name: part for name, part in parts.items() if weights.get(name)}
        weights = {name: weights[name] for name in parts}

    def find(chosen: Sequence[int], k: int) -> tuple[Floats, Rows]:
        scores, rows = _empty(len(chosen), k)
        silent: dict[str, int] = {}
        for at, query in enumerate(chosen):
            found: dict[str, Found] = {}
            for name, part in parts.items():
                own, there = part.find([query], max(_DEPTH, _DEEPER * k))
                found[name] = own[0][there[0] >= 0], there[0][there[0] >= 0]
                if not len(found[name][1]):
                    silent[name] = silent.get(name, 0) + 1
            if weights is None:
                sums, best = by_ranks(found, k)
            else:
                every = candidates(found)
                sums, best = by_weights({name: (parts[name].score(query, every), every) for name in parts}, weights, k)
            scores[at, : len(best)], rows[at, : len(best)] = sums, best
        for name, count in silent.items():
            if len(silent) < len(parts):
                logger.warning(
                    "%s says nothing of %d of %d questions, of which no text has a word: the other modes rank alone",
                    name, count, len(chosen),
                )  # fmt: skip
        return scores, rows

    return find


def _empty(count: int, k: int) -> tuple[Floats, Rows]:
    return np.full((count, k), -np.inf, np.float32), np.full((count, k), -1, np.int64)
