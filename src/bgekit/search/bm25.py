"""Rankings by shared words: BM25 over the postings of texts, in memory or of the segments of an index.

score(q, d) = sum over the words w of q of  idf(w) * tf / (tf + k1 * (1 - b + b * |d| / mean |d|)),
idf(w) = ln(1 + (N - df + 1/2) / (df + 1/2)),  as in Lucene from version 8 on.

Only counts are stored. N, df and the mean are those of the rows that are not deleted at the time, so that a score is
the one that an index built anew would give; with stored weights they would be those of the build.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .postings import Postings, Rows, best_rows, texts_as_blocks
from .words import words

#: Weights of how fast repetition saturates, and of how much length counts (Lucene's).
K1, B = 1.2, 0.75


class Bm25:
    """Scores of texts by the words that they share with a query.

    Args:
        parts: First row and postings of parts that follow one another.
        lengths: Words of each row, int32 [rows].
        deleted: Whether each row is deleted [rows]; None where none is.

    Example:
        >>> from bgekit.search import Bm25
        >>> Bm25.of_texts(["the cat sat", "a dog ran", "the dog and the cat"]).rank("cat", 5).tolist()
        [0, 2]
    """

    def __init__(
        self, parts: Sequence[tuple[int, Postings]], lengths: npt.NDArray[Any],
        deleted: npt.NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        self._parts, self._deleted = parts, deleted
        live = lengths if deleted is None else lengths[~deleted]
        self.rows, self._live = len(lengths), len(live)
        self._mean = max(int(live.sum(dtype=np.int64)) / max(1, len(live)), 1e-9)
        #: What the count of a word is divided by beside itself, for each row.
        self._norms = _norm(lengths, self._mean).astype(np.float32)

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> Bm25:
        """Over texts in memory: about 8 bytes for each distinct word of each text."""
        found = texts_as_blocks(texts)
        return cls(found.blocks, np.array(found.lengths, dtype=np.int32))

    def of_rows(self, query: str) -> npt.NDArray[np.float32] | None:
        """The score of every row, [rows], 0 where it shares no word with the query; None where no row does."""
        scores: npt.NDArray[np.float32] | None = None
        for word, count in Counter(words(query)).items():
            there = self._find(word)
            if there and scores is None:
                scores = np.zeros(self.rows, np.float32)
            weight = np.float32(count * self._idf(there))
            for rows, counts in there:
                tf = counts.astype(np.float32)
                scores[rows] += weight * (tf / (tf + self._norms[rows]))  # type: ignore[index]
        return scores

    def rank(self, query: str, top_k: int) -> Rows:
        """The rows that share a word with a query, best first; the earlier of equal ones first."""
        scores = self.of_rows(query)
        if scores is None:
            return np.empty(0, np.int64)
        rows = best_rows(scores, top_k)
        return rows[scores[rows] > 0]

    def scores(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """The scores [n] of any texts, in the index or not."""
        wanted = [(word, self._idf(there) * count) for word, count in Counter(words(query)).items()
                  if (there := self._find(word))]  # fmt: skip
        found = np.zeros(len(texts))
        for position, text in enumerate(texts):
            own = words(text)
            counts, norm = Counter(own), float(_norm(np.asarray(len(own)), self._mean))
            found[position] = sum(idf * counts[word] / (counts[word] + norm) for word, idf in wanted)
        return found

    def _find(self, word: str) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Rows that have a word and are not deleted, and how often each has it, by parts."""
        term, found = word.encode("utf-8", "surrogatepass"), list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]()
        for first, part in self._parts:
            rows, counts = part.find(term)
            if not len(rows):
                continue
            whole = rows + first if first else rows
            if self._deleted is not None:
                live = ~self._deleted[whole]
                whole, counts = whole[live], counts[live]
            if len(whole):
                found.append((whole, counts))
        return found

    def _idf(self, there: Sequence[tuple[npt.NDArray[Any], Any]]) -> float:
        df = sum(len(rows) for rows, _ in there)
        return math.log1p((self._live - df + 0.5) / (df + 0.5))


def _norm(lengths: npt.NDArray[Any], mean: float) -> npt.NDArray[np.float64]:
    return np.asarray(K1 * (1 - B + B * lengths.astype(np.float64) / mean))
