"""Approximate indexes of faiss: graphs and cells, which lead to most of the nearest vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import OutputError, import_extra
from ..inference.similarity import unit
from .nearest import Blocks, Floats, Rows

#: Links of a vector in the HNSW graph, and candidates looked at while it is built and while it is searched.
_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 100, 128
#: Vectors that the cells are found from, for each cell: faiss asks for 39 at least, and more than 64 take memory.
_TRAIN_LEAST, _TRAIN_MOST = 39, 64
#: Share of the cells of an IVF index that a query looks into, and the least number of them.
_PROBED: Final = 1 / 8
_PROBED_LEAST: Final = 8
#: Vectors that exact search looks at in the time of a search of the graph.
_GRAPH_WORK: Final = 8000


def build_approximate(
    index_type: str, blocks: Callable[[], Blocks], count: int, dimension: int, *, cosine: bool, normalized: bool
) -> Any:
    """A faiss index over all blocks, in order.

    Args:
        index_type: `hnsw` (a graph: fast and accurate, slow to build) or `ivf` (cells: quick to build).
        blocks: Gives the vectors, in order, each time it is called.
        count: Number of all vectors.
        dimension: Their width.
        cosine: Compare by cosine; otherwise by dot product.
        normalized: Whether the vectors have unit length already.

    Raises:
        MissingExtraError: faiss is not installed.
    """
    faiss = import_extra("faiss", "faiss")

    def prepared(block: npt.NDArray[Any]) -> Floats:
        ready = unit(block) if cosine and not normalized else block
        return np.ascontiguousarray(ready, dtype=np.float32)

    index: Any
    if index_type == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_WIDTH
    else:
        cells = max(1, min(round(4 * math.sqrt(count)), count // _TRAIN_LEAST))
        index = faiss.index_factory(dimension, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
        wanted = np.random.default_rng(0).permutation(count)[: cells * _TRAIN_MOST]
        index.train(np.concatenate([prepared(part) for part in _sample(blocks(), np.sort(wanted))]))
    for _, block in blocks():
        index.add(prepared(block))
    return index


def _sample(blocks: Blocks, rows: Rows) -> Iterable[npt.NDArray[Any]]:
    for first, block in blocks:
        begin, end = np.searchsorted(rows, (first, first + len(block)))
        yield np.asarray(block[rows[begin:end] - first])


def write_approximate(index: Any, file: Any) -> None:
    """Write an index of faiss to a file opened for bytes."""
    faiss = import_extra("faiss", "faiss")
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read_approximate(path: Path) -> Any:
    """The index of faiss in a file.

    Raises:
        OutputError: the file is missing or damaged.
        MissingExtraError: faiss is not installed.
    """
    faiss = import_extra("faiss", "faiss")
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise OutputError(f"{path} is missing or damaged; build the index again") from error


def worthwhile(index: Any, rows: int) -> bool:
    """Whether an index of faiss finds some of its rows with less work than looking at all of them takes.

    To look at as many of them as of all rows, it must look at more rows, in the ratio of all to some: of a graph, which
    is then searched longer; of cells, until these are all there are.

    Args:
        index: The index.
        rows: How many of its rows may be found.
    """
    share = rows / max(index.ntotal, 1)
    return share == 1 or (share > _PROBED if hasattr(index, "nprobe") else rows * share > _GRAPH_WORK)


def nearest_approximately(index: Any, queries: Floats, top_k: int, kept: Rows | None = None) -> list[Rows]:
    """Rows that are probably the nearest to each query, in no order; fewer than `top_k` where it found fewer.

    Args:
        index: An index of faiss.
        queries: [n, d] float32.
        top_k: Rows wanted.
        kept: The rows that may be found, where these are not all: the search is as much wider as they are fewer.
    """
    faiss = import_extra("faiss", "faiss")
    wider, selected = 1.0, None
    if kept is not None:
        marks = np.zeros(index.ntotal, dtype=np.bool_)
        marks[kept] = True
        wider, selected = index.ntotal / len(kept), faiss.IDSelectorBitmap(np.packbits(marks, bitorder="little"))
    if isinstance(index, faiss.IndexHNSW):
        width = math.ceil(max(_SEARCH_WIDTH, 2 * top_k) * wider)
        options = faiss.SearchParametersHNSW(efSearch=width, sel=selected)
    else:
        cells = math.ceil(max(_PROBED_LEAST, index.nlist * _PROBED) * wider)
        options = faiss.SearchParametersIVF(nprobe=min(cells, index.nlist), sel=selected)
    _, found = index.search(np.ascontiguousarray(queries, dtype=np.float32), top_k, params=options)
    return [rows[rows >= 0] for rows in found]
