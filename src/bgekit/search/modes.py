"""Modes of search: by the meaning of a question, by its words or tokens, and by several of these together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from .fusion import Found, by_ranks, by_weights, candidates
from .nearest import Floats, Rows
from .postings import best_rows

logger = logging.getLogger(__name__)
Mode = Literal["dense", "lexical", "bm25", "multi-vector", "hybrid"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
#: Rows that each mode of a hybrid search finds before they are put together, at least; and for each row wanted.
DEPTH: Final = 100
_DEEPER: Final = 2
#: Scores and rows [questions, k] of some of the questions, best first, filled with -inf and -1.
Find: TypeAlias = "Callable[[Sequence[int], int], tuple[Floats, Rows]]"
#: Scores [n] that a mode gives to rows [n] of a question, 0 where it says nothing of one.
Score: TypeAlias = "Callable[[int, Rows], npt.NDArray[np.float64]]"


def check_mode(mode: str) -> None:
    """Raise ArgumentError if there is no such mode."""
    if mode not in MODES:
        raise ArgumentError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")


@dataclass(frozen=True)
class Part:
    """A mode as a part of others.

    Attributes:
        find: What it finds; None for one that only scores what others found.
        score: What it gives to rows that others found.
    """

    find: Find | None
    score: Score


def by_terms(scores_of: Callable[[int], npt.NDArray[np.float32] | None], kept: Rows | None) -> Part:
    """Questions compared with texts by what they share: words, or tokens.

    Args:
        scores_of: The scores of all rows for a question, 0 where they share nothing; None where none does.
        kept: Rows that may be found, in order; None for all that are not deleted.
    """
    last: dict[int, npt.NDArray[np.float32] | None] = {}

    def scores(query: int) -> npt.NDArray[np.float32] | None:
        if query not in last:
            last.clear()  # A question is looked up and scored again at once, and then no more.
            last[query] = scores_of(query)
        return last[query]

    def find(chosen: Sequence[int], k: int) -> tuple[Floats, Rows]:
        found, rows = _empty(len(chosen), k)
        for at, query in enumerate(chosen):
            if (every := scores(query)) is None:
                continue
            own = every if kept is None else every[kept]
            best = best_rows(own, k)
            best = best[own[best] > 0]
            found[at, : len(best)], rows[at, : len(best)] = own[best], best if kept is None else kept[best]
        return found, rows

    def score(query: int, rows: Rows) -> npt.NDArray[np.float64]:
        every = scores(query)
        return np.zeros(len(rows)) if every is None else every[rows].astype(np.float64)

    return Part(find, score)


def by_tokens(queries: Sequence[npt.NDArray[Any]], vectors_of: Callable[[Rows], Sequence[npt.NDArray[Any]]]) -> Part:
    """Questions compared with texts token by token: the mean, over a question's vectors, of the best product with one
    of a text's (the late interaction of ColBERT, as BGE-M3 scales it).

    Args:
        queries: Vectors of the tokens of each question [tokens, d].
        vectors_of: Those of rows.
    """  # noqa: D205

    def score(query: int, rows: Rows) -> npt.NDArray[np.float64]:
        own = queries[query].astype(np.float32)
        found = np.zeros(len(rows))
        # Row by row: a product of all at once would round a row's score by its place.
        for at, vectors in enumerate(vectors_of(rows)):
            if len(vectors) and len(own):
                found[at] = (own @ vectors.astype(np.float32).T).max(axis=1).mean(dtype=np.float64)
        return found

    return Part(None, score)


def second_stage(first: Find, part: Part, depth: int) -> Find:
    """What a mode finds, in the order of another one that scores no more than that.

    Args:
        first: The first stage.
        part: The second.
        depth: Rows of the first stage that are looked at, at least.
    """

    def find(chosen: Sequence[int], k: int) -> tuple[Floats, Rows]:
        scores, rows = _empty(len(chosen), k)
        for at, query in enumerate(chosen):
            there = first([query], max(depth, k))[1][0]
            own, best = _ranked(part, query, there[there >= 0])
            count = min(k, len(best))
            scores[at, :count], rows[at, :count] = own[:count], best[:count]
        return scores, rows

    return find


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
                if part.find is None:
                    continue
                own, there = part.find([query], max(DEPTH, _DEEPER * k))
                found[name] = own[0][there[0] >= 0], there[0][there[0] >= 0]
                if not len(found[name][1]):
                    silent[name] = silent.get(name, 0) + 1
            every = candidates(found)
            if weights is None:
                found |= {name: _ranked(part, query, every) for name, part in parts.items() if part.find is None}
                sums, best = by_ranks(found, k)
            else:
                sums, best = by_weights({name: (part.score(query, every), every) for name, part in parts.items()},
                                        weights, k)  # fmt: skip
            scores[at, : len(best)], rows[at, : len(best)] = sums, best
        for name, count in silent.items():
            if len(silent) < len(parts):
                logger.warning(
                    "%s says nothing of %d of %d questions, of which no text has a word: the other modes rank alone",
                    name, count, len(chosen),
                )  # fmt: skip
        return scores, rows

    return find


def _ranked(part: Part, query: int, rows: Rows) -> Found:
    """Rows in the order of the scores that a mode gives to them, the earlier of equal ones first."""
    scores = part.score(query, rows)
    order = np.lexsort((rows, -scores))
    return scores[order], rows[order]


def _empty(count: int, k: int) -> tuple[Floats, Rows]:
    return np.full((count, k), -np.inf, np.float32), np.full((count, k), -1, np.int64)
