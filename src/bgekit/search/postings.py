"""Postings: for each term the rows that have it, and a number with each; in memory, or mapped from files.

terms.npy    the terms in the order of their bytes, one after another, uint8 [bytes]
bounds.npy   where each term begins, and where its postings do, int64 [2, terms + 1]
rows.npy     rows, in order within a term, int32 [postings]
values.npy   how often the row has the term, in as few bytes as that takes, or the weight of it in float32 [postings]

They are made in blocks that fit into memory, and merged term by term: memory grows with the different terms alone.
"""

from __future__ import annotations

import array
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import OutputError
from ..inference.ragged import Ragged
from ..inference.shards import mapped
from .words import words

Rows = npt.NDArray[np.int64]
#: Words of a block, and postings and terms that are merged at once.
_BLOCK: Final = 1 << 20
_TERMS: Final = 1 << 18
#: Blocks of a size that are merged into one of the next: of millions of files no more are open.
_FEW: Final = 16
_MOST_ROWS: Final = 2**31 - 1


@dataclass(frozen=True)
class Postings:
    """For each term the rows that have it.

    Attributes:
        terms: The terms as bytes, in order, one after another, uint8 [bytes].
        bounds: Where each term begins, and where its postings do, int64 [2, terms + 1].
        rows: int32 [postings].
        values: Counts or weights [postings].
    """

    terms: npt.NDArray[np.uint8]
    bounds: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int32]
    values: npt.NDArray[Any]

    FILES: ClassVar = ("terms", "bounds", "rows", "values")

    def __len__(self) -> int:
        """Terms."""
        return self.bounds.shape[1] - 1

    def term(self, at: int) -> bytes:
        """The term of a number."""
        return self.terms[self.bounds[0, at] : self.bounds[0, at + 1]].tobytes()

    def find(self, term: bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """The rows that have a term, and their numbers; none of a term that no row has."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.term(middle) < term:
                low = middle + 1
            else:
                high = middle
        there = low < len(self) and self.term(low) == term
        place = slice(int(self.bounds[1, low]), int(self.bounds[1, low + 1])) if there else slice(0, 0)
        return self.rows[place], self.values[place]

    def sizes(self) -> dict[str, int]:
        """What `open` has to know of them."""
        return {"terms": len(self), "bytes": len(self.terms), "postings": len(self.rows)}

    @classmethod
    def open(cls, folder: Path, *, terms: int, bytes: int, postings: int) -> Postings:
        """Those in the files of a folder, mapped.

        Raises:
            OutputError: a file is missing or damaged.
        """
        shapes = ((bytes,), (2, terms + 1), (postings,), (postings,))
        # Plain arrays, of which a part is taken sooner.
        arrays = [
            np.asarray(mapped(folder / f"{name}.npy", shape)) for name, shape in zip(cls.FILES, shapes, strict=True)
        ]
        return cls(*arrays)


def postings_of(terms: Sequence[bytes], term_of: npt.NDArray[Any], rows: npt.NDArray[Any], values: Any) -> Postings:
    """Postings in memory.

    Args:
        terms: The terms, in order.
        term_of: Number of the term of each posting, in order.
        rows: Their rows [postings].
        values: Their counts or weights [postings].
    """
    ends = np.cumsum([0, *map(len, terms)], dtype=np.int64)
    starts = np.searchsorted(term_of, np.arange(len(terms) + 1))
    blob = np.frombuffer(b"".join(terms), dtype=np.uint8)
    return Postings(blob, np.stack([ends, starts]).astype(np.int64), rows.astype(np.int32), values)


#: Puts blocks, as in `merged`, on the disk as one.
Keep: TypeAlias = "Callable[[Sequence[tuple[int, Postings]]], Postings]"


class _Numbers(dict[str, int]):
    """Numbers of words, in the order in which they are first asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class _Blocks:
    """Postings of rows that come one after another, in blocks.

    Attributes:
        blocks: First row of each block that is finished, and its postings, whose rows are counted from there.

    Args:
        keep: Puts blocks, as in `merged`, on the disk as one; None to keep them in memory.
    """

    def __init__(self, keep: Keep | None = None) -> None:
        self.blocks: list[tuple[int, Postings]] = []
        self._sizes: list[int] = []
        self._keep, self._first, self._rows = keep, 0, 0

    def finish(self, *, last: bool = False) -> None:
        """Finish the block; the last one is kept only where there are others."""
        if self._rows == self._first:
            return
        if self._rows > _MOST_ROWS:
            raise OutputError(f"a segment of an index has at most {_MOST_ROWS:,} rows")
        block = self._block(self._rows - self._first)
        if self._keep is not None and not (last and not self.blocks):
            block = self._keep([(0, block)])
        self.blocks.append((self._first, block))
        self._sizes.append(0)
        self._first = self._rows
        while self._keep is not None and self._sizes[-_FEW:] == [self._sizes[-1]] * _FEW:
            first, size = self.blocks[-_FEW][0], self._sizes[-1] + 1
            whole = self._keep([(own - first, block) for own, block in self.blocks[-_FEW:]])
            self.blocks[-_FEW:], self._sizes[-_FEW:] = [(first, whole)], [size]

    def _block(self, count: int) -> Postings:
        """Postings of the last rows, which are so many."""
        raise NotImplementedError


class WordPostings(_Blocks):
    """Postings of the words of texts, with how often each has them.

    Attributes:
        lengths: Words of each text, int32 [texts].
    """

    def __init__(self, keep: Keep | None = None) -> None:
        super().__init__(keep)
        self.lengths = array.array("i")
        self._numbers, self._words = _Numbers(), array.array("i")

    def add(self, text: str) -> None:
        """Take the next text."""
        found = words(text)
        self._words.extend(map(self._numbers.__getitem__, found))
        self.lengths.append(len(found))
        self._rows += 1
        if len(self._words) >= _BLOCK:
            self.finish()

    def _block(self, count: int) -> Postings:
        names = sorted((name.encode("utf-8", "surrogatepass"), number) for name, number in self._numbers.items())
        place = np.empty(len(names), np.int64)
        place[[number for _, number in names]] = np.arange(len(names))
        rows = np.repeat(np.arange(count), np.frombuffer(self.lengths, np.int32)[self._first :])
        # One number for a word in a text: equal ones are counted.
        keys, counts = np.unique(place[np.frombuffer(self._words, np.int32)] * count + rows, return_counts=True)
        values = counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
        self._numbers, self._words = _Numbers(), array.array("i")
        return postings_of([name for name, _ in names], keys // count, keys % count, values)


class TokenPostings(_Blocks):
    """Postings of the tokens of texts, with the weights that a model gives them."""

    def __init__(self, keep: Keep | None = None) -> None:
        super().__init__(keep)
        self._parts: list[tuple[int, Ragged]] = []
        self._size = 0

    def add(self, block: Ragged) -> None:
        """Take the lexical weights of the next texts."""
        self._parts.append((self._rows - self._first, block))
        self._rows += len(block)
        self._size += len(block.values)
        if self._size >= _BLOCK:
            self.finish()

    def _block(self, count: int) -> Postings:
        values = np.concatenate([block.values for _, block in self._parts])
        rows = [first + np.repeat(np.arange(len(block)), np.diff(block.offsets)) for first, block in self._parts]
        order = np.argsort(values["token"], kind="stable")
        tokens, term_of = np.unique(values["token"][order], return_inverse=True)
        self._parts, self._size = [], 0
        terms = [token_term(token) for token in tokens.tolist()]
        return postings_of(terms, term_of, np.concatenate(rows)[order], values["weight"][order])


def token_term(token: int) -> bytes:
    """The term of a token: terms are in the order of tokens."""
    return token.to_bytes(4, "big")


def merged(blocks: Sequence[tuple[int, Postings]]) -> Iterator[Postings]:
    """Blocks of rows that follow one another as one, part after part in the order of terms.

    Args:
        blocks: First row of each block, and its postings.
    """
    kind = np.result_type(*(block.values.dtype for _, block in blocks))
    starts = [np.asarray(block.bounds[1]) for _, block in blocks]

    def named(at: int, block: Postings) -> Iterator[tuple[bytes, int]]:
        return ((block.term(number), at) for number in range(len(block)))

    in_order = heapq.merge(*(named(at, block) for at, (_, block) in enumerate(blocks)))
    done = [0] * len(blocks)
    terms, own, size = list[bytes](), [list[int]() for _ in blocks], 0

    def part() -> Postings:
        term_of, rows, values = list[Any](), list[Any](), list[Any]()
        for at, (first, block) in enumerate(blocks):
            begin, end = done[at], done[at] + len(own[at])
            place = slice(int(starts[at][begin]), int(starts[at][end]))
            term_of.append(np.repeat(np.asarray(own[at], np.int64), np.diff(starts[at][begin : end + 1])))
            rows.append(block.rows[place] + np.int32(first))
            values.append(block.values[place].astype(kind))
            done[at], own[at] = end, []
        whole = np.concatenate(term_of)
        order = np.argsort(whole, kind="stable")  # Blocks are in the order of rows, and stay so within a term.
        return postings_of(terms, whole[order], np.concatenate(rows)[order], np.concatenate(values)[order])

    for term, at in in_order:
        if not terms or terms[-1] != term:
            if size >= _BLOCK or len(terms) >= _TERMS:
                yield part()
                terms, size = [], 0
            terms.append(term)
        number = done[at] + len(own[at])
        own[at].append(len(terms) - 1)
        size += int(starts[at][number + 1] - starts[at][number])
    yield part()


def write_postings(
    create: Callable[[str], Any], blocks: Sequence[tuple[int, Postings]], kind: npt.DTypeLike = np.uint8
) -> dict[str, int]:
    """Write blocks as one, to files of the names that `Postings.open` reads.

    Args:
        create: Gives the context manager of the file of a name.
        blocks: As in `merged`; without any, files without postings are written.
        kind: Type of the values where there are no blocks.

    Returns:
        What `Postings.open` has to know of them.
    """
    count = sum(len(block.rows) for _, block in blocks)
    kind = np.result_type(*(block.values.dtype for _, block in blocks)) if blocks else np.dtype(kind)
    terms, ends, starts = list[bytes](), [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    with create("rows.npy") as rows, create("values.npy") as values:
        _header(rows, count, np.dtype(np.int32))
        _header(values, count, kind)
        for part in merged(blocks) if len(blocks) > 1 else [block for _, block in blocks]:
            terms.append(part.terms.tobytes())
            ends.append(part.bounds[0, 1:] + ends[-1][-1])
            starts.append(part.bounds[1, 1:] + starts[-1][-1])
            rows.write(np.ascontiguousarray(part.rows).tobytes())
            values.write(np.ascontiguousarray(part.values, kind).tobytes())
    blob = b"".join(terms)
    bounds = np.stack([np.concatenate(ends), np.concatenate(starts)])
    with create("terms.npy") as file:
        np.save(file, np.frombuffer(blob, np.uint8))
    with create("bounds.npy") as file:
        np.save(file, bounds)
    return {"terms": bounds.shape[1] - 1, "bytes": len(blob), "postings": count}


def _header(file: IO[bytes], count: int, kind: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def kept_in(folder: Path) -> Keep:
    """What keeps blocks in the files of a folder instead of memory."""
    numbers = itertools.count()

    def keep(blocks: Sequence[tuple[int, Postings]]) -> Postings:
        own = folder / str(next(numbers))
        own.mkdir(parents=True)
        sizes = write_postings(lambda name: (own / name).open("wb"), blocks)
        return Postings.open(own, **sizes)

    return keep


def best_rows(scores: npt.NDArray[np.float32], top_k: int) -> Rows:
    """The rows of the highest scores, best first; of equal ones the earlier first."""
    if len(scores) <= top_k:
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    rows = np.flatnonzero(scores >= least)
    best: Rows = rows[np.argsort(-scores[rows], kind="stable")[:top_k]]
    return best


def texts_as_blocks(texts: Iterable[str]) -> WordPostings:
    """Postings of texts, in memory."""
    found = WordPostings()
    for text in texts:
        found.add(text)
    found.finish()
    return found
