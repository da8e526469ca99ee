"""Approximate indexes: rows that are probably among the nearest, found by cells, a graph, or small codes.

What is found here are candidates. Whoever asks for them scores them by the full vectors, so scores are those of exact
search whatever the type; what a type decides is memory, time, and how many of the nearest are missed. How wide to
search and how many candidates to score is not guessed: `tuned` searches a sample exactly, measures what each width
finds of it, and takes the least work that finds as much as is wanted.

index.faiss   a graph with its vectors; or the centres of cells
index.cells   codes and rows of each cell, one cell after the other, mapped into memory
index.int8    8-bit numbers of each vector [n, d], where all are looked at; numpy.load reads it
index.scales  what they are multiplied by [n], in the same form
"""

from __future__ import annotations

import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import OutputError, import_extra
from ..inference.shards import mapped
from .nearest import Floats, Rows

#: Endings of the files.
GRAPH: Final = ".faiss"
CELLS: Final = ".cells"
CODES: Final = ".int8"
SCALES: Final = ".scales"
#: Types, and what the cells of each hold of a vector, as faiss calls it; graphs hold whole vectors.
CELL_CODES: Final[Mapping[str, str]] = {"ivf": "Flat", "int8": "SQ8", "binary": "RaBitQ"}
#: Rows from which codes of 8 bits are kept in cells, if faiss is there; below, all are looked at.
_CELLS_FROM: Final = 200_000
#: How wide an index of version 0.1.0, which has not been measured, is searched.
_OLD_GRAPH_WIDTH: Final = 128
_OLD_PROBED: Final = 1 / 8
_OLD_PROBED_LEAST: Final = 8
#: Candidates beyond those wanted, which show whether the last one has copies.
SPARE: Final = 16
#: Work of scoring a candidate by its full vector, in times of reading as many bytes of codes one after the other.
SCATTERED: Final = 3.0
#: Bytes that looking at one vector of a graph takes, in vectors: its own, and those of its links.
_GRAPH_VECTORS: Final = 16
#: Rows looked at by 8-bit products at once, and queries.
_SCANNED, _SCANNED_QUERIES = 1 << 16, 64

Selected = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Effort:
    """How wide a search is.

    Attributes:
        width: Cells that are looked into, or the width of the search of a graph; all rows, where all are looked at.
        candidates: Rows that are scored by their full vectors.
    """

    width: int
    candidates: int


@dataclass(frozen=True)
class Measured:
    """How much of the nearest rows a search of some effort finds.

    Attributes:
        k: Nearest rows wanted.
        width: As in `Effort`.
        candidates: As in `Effort`.
        recall: Share of them that are among the candidates, the mean over the sample.
    """

    k: int
    width: int
    candidates: int
    recall: float


