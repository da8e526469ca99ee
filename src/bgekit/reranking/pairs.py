"""What comes in, checked, and what goes out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..encoding.tokenization import repair
from ..errors import TextTypeError
from .tokenization import Pair


class Scores(list[float]):
    """An ordinary list of scores that also knows which pairs were changed before they were scored.

    Attributes:
        truncated: Positions of pairs whose query or passage was cut, ascending.
        windowed: Positions of pairs whose passage was scored in overlapping windows, ascending.
        repaired: Positions of pairs whose lone surrogates were replaced by U+FFFD, ascending.
    """

    truncated: tuple[int, ...] = ()
    windowed: tuple[int, ...] = ()
    repaired: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """A passage in the order of a reranker.

    Attributes:
        index: Its place among the passages that were given, from 0.
        score: Its score.
        text: The passage.
    """

    index: int
    score: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"index": self.index, "score": self.score, "text": self.text}


def is_single(pairs: object) -> bool:
    """Whether the input is one pair: a tuple or list that begins with a text, not with a pair."""
    return isinstance(pairs, tuple | list) and len(pairs) > 0 and isinstance(pairs[0], str)


def valid_pair(item: object, row: int) -> tuple[Pair, bool]:
    """A pair as valid Unicode, and whether it had to be repaired.

    Raises:
        TextTypeError: it is no pair of two strings; the message has its row.
    """
    unordered = isinstance(item, str | bytes | Mapping) or not isinstance(item, Sequence | np.ndarray)
    if unordered or len(item) != 2:  # type: ignore[arg-type]
        raise TextTypeError(
            f"a pair is a query and a passage, but the one at index {row} is {item!r:.80} ({type(item).__name__})"
        )
    for name, text in zip(("query", "passage"), item, strict=True):  # type: ignore[call-overload]
        if not isinstance(text, str):
            raise TextTypeError(
                f"pairs must be two strings, but the {name} of the one at index {row} is {text!r:.80} "
                f"({type(text).__name__})"
            )
    (query, first), (passage, second) = (repair(text) for text in item)  # type: ignore[attr-defined]
    return (query, passage), first or second


def checked_passages(query: object, passages: Iterable[object]) -> list[str]:
    """The passages of one query.

    Raises:
        TextTypeError: the query or a passage is no string; the message has its index.
    """
    if not isinstance(query, str):
        raise TextTypeError(f"the query must be a string, not {type(query).__name__}: {query!r:.80}")
    if isinstance(passages, str | bytes | Mapping):
        raise TextTypeError(f"passages must be a list of strings, not {type(passages).__name__}: {passages!r:.80}")
    found: list[str] = []
    for index, passage in enumerate(passages):
        if not isinstance(passage, str):
            raise TextTypeError(
                f"passages must be strings, but the one at index {index} is {passage!r:.80} ({type(passage).__name__})"
            )
        found.append(passage)
    return found


def best_first(scores: Sequence[float], texts: Sequence[str]) -> list[Ranked]:
    """Passages in the order of their scores; of equal ones the earlier first."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [Ranked(index, scores[index], texts[index]) for index in order]


def sigmoid(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 / (1 + e^-x), in float64, without overflow."""
    x = np.asarray(scores, dtype=np.float64)
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)
