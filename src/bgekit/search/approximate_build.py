"""Approximate indexes, built from vectors that come in blocks: memory does not grow with them, but for graphs.

The centres of cells are found from a sample. Vectors are then added in parts, each of which becomes a file of its own,
and the parts are put together cell by cell: a build that was interrupted goes on from the parts that are there.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import import_extra
from ..files.atomic import OutputFolder, failing
from ..inference.similarity import unit
from .nearest import Blocks, Floats, Rows

logger = logging.getLogger(__name__)
#: Cells: at most so many, and four times the root of the number of vectors below that.
_CELLS_MOST: Final = 8192
#: Vectors that the centres are found from for each cell, at least and at most, and rounds of it.
_TRAIN_LEAST, _TRAIN_MOST = 39, 48
_ROUNDS: Final = 8
#: Vectors whose cells are found at once, and those that make a part.
_BLOCK: Final = 4096
_PART: Final = 1 << 19


def find_centres(sample: Floats, cells: int) -> Floats:
    """Centres [cells, d] of length 1 around which vectors lie: k-means by dot product.

    The products are computed by torch, in bfloat16 where the processor multiplies these: ten times as fast on AMX as
    faiss's own training, and a vector between two centres may as well belong to either.

    Args:
        sample: [n, d] float32.
        cells: Centres wanted, at most n.
    """
    import torch

    vectors = torch.from_numpy(sample)
    draw = torch.Generator().manual_seed(0)
    centres = vectors[torch.randperm(len(sample), generator=draw)[:cells]].clone()
    for _ in range(_ROUNDS):
        own = torch.from_numpy(nearest_centres(sample, centres.numpy()))
        sums = torch.zeros_like(centres).index_add_(0, own, vectors)
        counts = torch.bincount(own, minlength=cells)
        empty = (counts == 0).nonzero()[:, 0]
        # A centre without vectors takes one of those of the fullest cells.
        crowded = counts[own].argsort(descending=True, stable=True)
        sums[empty] = vectors[crowded[torch.randperm(max(len(sample) // 8, cells), generator=draw)[: len(empty)]]]
        centres = torch.nn.functional.normalize(sums, dim=1)
    return np.ascontiguousarray(centres.numpy())


def nearest_centres(vectors: Floats, centres: Floats) -> Rows:
    """The number of the centre with the highest dot product for each vector, [n] int64."""
    import torch

    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    columns = torch.from_numpy(centres).T
    columns = columns.bfloat16().contiguous() if half else columns.contiguous()
    own = np.empty(len(vectors), dtype=np.int64)
    for first in range(0, len(vectors), _BLOCK):
        block = torch.from_numpy(vectors[first : first + _BLOCK])
        scores = (block.bfloat16() if half else block) @ columns
        own[first : first + _BLOCK] = scores.float().numpy().argmax(axis=1)  # Ten times as fast as torch's.
    return own


def cells_for(count: int) -> int:
    """Number of cells for a number of vectors."""
    return max(1, min(round(4 * math.sqrt(count)), count // _TRAIN_LEAST, _CELLS_MOST))


def empty_cells(code: str, centres: Floats, sample: Floats) -> Any:
    """An index of faiss with cells around centres, trained, that holds nothing.

    Args:
        code: What is kept of each vector, as faiss calls it: `Flat`, `SQ8` or `RaBitQ`.
        centres: [cells, d].
        sample: Vectors [n, d] that the code is fitted to.
    """
    faiss = import_extra("faiss", "faiss")
    cells, dimension = centres.shape
    # A code of signs says the same of every direction when vectors are turned at random before.
    turned = f"RR{dimension}," if code == "RaBitQ" else ""
    index = faiss.index_factory(dimension, f"{turned}IVF{cells},{code}", faiss.METRIC_INNER_PRODUCT)
    if turned:
        turn = faiss.downcast_VectorTransform(index.chain.at(0))
        turn.init(0)
        centres, sample = turn.apply(centres), turn.apply(sample)
    inner = faiss.extract_index_ivf(index)
    inner.quantizer.train(centres)
    inner.quantizer.add(centres)
    inner.quantizer_trains_alone = 0
    inner.train(sample)
    index.is_trained = True
    return index


def add_to_cells(index: Any, rows: Rows, vectors: Floats, centres: Floats) -> None:
    """Add vectors [n, d] with their rows [n] to an index of faiss with cells around centres."""
    faiss = import_extra("faiss", "faiss")
    own = nearest_centres(vectors, centres)
    inner = faiss.extract_index_ivf(index)
    if isinstance(index, faiss.IndexPreTransform):
        vectors = index.chain.at(0).apply(vectors)
    vectors, rows = np.ascontiguousarray(vectors), np.ascontiguousarray(rows)
    inner.add_core(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(rows), faiss.swig_ptr(own))
    index.ntotal = inner.ntotal