@dataclass(frozen=True)
class Tuning:
    """What was measured when an index was built, by which it is searched since.

    Attributes:
        wanted: Recall that was asked for.
        sample: Queries that it was measured with.
        queries: Whether these were queries; otherwise what lies half way between two rows of the index stood
            for each, and these two were left out.
        points: For each number of nearest rows, the least work that reaches it.
    """

    wanted: float
    sample: int
    queries: bool
    points: tuple[Measured, ...]

    def effort(self, k: int, share: float = 1.0) -> Effort:
        """How wide to search for the `k` nearest, where a share of all rows may be found.

        The nearest of a share of the rows are, by and large, among k / share nearest of all: to look for these is wide
        enough, and of as many candidates all but the share are left out.
        """
        depths = np.log([point.k for point in self.points])

        def at(depth: float, values: Sequence[int]) -> float:
            logs, beyond = np.log(values), max(0.0, math.log(depth) - float(depths[-1]))
            # As steep as between the last two points, but no less than the root, and no more than in proportion.
            slope = float(logs[-1] - logs[-2]) / float(depths[-1] - depths[-2]) if len(logs) > 1 else 1.0
            return math.exp(float(np.interp(math.log(depth), depths, logs)) + beyond * min(max(slope, 0.5), 1.0))

        widths, candidates = [p.width for p in self.points], [p.candidates for p in self.points]
        deep = max(1.0, k / share)
        scored = max(at(k, candidates), at(deep, candidates) * share)
        return Effort(math.ceil(at(deep, widths)), max(math.ceil(scored), k + SPARE))

    def to_dict(self) -> dict[str, Any]:
        """The tuning as JSON takes it."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Tuning:
        """The tuning that `to_dict` gave."""
        points = tuple(Measured(**point) for point in content["points"])
        return cls(content["wanted"], content["sample"], content["queries"], points)


class Approximate(ABC):
    """An approximate index that is open.

    Attributes:
        count: Rows in it.
        tuning: How it is searched; None for one of version 0.1.0.
    """

    def __init__(self, count: int, tuning: Tuning | None = None) -> None:
        self.count, self.tuning = count, tuning

    @abstractmethod
    def ranked(self, queries: Floats, effort: Effort, selected: Selected | None = None) -> list[Rows]:
        """Candidates for each query, best first by what the index knows of them; fewer where it found fewer.

        Args:
            queries: [n, d] float32, of length 1 if scores are cosines.
            effort: How wide the search is.
            selected: Whether each row may be found [count]; None for all.
        """

    @abstractmethod
    def widths(self) -> list[int]:
        """Widths of a search that are worth measuring, in order."""

    @abstractmethod
    def work(self, effort: Effort) -> float:
        """Work of a search, in bytes that are read one after the other."""

    def effort(self, k: int, share: float = 1.0) -> Effort:
        """How wide to search for the `k` nearest, where a share of all rows may be found."""
        if self.tuning is None:
            return self._untuned(k, share)
        return self.tuning.effort(k, share)

    @abstractmethod
    def _untuned(self, k: int, share: float) -> Effort:
        """The same for an index that was not measured."""

    def candidates(self, queries: Floats, k: int, selected: Selected | None = None) -> list[Rows]:
        """Rows that are probably the `k` nearest, and some more, for each query.

        Args:
            queries: As in `ranked`.
            k: Rows wanted.
            selected: Whether each row may be found [count]; None for all.
        """
        share = 1.0 if selected is None else max(int(np.count_nonzero(selected)), 1) / max(self.count, 1)
        return self.ranked(queries, self.effort(k, share), selected)

    def worthwhile(self, k: int, rows: int, row_bytes: int) -> bool:
        """Whether finding the `k` nearest of some rows is less work than looking at all of these.

        Args:
            k: Rows wanted.
            rows: How many rows may be found.
            row_bytes: Bytes of a full vector.
        """
        if rows == 0 or k > rows // 4:
            return False
        effort = self.effort(k, rows / max(self.count, 1))
        scattered = 1.0 if rows == self.count else SCATTERED
        return self.work(effort) + SCATTERED * effort.candidates * row_bytes < rows * row_bytes * scattered


class Graph(Approximate):
    """A graph of near neighbours (HNSW of faiss), in memory."""

    def __init__(self, index: Any, tuning: Tuning | None = None) -> None:
        super().__init__(int(index.ntotal), tuning)
        self._index = index

    def ranked(self, queries: Floats, effort: Effort, selected: Selected | None = None) -> list[Rows]:
        """By the graph."""
        faiss = import_extra("faiss", "faiss")
        sel, _kept = _selector(selected)
        options = faiss.SearchParametersHNSW(efSearch=effort.width, sel=sel)
        wanted = min(effort.candidates, effort.width, self.count)
        _, found = self._index.search(_ready(queries), wanted, params=options)
        return _valid(found, self.count)

    def widths(self) -> list[int]:
        """Widths of the search of a graph."""
        return _steps(64, min(self.count, 8192))

    def work(self, effort: Effort) -> float:
        """Vectors that are looked at on the way."""
        return effort.width * _GRAPH_VECTORS * 4.0 * self._index.d

    def _untuned(self, k: int, share: float) -> Effort:
        k += SPARE
        return Effort(math.ceil(max(_OLD_GRAPH_WIDTH, 2 * k) / share), k)


class Cells(Approximate):
    """Cells around centres (IVF of faiss), with codes of the vectors in them; mapped where they lie in a file.

    Args:
        index: The index of faiss.
        tuning: As in `Approximate`.
        again: The same index opened again, if it can be: there a single query is shared out to all threads by its
            cells. faiss keeps as a property of the index whether it does that, which other threads must not see change.
    """

    def __init__(self, index: Any, tuning: Tuning | None = None, again: Any = None) -> None:
        faiss = import_extra("faiss", "faiss")
        super().__init__(int(index.ntotal), tuning)
        self._index, self._ivf, self._again = index, faiss.extract_index_ivf(index), again
        lists = self._ivf.invlists
        self._largest = max(lists.list_size(cell) for cell in range(self._ivf.nlist))
        if again is not None:
            faiss.extract_index_ivf(again).parallel_mode = 1
        self._parameters = (
            faiss.IVFRaBitQSearchParameters
            if isinstance(self._ivf, faiss.IndexIVFRaBitQ)
            else faiss.SearchParametersIVF
        )

    def ranked(self, queries: Floats, effort: Effort, selected: Selected | None = None) -> list[Rows]:
        """By the cells whose centres are nearest."""
        faiss = import_extra("faiss", "faiss")
        options = self._parameters()
        options.nprobe = min(effort.width, self._ivf.nlist)
        sel, _kept = _selector(selected)
        if selected is not None:
            # As many of the rows that may be found as would lie in the cells if they lay everywhere: where they lie
            # elsewhere than the query, more cells are looked into.
            options.sel, options.nprobe = sel, self._ivf.nlist
            share = min(effort.width / self._ivf.nlist, 1.0)
            # faiss cuts a cell at what is left of these, counting rows that must not be found, too.
            options.max_codes = math.ceil(share * np.count_nonzero(selected)) + self._largest
        whole = options
        if isinstance(self._index, faiss.IndexPreTransform):
            whole = faiss.SearchParametersPreTransform()
            whole.index_params = options
        alone = len(queries) == 1 and selected is None and self._again is not None
        index = self._again if alone else self._index
        _, found = index.search(_ready(queries), min(effort.candidates, self.count), params=whole)
        return _valid(found, self.count)

    def widths(self) -> list[int]:
        """Numbers of cells."""
        return _steps(16, self._ivf.nlist)

    def work(self, effort: Effort) -> float:
        """The centres, and the codes of the cells."""
        share = min(effort.width / self._ivf.nlist, 1.0)
        return 4.0 * self._ivf.d * self._ivf.nlist + share * self.count * (self._ivf.code_size + 8)

    def _untuned(self, k: int, share: float) -> Effort:
        cells = math.ceil(max(_OLD_PROBED_LEAST, self._ivf.nlist * _OLD_PROBED) / share)
        return Effort(cells, k + SPARE)


class Scan(Approximate):
    """Numbers of 8 bits instead of 32, all of which are looked at by integer products of torch."""

    def __init__(self, codes: npt.NDArray[np.int8], scales: Floats, tuning: Tuning | None = None) -> None:
        super().__init__(len(codes), tuning)
        self._codes, self._scales = codes, scales

    def ranked(self, queries: Floats, effort: Effort, selected: Selected | None = None) -> list[Rows]:
        """By the codes of all."""
        found: list[Rows] = []
        for first in range(0, len(queries), _SCANNED_QUERIES):
            found += self._best(queries[first : first + _SCANNED_QUERIES], min(effort.candidates, self.count), selected)
        return found

    def _best(self, queries: Floats, wanted: int, selected: Selected | None) -> list[Rows]:
        import torch

        asked, _ = eight_bits(queries)  # A query's own scale changes no order.
        columns = torch.from_numpy(asked).T
        best: Any = torch.empty(len(queries), 0)
        rows: Any = torch.empty(len(queries), 0, dtype=torch.int64)
        for first in range(0, self.count, _SCANNED):
            block = torch.from_numpy(np.array(self._codes[first : first + _SCANNED]))
            scores = torch._int_mm(block, columns).float()
            scores *= torch.from_numpy(np.array(self._scales[first : first + _SCANNED]))[:, None]
            if selected is not None:
                scores[torch.from_numpy(~selected[first : first + _SCANNED])] = -math.inf
            top, places = scores.T.topk(min(wanted, len(block)), dim=1)
            best, rows = torch.cat([best, top], dim=1), torch.cat([rows, places + first], dim=1)
            if best.shape[1] > wanted:
                best, places = best.topk(wanted, dim=1)
                rows = rows.gather(1, places)
        order = best.argsort(dim=1, descending=True)
        best, rows = best.gather(1, order).numpy(), rows.gather(1, order).numpy()
        return [own[scores > -math.inf] for scores, own in zip(best, rows, strict=True)]

    def widths(self) -> list[int]:
        """One: all rows."""
        return [max(self.count, 1)]

    def work(self, effort: Effort) -> float:
        """All codes."""
        return float(self._codes.size)

    def _untuned(self, k: int, share: float) -> Effort:
        return Effort(self.count, 4 * k + 64)


def _selector(selected: Selected | None) -> tuple[Any, Any]:
    """What faiss asks whether a row may be found, and the bits that it reads, which must stay while it does."""
    if selected is None:
        return None, None
    faiss = import_extra("faiss", "faiss")
    bits = np.packbits(selected, bitorder="little")
    return faiss.IDSelectorBitmap(bits), bits


def _ready(queries: Floats) -> Floats:
    return np.ascontiguousarray(queries, dtype=np.float32)


def _valid(found: Rows, count: int) -> list[Rows]:
    if found.size and int(found.max()) >= count:
        raise OutputError("the approximate index names rows that there are not: it is damaged; build the index again")
    return [rows[rows >= 0] for rows in found]


def _steps(first: int, last: int) -> list[int]:
    """Numbers from the first to the last, each twice the one before."""
    steps = [min(first, last)]
    while steps[-1] < last:
        steps.append(min(last, max(steps[-1] + 1, steps[-1] * 2)))
    return steps


def eight_bits(vectors: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Vectors [n, d] as whole numbers from -127 to 127 [n, d], and what each row is to be multiplied by [n]."""
    scales = (np.abs(vectors).max(axis=1, initial=0.0) / np.float32(127)).astype(np.float32)
    codes = np.rint(vectors / np.maximum(scales, np.float32(1e-30))[:, None]).astype(np.int8)
    return codes, scales


