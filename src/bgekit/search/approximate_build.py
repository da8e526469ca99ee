"""Approximate indexes, built from vectors on disk: memory does not grow with them, but for graphs.

The centres of cells are found from a sample. Vectors are then added in parts, each of which becomes a file of its own,
and the parts are put together cell by cell: a build that was interrupted goes on from the parts that are there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import import_extra
from ..files.atomic import OutputFolder, failing
from ..inference.similarity import unit
from .approximate import (
    CELL_CODES,
    CODES,
    GRAPH,
    SCALES,
    Approximate,
    Cells,
    Graph,
    eight_bits,
    has_cells,
    open_structure,
)
from .nearest import Blocks, Floats, Rows
from .storage import Stored
from .tuning import RECALL, tuned

logger = logging.getLogger(__name__)
#: Links of a vector in the HNSW graph, and candidates looked at while it is built.
_LINKS, _BUILD_WIDTH = 32, 100
#: Cells: at most so many, and four times the root of the number of vectors below that.
_CELLS_MOST: Final = 4096
#: Vectors that the centres are found from for each cell, at least and at most, and rounds of it.
_TRAIN_LEAST, _TRAIN_MOST = 39, 48
_ROUNDS: Final = 8
#: Vectors whose cells are found at once, those that are added at once, and those that make a part.
_BLOCK: Final = 4096
_ADDED: Final = 1 << 16
_PART: Final = 1 << 19
#: Folder of an unfinished build in an index folder.
BUILDING: Final = "building-cells"


def write_approximate(
    output: OutputFolder,
    folder: str,
    stem: str,
    stored: Stored,
    index_type: str,
    *,
    cosine: bool,
    normalized: bool,
    recall: float | None = None,
    queries: Floats | None = None,
) -> dict[str, Any]:
    """Write what a search of some type needs of rows beside their vectors, and measure how wide it has to search.

    Args:
        output: The index folder.
        folder: Where in it the files go; "" for that folder itself.
        stem: What their names begin with.
        stored: The rows.
        index_type: The type: `int8`, `binary`, `hnsw` or `ivf`.
        cosine: Compare by cosine; otherwise by dot product.
        normalized: Whether the vectors have length 1 already.
        recall: Share of the nearest rows that is to be found; by default `tuning.RECALL`.
        queries: Vectors of queries that this is measured with, as `tuning.tuned` takes them.

    Returns:
        What index.json keeps of it: its type, its files with their sizes, what was measured.

    Raises:
        MissingExtraError: the type needs faiss, which is not installed.
        OutputError: a file cannot be written.
    """
    source = _Source(stored, cosine and not normalized)
    prefix = f"{folder}/" if folder else ""
    names: list[str]
    if index_type == "hnsw":
        names = [f"{stem}{GRAPH}"]
        graph = build_graph(source.blocks, stored.dimension)
        with output.create(prefix + names[0]) as file:
            _write_index(graph, file)
        del graph
    elif has_cells(index_type, stored.count):
        names = [f"{stem}{GRAPH}"]
        _write_cells(output, prefix, names, source, CELL_CODES[index_type])
    else:
        names = [f"{stem}{CODES}", f"{stem}{SCALES}"]
        _write_codes(output, prefix, names, source)
    output.sync(folder)
    path = output.path / folder
    structure: dict[str, Any] = {
        "type": index_type, "files": names, "sizes": [(path / name).stat().st_size for name in names]
    }  # fmt: skip
    return measured(
        path, structure, stored, cosine=cosine, normalized=normalized, recall=recall, queries=queries
    )  # fmt: skip


def measured(
    folder: Path,
    structure: dict[str, Any],
    stored: Stored,
    *,
    cosine: bool,
    normalized: bool,
    recall: float | None = None,
    queries: Floats | None = None,
) -> dict[str, Any]:
    """What index.json keeps of a structure in a folder, with how wide it has to be searched; as `write_approximate`."""
    source = _Source(stored, cosine and not normalized)
    index = open_structure(folder, structure, stored.count, stored.dimension)
    if queries is not None:
        queries = unit(queries) if cosine else queries
    tuning = tuned(
        index, source.blocks, source.vectors, recall=recall or RECALL, queries=queries,
        unit_vectors=cosine or normalized,
    )  # fmt: skip
    return structure | {"tuning": tuning.to_dict()}


class _Source:
    """Vectors as they are compared: of length 1 if scores are cosines."""

    def __init__(self, stored: Stored, to_unit: bool) -> None:
        self.count, self.dimension, self._stored, self._to_unit = stored.count, stored.dimension, stored, to_unit

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """First row and vectors of each block, in order."""
        for first, block in self._stored.blocks():
            yield first, self._ready(block)

    def vectors(self, rows: Rows) -> Floats:
        """The vectors of some rows, which are given in order."""
        parts = [self._ready(self._stored.vectors(rows[at : at + _BLOCK])) for at in range(0, len(rows), _BLOCK)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def _ready(self, vectors: npt.NDArray[Any]) -> Floats:
        return unit(vectors) if self._to_unit else np.ascontiguousarray(vectors, dtype=np.float32)


def build_graph(blocks: Callable[[], Blocks], dimension: int) -> Any:
    """A graph of near neighbours over all vectors, as an index of faiss in memory; blocks are as they are compared."""
    faiss = import_extra("faiss", "faiss")
    index = faiss.IndexHNSWFlat(dimension, _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_WIDTH
    for _, block in blocks():
        index.add(np.ascontiguousarray(block, dtype=np.float32))
    return index


def build_in_memory(
    index_type: str, blocks: Callable[[], Blocks], count: int, dimension: int, *, cosine: bool, normalized: bool
) -> Approximate:
    """A graph or cells with whole vectors over all blocks, in memory, not measured.

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

    def ready() -> Iterator[tuple[int, Floats]]:
        for first, block in blocks():
            to_unit = cosine and not normalized
            yield first, unit(block) if to_unit else np.ascontiguousarray(block, dtype=np.float32)

    if index_type == "hnsw":
        return Graph(build_graph(ready, dimension))
    cells = cells_for(count)
    wanted = np.sort(np.random.default_rng(0).permutation(count)[: cells * _TRAIN_MOST])
    parts = []
    for first, block in ready():
        begin, end = np.searchsorted(wanted, (first, first + len(block)))
        parts.append(block[wanted[begin:end] - first])
    sample = np.concatenate(parts)
    centres = find_centres(sample, cells)
    index = empty_cells(CELL_CODES[index_type], centres, sample)
    for first, block in ready():
        add_to_cells(index, np.arange(first, first + len(block)), block, centres)
    return Cells(index)


