"""Rankings by shared words: BM25 over postings in arrays.

score(q, d) = sum over the words w of q of  idf(w) * tf / (tf + k1 * (1 - b + b * |d| / mean |d|)),
idf(w) = ln(1 + (N - df + 1/2) / (df + 1/2)),  as in Lucene from version 8 on.
"""

from __future__ import annotations

import array
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

#: Weights of how fast repetition saturates, and of how much length counts (Lucene's).
K1, B = 1.2, 0.75
#: Chinese, Japanese and Korean characters: there, words have no spaces around them.
CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U0003ffff"
_WORDS: Final = re.compile(f"[{CJK}]+|[^\\W{CJK}]+")
_IS_CJK: Final = re.compile(f"[{CJK}]")


def words(text: str) -> list[str]:
    """The words of a text, without case; of Chinese and the like its characters and pairs of neighbours."""
    found: list[str] = []
    for run in _WORDS.findall(text.casefold()):
        if _IS_CJK.match(run):
            found += run
            found += map("".join, itertools.pairwise(run))
        else:
            found.append(run)
    return found


class Bm25:
    """An index of texts in memory: about 12 bytes for each distinct word of each text."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._terms: dict[str, int] = {}
        terms, rows, counts, lengths = (array.array(kind) for kind in "iiii")
        for row, text in enumerate(texts):
            found = words(text)
            lengths.append(len(found))
            for word, count in Counter(found).items():
                terms.append(self._terms.setdefault(word, len(self._terms)))
                rows.append(row)
                counts.append(count)
        self._size = len(lengths)
        self._mean = max(sum(lengths) / max(1, self._size), 1e-9)
        term_of = np.frombuffer(terms, dtype=np.int32) if terms else np.empty(0, np.int32)
        # Stable: within a word, texts stay in order.
        order = np.argsort(term_of, kind="stable")
        frequency = np.bincount(term_of, minlength=len(self._terms))
        self._starts = np.concatenate([[0], np.cumsum(frequency)])
        self._idf = np.log1p((self._size - frequency + 0.5) / (frequency + 0.5))
        self._rows = np.array(rows, dtype=np.int32)[order]
        length = np.array(lengths, dtype=np.float64)
        tf = np.array(counts, dtype=np.float64)[order]
        self._weights = (self._idf[term_of[order]] * _saturated(tf, length[self._rows], self._mean)).astype(np.float32)

    def rank(self, query: str, top_k: int) -> Rows:
        """The texts that share a word with a query, best first; the earlier of equal ones first."""
        scores = np.zeros(self._size, dtype=np.float32)
        for word, count in Counter(words(query)).items():
            term = self._terms.get(word)
            if term is not None:
                part = slice(self._starts[term], self._starts[term + 1])
                scores[self._rows[part]] += np.float32(count) * self._weights[part]
        rows = best_rows(scores, top_k)
        return rows[scores[rows] > 0]

    def scores(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """The scores [n] of any texts, in the index or not."""
        wanted = [(word, self._idf[self._terms[word]] * count) for word, count in Counter(words(query)).items()
                  if word in self._terms]  # fmt: skip
        found = np.zeros(len(texts))
        for position, text in enumerate(texts):
            there = words(text)
            counts, length = Counter(there), len(there)
            found[position] = sum(idf * float(_saturated(counts[word], length, self._mean)) for word, idf in wanted)
        return found


def _saturated(tf: npt.ArrayLike, length: npt.ArrayLike, mean: float) -> npt.NDArray[np.float64]:
    tf, length = np.asarray(tf, dtype=np.float64), np.asarray(length, dtype=np.float64)
    return np.asarray(tf / (tf + K1 * (1 - B + B * length / mean)))


Rows: TypeAlias = "npt.NDArray[np.int64]"


def best_rows(scores: npt.NDArray[np.float32], top_k: int) -> Rows:
    """The rows of the highest scores, best first; of equal ones the earlier first."""
    if len(scores) <= top_k:
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    rows = np.flatnonzero(scores >= least)
    best: Rows = rows[np.argsort(-scores[rows], kind="stable")[:top_k]]
    return best