def has_cells(index_type: str, count: int) -> bool:
    """Whether rows of a type are kept in cells; codes of 8 bits are where there are many, and faiss is there."""
    if index_type == "int8":
        return count >= _CELLS_FROM and importlib.util.find_spec("faiss") is not None
    return index_type in CELL_CODES


def _opened(file: Path) -> Any:
    """An index of faiss whose cells stay in their file, which is mapped: what is not searched is not read.

    By itself faiss starts up to 32 threads for every search of such an index, which touch all of its cells once more
    (findings/faiss_mmap_starts_threads.sh): half of the time of a query where they are in the system's cache, and no
    gain from a disk that reads 2 GB/s.
    """
    faiss = import_extra("faiss", "faiss")
    index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    if (cells := faiss.try_extract_index_ivf(index)) is not None:
        lists = faiss.downcast_InvertedLists(cells.invlists)
        if hasattr(lists, "prefetch_nthread"):  # Old files, and systems that do not map, have another kind.
            lists.prefetch_nthread = 0
    return index


def open_structure(folder: Path, structure: Mapping[str, Any], count: int, dimension: int) -> Approximate:
    """The approximate index of a segment.

    Args:
        folder: Where its files lie.
        structure: What index.json keeps of it.
        count: Rows of the segment.
        dimension: Width of its vectors.

    Raises:
        OutputError: a file is missing, damaged, or belongs to another index.
        MissingExtraError: it needs faiss, which is not installed.
    """
    files = [folder / name for name in structure["files"]]
    for file, size in zip(files, structure.get("sizes", ()), strict=False):
        there = file.stat().st_size if file.is_file() else None
        if there != size:
            what = "is missing" if there is None else "is damaged or belongs to another index"
            size_of = "" if there is None else f" ({there:,} bytes instead of {size:,})"
            raise OutputError(f"{file} {what}{size_of}; build the index again")
    tuning = Tuning.from_dict(structure["tuning"]) if "tuning" in structure else None
    if files[0].suffix == CODES:
        codes, scales = mapped(files[0], (count, dimension)), mapped(files[1], (count,))
        if codes.dtype != np.int8 or scales.dtype != np.float32:
            raise OutputError(f"{files[0]} or {files[1].name} belongs to another index; build the index again")
        return Scan(codes, scales, tuning)
    faiss = import_extra("faiss", "faiss")
    try:
        index = _opened(files[0])
        graph = isinstance(index, faiss.IndexHNSW)
        again = None if graph else _opened(files[0])
    except RuntimeError as error:
        raise OutputError(f"{files[0]} is missing or damaged; build the index again") from error
    if index.ntotal != count or index.d != dimension:
        raise OutputError(f"{files[0]} belongs to another index; build the index again")
    return Graph(index, tuning) if graph else Cells(index, tuning, again)
