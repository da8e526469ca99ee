"""Copies and near copies: exact keys, MinHash to find pairs that may be alike, Jaccard to know.

A text is the set of its 5-character pieces (of Chinese and the like, pairs of characters), case and white space
evened out. Two texts are near copies if the Jaccard similarity of their sets reaches a threshold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..data.training_rows import InputRow, copy_key
from ..errors import ArgumentError
from ..search.words import CJK

#: The pieces of a text: [n] uint64 hashes, sorted, each once.
Pieces: TypeAlias = "npt.NDArray[np.uint64]"

_LENGTH, _CJK_LENGTH = 5, 2
_IS_CJK: Final = re.compile(f"[{CJK}]")
#: Hash functions of a signature.
_HASHES: Final = 128
#: Least probability that a pair at the threshold is looked at.
_RECALL: Final = 0.995


def pieces(text: str) -> Pieces:
    """The set of pieces of a text."""
    even = " ".join(text.casefold().split())
    length = _CJK_LENGTH if 2 * len(_IS_CJK.findall(even)) > len(even) else _LENGTH
    codes = np.frombuffer(even.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < length:
        codes = np.pad(codes, (0, length - len(codes)))
    windows = np.lib.stride_tricks.sliding_window_view(codes, length)
    hashes = np.full(len(windows), length, dtype=np.uint64)
    for column in windows.T:
        hashes = mixed(hashes ^ column)
    return np.unique(hashes)


def jaccard(a: Pieces, b: Pieces) -> float:
    """|a and b| / |a or b|."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection of 64-bit numbers that looks random (the finaliser of SplitMix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class NearCopies:
    """Texts so far; a new one that is a near copy of one of them is found without comparing it with all."""

    def __init__(self, threshold: float) -> None:
        """Nothing seen yet.

        Args:
            threshold: Jaccard similarity of near copies, above 0 and at most 1.
        """
        check_threshold(threshold)
        self._threshold = threshold
        self._rows = band_rows(threshold)
        self._bands: list[dict[bytes, list[int]]] = [{} for _ in range(_HASHES // self._rows)]
        self._seen: list[list[Pieces]] = []
        generator = np.random.default_rng(0)  # Fixed: what counts as a copy must not change from run to run.
        self._salts = generator.integers(0, 1 << 63, _HASHES, dtype=np.uint64)

    def signature(self, found: Pieces) -> npt.NDArray[np.uint64]:
        """Least value of each hash function over the pieces, [128] uint64."""
        least = np.full(_HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
        for first in range(0, len(found), 512):  # Bounded memory for long texts.
            block = mixed(found[first : first + 512, None] ^ self._salts)
            least = np.minimum(least, block.min(axis=0))
        return least

    def add(self, *parts: str) -> int | None:
        """The number of an earlier text that this one is a near copy of; None if there is none, and it is kept.

        Args:
            parts: The text in one part or several (the same number in all texts): near copies are so in every part.
        """
        found = [pieces(part) for part in parts]
        # Pieces of one part are none of another: if all parts reach the threshold, so does the whole.
        whole = [mixed(each + np.uint64(number)) for number, each in enumerate(found)]
        signature = self.signature(np.concatenate(whole))
        keys = [signature[band * self._rows : (band + 1) * self._rows].tobytes() for band in range(len(self._bands))]
        alike = {number for band, key in zip(self._bands, keys, strict=True) for number in band.get(key, ())}
        for number in sorted(alike):
            if all(jaccard(a, b) >= self._threshold for a, b in zip(found, self._seen[number], strict=True)):
                return number
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, []).append(len(self._seen))
        self._seen.append(found)
        return None


def band_rows(threshold: float) -> int:
    """Rows of a band: the most with which a pair at the threshold shares a band almost surely."""
    for rows in range(_HASHES, 1, -1):
        if 1 - (1 - threshold**rows) ** (_HASHES // rows) >= _RECALL:
            return rows
    return 1


def check_threshold(threshold: float) -> None:
    """Raise ArgumentError unless it is above 0 and at most 1."""
    if not 0 < threshold <= 1:
        raise ArgumentError(f"the threshold of near copies is above 0 and at most 1, not {threshold}")


@dataclass
class Removed:
    """Rows that were left out.

    Attributes:
        rows: All rows of the input.
        copies: Rows equal to an earlier one, up to case and white space.
        near: Further rows that are near copies of an earlier one.
        samples: Lines (this row's, the earlier row's) of some of them.

    Example:
        >>> from bgekit.data import read_training
        >>> from bgekit.mining import Removed, distinct
        >>> removed = Removed()
        >>> rows = list(distinct(read_training("train.jsonl"), removed))
        >>> removed.rows, removed.copies
        (4, 0)
    """

    rows: int = 0
    copies: int = 0
    near: int = 0
    samples: list[tuple[int, int]] = field(default_factory=list)


def distinct(rows: Iterable[InputRow], removed: Removed, *, near: float | None = None) -> Iterator[InputRow]:
    """Rows without copies of earlier ones: of query and positives, in any order of the positives.

    Args:
        rows: The input.
        removed: Counts of rows that are left out, added to.
        near: Jaccard similarity, of the queries and of all positives together, from which on rows are near copies and
            left out, too; by default only copies are. It takes 8 bytes of memory for each character that stays.

    Example:
        >>> from bgekit.data import read_training
        >>> from bgekit.mining import Removed, distinct
        >>> removed = Removed()
        >>> len(list(distinct(read_training("train.jsonl"), removed)))
        4
    """
    seen: dict[tuple[int, ...], int] = {}
    near_copies = None if near is None else NearCopies(near)
    lines: list[int] = []
    for each in rows:
        removed.rows += 1
        key = (copy_key(each.row.query), *sorted({copy_key(text) for text in each.row.positives}))
        earlier = seen.setdefault(key, each.line)
        if earlier != each.line:
            removed.copies += 1
        elif near_copies is not None:
            number = near_copies.add(each.row.query, "\n".join(sorted(each.row.positives)))
            if number is None:
                lines.append(each.line)
            else:
                removed.near += 1
                earlier = lines[number]
        if earlier == each.line:
            yield each
        elif len(removed.samples) < 10:
            removed.samples.append((each.line, earlier))