def _write_index(index: Any, file: Any) -> None:
    faiss = import_extra("faiss", "faiss")
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def _write_codes(output: OutputFolder, prefix: str, names: list[str], source: _Source) -> None:
    scales = np.empty(source.count, dtype=np.float32)
    with output.create(prefix + names[0]) as file:
        header = {"descr": "|i1", "fortran_order": False, "shape": (source.count, source.dimension)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
        for first, block in source.blocks():
            codes, scales[first : first + len(block)] = eight_bits(block)
            file.write(codes.tobytes())
    with output.create(prefix + names[1]) as file:
        np.save(file, scales)  # type: ignore[arg-type]


def _write_cells(output: OutputFolder, prefix: str, names: list[str], source: _Source, code: str) -> None:
    """Cells, built in parts that lie in a folder of their own until all are there."""
    faiss = import_extra("faiss", "faiss")
    random = np.random.default_rng(0)
    cells = cells_for(source.count)
    sample = source.vectors(np.sort(random.permutation(source.count)[: cells * _TRAIN_MOST]))
    # By what is in it the unfinished build of the same rows is known again.
    key = hashlib.sha256(f"{code} {source.count} {cells}".encode() + sample[: 1 << 14].tobytes()).hexdigest()[:12]
    work = output.path / f"{BUILDING}-{key}"
    for old in output.path.glob(f"{BUILDING}-*"):
        if old != work:
            shutil.rmtree(old, ignore_errors=True)
    with failing(f"write to {work}"):
        work.mkdir(exist_ok=True)
        trained, centres_file = work / "trained.faiss", work / "centres.npy"
        if not trained.exists():
            centres = find_centres(sample, cells)
            with _finished(centres_file) as path, path.open("wb") as file:
                np.save(file, centres)
            with _finished(trained) as path:
                faiss.write_index(empty_cells(code, centres, sample), str(path))
        del sample
        centres = np.load(centres_file)
        parts = []
        for first in range(0, source.count, _PART):
            part = work / f"part-{first // _PART:05d}.faiss"
            parts.append(part)
            if not part.exists():
                index = faiss.read_index(str(trained))
                for begin in range(first, min(first + _PART, source.count), _ADDED):
                    rows = np.arange(begin, min(begin + _ADDED, first + _PART, source.count))
                    add_to_cells(index, rows, source.vectors(rows), centres)
                with _finished(part) as path:
                    faiss.write_index(index, str(path))
                del index
        with output.create(prefix + names[0]) as file:
            _write_merged(faiss.read_index(str(trained)), parts, file)
        shutil.rmtree(work, ignore_errors=True)


def _write_merged(index: Any, parts: list[Path], file: Any) -> None:
    """Write an index of faiss with the cells of all parts, one cell after the other, without holding them in memory.

    faiss writes such a file of what it has in memory only, or prints what it does; so its last section, the cells, is
    written here: `ilar`, their number, bytes of a code, `full`, the sizes, then the codes and the rows of each.

    Args:
        index: The empty index.
        parts: Files of indexes whose cells have the same centres.
        file: What is written to.
    """
    faiss = import_extra("faiss", "faiss")
    inner = faiss.extract_index_ivf(index)
    opened = [faiss.read_index(str(part), faiss.IO_FLAG_MMAP) for part in parts]
    lists = [faiss.extract_index_ivf(each).invlists for each in opened]
    cells, width = inner.nlist, inner.code_size
    sizes = np.array([[each.list_size(cell) for cell in range(cells)] for each in lists])
    inner.ntotal = index.ntotal = int(sizes.sum())
    empty = faiss.serialize_index(index).tobytes()
    head, mark, _ = empty.rpartition(b"ilar")
    if not mark:
        raise RuntimeError(f"faiss {faiss.__version__} writes cells in a form that is not known here")
    file.write(head + mark + struct.pack("<QQ", cells, width) + b"full" + struct.pack("<Q", cells))
    file.write(sizes.sum(axis=0).astype("<u8").tobytes())
    for cell in range(cells):
        for part, each in enumerate(lists):
            if size := int(sizes[part, cell]):
                file.write(faiss.rev_swig_ptr(each.get_codes(cell), size * width).tobytes())
        for part, each in enumerate(lists):
            if size := int(sizes[part, cell]):
                file.write(faiss.rev_swig_ptr(each.get_ids(cell), size).astype("<i8").tobytes())


@contextlib.contextmanager
def _finished(path: Path) -> Iterator[Path]:
    """A path to write a file to that gets its own name when it is complete."""
    working = path.with_name(f".{path.name}.tmp")
    yield working
    os.replace(working, path)


def find_centres(sample: Floats, cells: int) -> Floats:
    """Centres [cells, d] of length 1 around which vectors lie: k-means by dot product.

    The products are computed by torch, in bfloat16 where the processor multiplies these: ten times as fast on AMX as
    faiss's own training, and a vector between two centres may as well belong to either.

    Args:
        sample: [n, d] float32.
        cells: Centres wanted, at most n.
    """
    import torch

    vectors = torch.from_numpy(np.require(sample, requirements="W"))
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

    from ..networks.cpu_products import has_bfloat16

    half = has_bfloat16()
    columns = torch.from_numpy(centres).T
    columns = columns.bfloat16().contiguous() if half else columns.contiguous()
    own = np.empty(len(vectors), dtype=np.int64)
    for first in range(0, len(vectors), _BLOCK):
        block = torch.tensor(vectors[first : first + _BLOCK])
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
