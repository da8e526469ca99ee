"""Approximate indexes of faiss: most of the nearest vectors without looking at all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import OutputError, import_extra
from ..inference.similarity import unit
from .exact import Floats

if TYPE_CHECKING:
    from types import ModuleType

#: Links of a vector in the HNSW graph, and candidates looked at while it is built and while it is searched.
_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 100, 128
#: Vectors that the cells are found from, for each cell: faiss asks for 39 at least, and more than 64 take memory.
_TRAIN_LEAST, _TRAIN_MOST = 39, 64
#: Share of the cells of an IVF index that a query looks into, and the least number of them.
_PROBED: Final = 1 / 8
_PROBED_LEAST: Final = 8

Blocks = Iterable[tuple[int, npt.NDArray[Any]]]


def load_faiss() -> ModuleType:
    """The faiss module.

    Raises:
        MissingExtraError: it is not installed.
    """
    return import_extra("faiss", "faiss")


def build(
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
    """
    faiss = load_faiss()

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


def _sample(blocks: Blocks, rows: npt.NDArray[np.int64]) -> Iterable[npt.NDArray[Any]]:
    for first, block in blocks:
        begin, end = np.searchsorted(rows, (first, first + len(block)))
        yield np.asarray(block[rows[begin:end] - first])


def write(index: Any, file: Any) -> None:
    """Write an index to a file opened for bytes."""
    faiss = load_faiss()
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read(path: Path) -> Any:
    """Read an index.

    Raises:
        OutputError: the file is missing or damaged.
        MissingExtraError: faiss is not installed.
    """
    faiss = load_faiss()
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise OutputError(f"{path} is missing or damaged; build the index again") from error


def candidates(index: Any, queries: Floats, top_k: int) -> list[npt.NDArray[np.int64]]:
    """Rows that are probably the nearest to each query, in no order; fewer than `top_k` where it found fewer."""
    faiss = load_faiss()
    if isinstance(index, faiss.IndexHNSW):
        options = faiss.SearchParametersHNSW(efSearch=max(_SEARCH_WIDTH, 2 * top_k))
    else:
        options = faiss.SearchParametersIVF(nprobe=max(_PROBED_LEAST, math.ceil(index.nlist * _PROBED)))
    _, found = index.search(np.ascontiguousarray(queries, dtype=np.float32), top_k, params=options)
    return [rows[rows >= 0] for rows in found]
