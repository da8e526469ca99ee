"""The nearest vectors, found by looking at every one of them.

A product of matrices says which rows may be among the best of a query, and only these are scored, each row for itself
in float64. Where the processor is faster with 16-bit numbers, the product is one of bfloat16. That is some thousandths
off, and how far at most follows from the lengths of the two vectors, so that no row is missed. What is found does
therefore not depend on how rows are divided into blocks, nor on the number of threads.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..inference.similarity import unit

if TYPE_CHECKING:
    from torch import Tensor

#: Queries that callers compare at once: with the rows wanted this bounds the memory that a search takes.
QUERIES: Final = 1024
#: No vector of length 1 is longer, however it was rounded.
UNIT_LENGTH: Final = 1.001

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
#: The first row of each block of vectors, and the block [rows, d] in any float type, in order.
Blocks = Iterable[tuple[int, npt.NDArray[Any]]]
#: The same, or with the number of each row, -1 for one that must not be found; the block itself, or what reads it.
AnyBlocks = Iterable[tuple["int | Rows", "npt.NDArray[Any] | Callable[[], npt.NDArray[Any]]"]]

#: Up to so many queries the time goes into reading the vectors, which a product of 16-bit numbers reads no faster.
_FEW: Final = 8
#: Products computed at once by a thread, and most rows of a block, so that both stay in the processor's caches.
_PRODUCTS: Final = 1 << 22
_ROWS: Final = 16384
#: Least rows for which another thread is worth its start.
_SHARED: Final = 256
#: Bytes of vectors that are made float64 at once, to be scored.
_WIDE: Final = 1 << 25
#: Longer vectors are not multiplied as 16-bit numbers, where sums might overflow; shorter products are taken for 0.
_LONG, _TINY = 1e15, 1e-20
#: Unit roundoff of bfloat16, and twice that of float32.
_ROUNDING_16, _ROUNDING_32 = 2.0**-8, 2.0**-23
#: Columns behind a vector: three for the score that a query asks for, one for how far the product may be off.
_COLUMNS: Final = 4
#: Widths that the processor multiplies without a rest are multiples of this.
_TILE: Final = 32
#: Columns of which only the best is looked at, where the k-th best of very many is wanted.
_GROUP: Final = 16
#: A key that comes after that of any row, and what its row's number must be below.
_NONE: Final = np.uint64(2**64 - 1)
_MOST_ROWS: Final = 2**32 - 1
#: Products of a sample of which only the best is looked at.
_MAXIMA: Final = 4
#: Vectors from which on a sample of them says what scores to expect; the sample's share, one in so many, and sizes.
_SAMPLED_FROM, _SAMPLED, _SAMPLE_LEAST, _SAMPLE_MOST = 1 << 16, 8, 1 << 10, 1 << 16
#: Products in float32 that are computed while one row is scored and kept.
_SCORED: Final = 8


class TopK:
    """The best rows for each query so far, of vectors that come block by block.

    A score is the dot product of two vectors, or their cosine, added up in float64 and rounded to float32: it depends
    on these two alone. Of equal scores the lower row comes first, in whatever order the blocks come.
    """

    def __init__(
        self,
        queries: Floats,
        top_k: int,
        *,
        cosine: bool,
        longest: float | None = None,
        expected: Floats | None = None,
    ) -> None:
        """Nothing seen yet.

        Args:
            queries: [n, d] float32.
            top_k: Rows wanted; there are fewer when there are fewer vectors.
            cosine: Compare by cosine; otherwise by dot product.
            longest: A length that no vector exceeds, where it is known: it need not be measured.
            expected: [n] float32, scores that the rows wanted are expected to have at least. Rows with lower ones are
                not kept, so `unsure` tells for which queries it was too much.
        """
        self._queries = unit(queries) if cosine else np.asarray(queries, dtype=np.float32)
        self._wide = self._queries.astype(np.float64)
        self._top_k, self._cosine = top_k, cosine
        self._longest = UNIT_LENGTH if cosine else longest
        count = len(self._queries)
        # Rows and scores as keys whose order is that of the best: some more than twice as many as wanted.
        self._keys = np.full((count, 2 * top_k + 256), _NONE, dtype=np.uint64)
        self._counts = np.zeros(count, dtype=np.int64)
        self._worst = np.full(count, _NONE, dtype=np.uint64)
        # What a score must exceed to be among the best so far.
        self._floors = np.full(count, -np.inf, np.float32) if expected is None else np.nextafter(expected, -np.inf)
        self._expected = self._floors.copy()
        self._lock, self._own = threading.Lock(), threading.local()
        self._product: _Product | None = None
        self._pool: ThreadPoolExecutor | None = None

    def add(self, rows: int | Rows, block: npt.NDArray[Any]) -> None:
        """Look at the vectors [rows, d] of a block, of any float type.

        Args:
            rows: The number of its first row, if all follow one another, or of each of them, -1 for one that must not
                be found.
            block: Their vectors.
        """
        self.add_all([(rows, block)])

    def add_all(self, blocks: AnyBlocks) -> None:
        """Look at all the vectors of some blocks, in as many threads as torch uses."""
        import torch

        threads, parts = torch.get_num_threads(), self._parts(blocks, torch.get_num_threads())
        if not len(self._queries):
            return
        self._product = self._product or self._chosen_product()
        first, second = next(parts, None), next(parts, None)
        if first is None:
            return
        if second is None:
            self._look(*first)
            return
        every = _chain(first, second, parts)
        # To gather vectors is work for several threads, too, though there be few queries.
        if threads > 1 and (self._threaded() or callable(first[1])):
            self._by_threads(every, threads)
            return
        for part in every:
            self._look(*part)

    def sample_size(self, top_k: int, count: int) -> int:
        """How large a sample of so many vectors is to be, which says what scores the best have.

        The larger, the fewer rows pass that are not among them, and the more products are computed twice.
        """
        self._product = self._product or self._chosen_product()
        sizes = np.asarray([count // _SAMPLED], np.int64)
        if isinstance(self._product, _Product32):
            sizes = np.append(sizes, 2 ** np.arange(_SAMPLE_LEAST.bit_length() - 1, _SAMPLE_MOST.bit_length()))
        sizes = np.minimum(sizes, min(count // _SAMPLED, _SAMPLE_MOST))
        passing = [_rank_in_sample(top_k, int(size), count) * count / size for size in sizes]
        return int(sizes[np.argmin(sizes + _SCORED * np.asarray(passing))])

    def at_rank(self, rank: int, blocks: AnyBlocks) -> Floats:
        """About the score [n] that so many of the vectors of blocks reach; nothing is kept of them."""
        self._product = self._product or self._chosen_product()
        best = np.empty((len(self._queries), 0), dtype=np.float32)
        for _, block in self._parts(blocks, 1):
            vectors = block() if callable(block) else block
            products = self._product(unit(vectors) if self._cosine else vectors, self._longest, self._own)
            # Of all products those of 16 bits are higher than the scores, by how far they may be off.
            values = products.maxima(_MAXIMA) - (products.slack / 2).astype(np.float32)[:, None]
            best = np.concatenate([best, values], axis=1)
            best = np.partition(best, max(best.shape[1] - rank, 0), axis=1)[:, -rank:]
        return best.min(axis=1)

    def found(self) -> list[tuple[Floats, Rows]]:
        """Scores and rows for each query, both [k], best first; the lower of equal ones first."""
        scores, rows = self.arrays()
        counts = np.minimum(self._counts, self._top_k)
        return [(scores[at, :count], rows[at, :count]) for at, count in enumerate(counts)]

    def arrays(self) -> tuple[Floats, Rows]:
        """The same as two arrays [n, top_k], filled with -inf and -1 where there are fewer rows."""
        self._keys.sort(axis=1)
        best = self._keys[:, : self._top_k]
        scores, rows = _of_keys(best)
        nothing = best == _NONE
        scores[nothing], rows[nothing] = -np.inf, -1
        return scores, rows

    def unsure(self) -> Rows:
        """The queries that do not have as many rows as wanted with the scores that were expected."""
        scores, _ = self.arrays()
        return np.flatnonzero(~(scores[:, -1] > self._expected))

    def _threaded(self) -> bool:
        """Whether threads look at blocks of their own; of few queries, torch divides each product."""
        return len(self._queries) > _FEW

    def _chosen_product(self) -> _Product:
        lengths = np.sqrt(np.einsum("nd,nd->n", self._wide, self._wide))
        kind: type[_Product32 | _Product16] = _Product32
        if self._threaded() and bool((lengths < _LONG).all()) and (self._longest or 0) < _LONG and _fast_16():
            kind = _Product16
        product = kind(self._queries, lengths)
        product.set_floors(self._floors)
        return product

    def _parts(self, blocks: AnyBlocks, threads: int) -> Iterator[tuple[int | Rows, Any]]:
        """The blocks in parts whose products are computed at once."""
        most = max(64, _PRODUCTS // max(len(self._queries), 4))
        for rows, block in blocks:
            if callable(block):
                yield rows, block
                continue
            step = most
            # What is converted as a whole takes memory.
            if self._threaded() or self._cosine or block.dtype != np.float32:
                step = min(step, _ROWS, max(_SHARED, -(-len(block) // threads)))
            for first in range(0, len(block), step):
                last = first + step
                yield (rows + first if isinstance(rows, int) else rows[first:last]), block[first:last]

    def _by_threads(self, parts: Iterator[tuple[int | Rows, Any]], threads: int) -> None:
        import torch

        from ..networks.cpu_products import threads_of

        turn, stop = threading.Lock(), threading.Event()

        def work() -> None:
            with threads_of(1):
                while not stop.is_set():
                    with turn:
                        part = next(parts, None)
                    if part is None:
                        return
                    self._look(*part)

        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, "bgekit-nearest")
        working = [self._pool.submit(work) for _ in range(threads)]
        try:
            for each in working:
                each.result()
        finally:
            stop.set()
            wait(working)
        # Each thread has a number of its own for OpenMP, but MKL keeps one for the process.
        torch.set_num_threads(threads)

    def _look(self, rows: int | Rows, block: Any) -> None:
        """Look at the vectors of a part."""
        if callable(block):
            vectors = block()
            for part in self._parts([(rows, vectors)], 1):
                self._look(*part)
            return
        if not len(block):
            return
        last = rows + len(block) - 1 if isinstance(rows, int) else int(rows.max())
        if last >= _MOST_ROWS:
            raise ArgumentError(f"there can be {_MOST_ROWS:,} vectors at most, not a row {last:,}")
        # A plain array: to take rows of a mapped one, numpy needs longer.
        vectors = np.asarray(block, dtype=None if block.dtype in (np.float32, np.float16) else np.float32)
        queries, columns, scores = self._scored(None if isinstance(rows, int) else rows < 0, vectors)
        self._keep(queries, scores, rows + columns if isinstance(rows, int) else rows[columns])

    def _scored(self, hidden: npt.NDArray[np.bool_] | None, vectors: npt.NDArray[Any]) -> tuple[Rows, Rows, Floats]:
        """Queries, in order, with the columns that may be among their best and are not hidden, and their scores."""
        product = self._product
        if product is None:
            raise RuntimeError("there is no product before there are blocks")
        products = product(unit(vectors) if self._cosine else vectors, self._longest, self._own)
        passing = products.passing
        hidden = hidden if hidden is not None and hidden.any() else None
        for query in products.open:
            passing[query] = self._cut(products, int(query), hidden, slice(None))
        if hidden is not None:
            passing[:, hidden] = False
        queries, columns = _true_places(passing)
        ends = np.searchsorted(queries, np.arange(len(self._queries) + 1))
        kept: npt.NDArray[np.bool_] | None = None
        # Of a block that has more of them than are wanted, only those that may be among the best of the block.
        for query in np.flatnonzero(np.diff(ends) > 2 * self._top_k + 64):
            kept = np.ones(len(queries), dtype=np.bool_) if kept is None else kept
            own = slice(ends[query], ends[query + 1])
            kept[own] = self._cut(products, int(query), None, columns[own])
        if kept is not None:
            queries, columns = queries[kept], columns[kept]
        scores = pair_scores(self._wide, queries, vectors, columns, cosine=self._cosine)
        good = scores > self._floors[queries]
        return queries[good], columns[good], scores[good]

    def _cut(
        self, products: _Products, query: int, hidden: npt.NDArray[np.bool_] | None, columns: Rows | slice
    ) -> npt.NDArray[np.bool_]:
        """Which of some columns may be among the best of these."""
        values = products.values(query, columns)
        if hidden is not None:
            values[hidden] = np.finfo(np.float32).min
        if len(values) <= self._top_k:
            return np.ones(len(values), dtype=np.bool_)
        least = _kth(values, self._top_k)
        rounding = products.rounding
        lowest = least - rounding * abs(least) - products.slack[query]
        return values + rounding * np.abs(values) >= lowest

    def _keep(self, queries: Rows, scores: Floats, rows: Rows) -> None:
        """Keep rows that may be among the best, given with their queries in order."""
        if not len(queries):
            return
        keys = _keys_of(scores, rows)
        with self._lock:
            good = keys < self._worst[queries]
            queries, keys = queries[good], keys[good]
            ends = np.searchsorted(queries, np.arange(len(self._counts) + 1))
            totals = self._counts + np.diff(ends)
            full = (totals > self._keys.shape[1]) | (np.isneginf(self._floors) & (totals >= self._top_k))
            for query in np.flatnonzero(full):
                self._sort_out(int(query), keys[ends[query] : ends[query + 1]])
            if full.any():
                totals[full] = self._counts[full]
                fits = ~full[queries]
                queries, keys = queries[fits], keys[fits]
                ends = np.searchsorted(queries, np.arange(len(self._counts) + 1))
            places = self._counts[queries] + np.arange(len(queries)) - ends[queries]
            self._keys[queries, places] = keys
            self._counts = totals
            if full.any() and self._product is not None:
                self._product.set_floors(self._floors)

    def _sort_out(self, query: int, keys: npt.NDArray[np.uint64]) -> None:
        """Keep the best of the rows of a query, those that come to them included."""
        keys = np.concatenate([self._keys[query, : self._counts[query]], keys])
        if len(keys) > self._top_k:
            keys = np.partition(keys, self._top_k - 1)[: self._top_k]
        self._keys[query] = _NONE
        self._keys[query, : len(keys)] = keys
        self._counts[query] = len(keys)
        self._worst[query] = keys.max()
        score = _of_keys(self._worst[query : query + 1])[0][0]
        # An equal score can belong to a lower row, and its exact value lie below what it was rounded to.
        self._floors[query] = max(self._floors[query], np.nextafter(score, np.float32(-np.inf)))


def pair_scores(
    wide: npt.NDArray[np.float64], queries: Rows, vectors: npt.NDArray[Any], columns: Rows, *, cosine: bool
) -> Floats:
    """Scores [n] float32 of pairs, added up in float64; each depends on its two vectors alone.

    Args:
        wide: Query vectors [q, d], of length 1 if scores are cosines.
        queries: The query of each pair, in order.
        vectors: Other vectors [rows, d], of any length.
        columns: The row of each pair in them.
        cosine: Divide by the length of the other vector.
    """
    scores = np.empty(len(queries))
    most = max(_WIDE // (8 * vectors.shape[1]), 1)
    step = max(len(queries), 1) if len(vectors) <= most else most
    for first in range(0, len(queries), step):
        part = slice(first, first + step)
        scores[part] = _dot_products(wide, queries[part], vectors, columns[part], cosine)
    # Without the sign of zero.
    return scores.astype(np.float32) + np.float32(0)


def _dot_products(
    wide: npt.NDArray[np.float64], queries: Rows, vectors: npt.NDArray[Any], columns: Rows, cosine: bool
) -> npt.NDArray[np.float64]:
    """Dot products of pairs, or those divided by the length of the other vector; as `pair_scores`."""
    import torch

    # Each row that is in a pair is made float64 once.
    chosen = np.zeros(len(vectors), dtype=np.bool_)
    chosen[columns] = True
    rows = np.flatnonzero(chosen)
    places = (np.cumsum(chosen) - 1)[columns]
    others = vectors[rows].astype(np.float64)
    begins = np.searchsorted(queries, np.arange(len(wide) + 1))
    # Not a product of matrices, which adds up terms in an order that depends on the place of a row. This takes those of
    # each pair in one order: 65 to 85 ns a pair of 384 dimensions, where it takes 300 to 490 to gather both vectors of
    # each pair and to add up their products by numpy.
    pairs = _sparse(begins, places, (len(wide), len(rows)))
    scores = torch.sparse.sampled_addmm(pairs, _tensor(wide), torch.from_numpy(others).T, beta=0.0).values().numpy()
    if cosine:
        scores /= np.maximum(np.sqrt(np.einsum("nd,nd->n", others, others)), 1e-12)[places]
    return scores


def _sparse(begins: Rows, columns: Rows, shape: tuple[int, int]) -> Tensor:
    """A matrix that says which pairs are computed, by the places of each row's first pair [rows + 1]."""
    import torch

    _take_beta()
    values = torch.zeros(len(columns), dtype=torch.float64)
    return torch.sparse_csr_tensor(
        torch.from_numpy(begins), torch.from_numpy(columns), values, size=shape, check_invariants=False
    )


@cache
def _take_beta() -> None:
    """Make the first such matrix of the process, of which torch warns once that they are in beta."""
    import torch

    none = torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(*none, size=(1, 1), check_invariants=False)


def nearest(
    queries: Floats,
    blocks: Callable[[], AnyBlocks],
    top_k: int,
    *,
    cosine: bool,
    longest: float | None = None,
    count: int = 0,
    sample: Callable[[int], AnyBlocks] | None = None,
) -> tuple[Floats, Rows]:
    """The rows with the highest scores for each query, of all blocks.

    Args:
        queries: [n, d] float32, about `QUERIES` of them.
        blocks: Gives all vectors that are looked at, each time it is called.
        top_k: Rows wanted; there are fewer when there are fewer vectors.
        cosine: Compare by cosine; otherwise by dot product.
        longest: A length that no vector exceeds, where it is known.
        count: Number of all vectors, if there is a sample.
        sample: Gives so many of the vectors, from all over the blocks: what scores they have is expected of the rest.

    Returns:
        As `TopK.arrays`.
    """
    expected = None
    if sample is not None and count >= _SAMPLED_FROM and len(queries) > _FEW:
        first = TopK(queries, 1, cosine=cosine, longest=longest)
        size = first.sample_size(top_k, count)
        expected = first.at_rank(_rank_in_sample(top_k, size, count), sample(size))
    best = TopK(queries, top_k, cosine=cosine, longest=longest, expected=expected)
    best.add_all(blocks())
    scores, rows = best.arrays()
    if expected is not None and len(few := best.unsure()):
        scores[few], rows[few] = nearest(queries[few], blocks, top_k, cosine=cosine, longest=longest)
    return scores, rows


def _rank_in_sample(top_k: int, size: int, count: int) -> int:
    """A rank in a sample of vectors that the score of the last row wanted of all is seldom below."""
    # So many of the best are in a sample, and seldom more than four standard deviations above that.
    share = top_k * size / count
    return math.ceil(share + 4 * math.sqrt(share) + 3)


class _Products:
    """Products of all queries with the vectors of a part.

    Attributes:
        passing: Where they may be those of a row with a score above the query's floor, [queries, rows].
        open: The queries that have no floor.
        slack: By how much the products of two rows may be in the wrong order, [queries].
        rounding: The same, as a share of the products.
    """

    def __init__(self, raw: npt.NDArray[Any], passing: npt.NDArray[np.bool_], open_: Rows, slack: Any,
                 rounding: float) -> None:  # fmt: skip
        self._raw, self.passing, self.open, self.slack, self.rounding = raw, passing, open_, slack, rounding

    def values(self, query: int, columns: Rows | slice) -> Floats:
        """A copy of some products of a query."""
        return _as_floats(self._raw[query, columns])

    def maxima(self, size: int) -> Floats:
        """The best of each of many groups of about so many products of each query, [queries, groups]."""
        raw = self._raw
        groups = max(raw.shape[1] // size, 1)
        parts = [raw[:, first : first + groups] for first in range(0, raw.shape[1] - groups + 1, groups)]
        best = parts[0]
        for part in parts[1:]:
            # Bits of bfloat16 have the order of whole numbers. Of two negative ones it is the lower one that is taken.
            best = np.maximum(best, part)
        return _as_floats(best)


def _as_floats(raw: npt.NDArray[Any]) -> Floats:
    """A copy of numbers in float32, or of such in bfloat16, given by their bits."""
    if raw.dtype == np.int16:
        return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float32)


class _Product(Protocol):
    """Products of queries and vectors, and which of them pass."""

    def __call__(self, vectors: npt.NDArray[Any], longest: float | None, own: Any) -> _Products:
        """Those with vectors [rows, d]; `own` holds a thread's memory between calls."""
        ...

    def set_floors(self, floors: Floats) -> None:
        """Let only products pass that may be those of higher scores than these [queries]."""
        ...


class _Product32:
    """Products in float32."""

    def __init__(self, queries: Floats, lengths: npt.NDArray[np.float64]) -> None:
        import torch

        self._queries, self._lengths = _tensor(np.ascontiguousarray(queries)), lengths
        if len(queries) == 1:
            # With a second column, of which nobody wants to know, the product takes half the time.
            self._queries = torch.cat([self._queries, self._queries])
        self._floors = np.empty(0)

    def set_floors(self, floors: Floats) -> None:
        self._floors = floors.astype(np.float64)

    def __call__(self, vectors: npt.NDArray[Any], longest: float | None, own: Any) -> _Products:
        import torch

        from ..networks.cpu_products import products_of_rows

        floors = self._floors
        count, width = vectors.shape
        others = _tensor(vectors).float()
        if longest is None:
            # More than the longest has, and far quicker to find than its length.
            longest = math.sqrt(width) * max(float(others.max()), -float(others.min()))
        if len(self._queries) <= _FEW:
            memory = _memory(own, "products", len(self._queries) * count, torch.float32)
            # Few columns take up to half of the time that few rows do.
            products = torch.mm(others, self._queries.T, out=memory.view(count, -1)).numpy().T[: len(floors)]
        else:
            products = products_of_rows(self._queries, others).numpy()
        margin = self._lengths * longest * (width + 4) * _ROUNDING_32 + _TINY
        with np.errstate(over="ignore"):
            asked = (floors - margin).astype(np.float32)
        passing = _memory(own, "passing", len(floors) * count, torch.bool).view(len(floors), count).numpy()
        np.greater_equal(products, asked[:, None], out=passing)
        return _Products(products, passing, np.flatnonzero(np.isneginf(floors)), 2 * margin, 0.0)


class _Product16:
    """Products in bfloat16, from which each query's floor is subtracted, so that the sign says what passes.

    A product of bfloat16 numbers is exact in float32. What is off is the rounding of both vectors, at most the length
    of what a query lost times the length of the other vector, plus 2^-8 of the product of both lengths; and the sum in
    float32. Three more columns hold the floor, a number of float32 being the sum of three of bfloat16, and one the
    length of each vector, which times that of the query is how far the product may be off.
    """

    def __init__(self, queries: Floats, lengths: npt.NDArray[np.float64]) -> None:
        import torch

        self._width = queries.shape[1]
        self._padded = -(-(self._width + _COLUMNS) // _TILE) * _TILE
        self._sums = (self._padded + 8) * _ROUNDING_32 * 1.1
        wide = _tensor(np.ascontiguousarray(queries))
        matrix = torch.zeros(len(queries), self._padded, dtype=torch.bfloat16)
        matrix[:, : self._width] = wide
        lost = (wide.double() - matrix[:, : self._width].double()).norm(dim=1).numpy()
        off = lost + lengths * (1 + _ROUNDING_16) * (_ROUNDING_16 + self._sums)
        # One more step of bfloat16, so that it is rounded up.
        off = torch.from_numpy(off * (1 + 2 * _ROUNDING_16)).bfloat16()
        matrix[:, self._width + 3] = off
        self._off = off.double().numpy()
        self._state = (matrix, np.empty(0, np.int64))

    def set_floors(self, floors: Floats) -> None:
        open_ = np.isneginf(floors)
        asked = np.where(open_, 0, floors).astype(np.float64)
        rest = _tensor(asked - self._sums * np.abs(asked) - _TINY)
        # Other threads may be multiplying with the one that there is.
        matrix = self._state[0].clone()
        for column in range(self._width, self._width + 3):
            part = rest.bfloat16()
            matrix[:, column] = -part
            rest = rest - part.double()
        self._state = (matrix, np.flatnonzero(open_))

    def __call__(self, vectors: npt.NDArray[Any], longest: float | None, own: Any) -> _Products:
        import torch

        matrix, open_ = self._state
        count = len(vectors)
        others = _memory(own, "vectors", count * self._padded, torch.bfloat16).view(count, self._padded)
        others[:, : self._width] = _tensor(vectors)
        if longest is None:
            wide = vectors.astype(np.float32)
            measured = np.sqrt(np.einsum("nd,nd->n", wide, wide)) * np.float32(UNIT_LENGTH)
            longest = float(measured.max())
            if not longest < _LONG:
                raise ArgumentError(f"a vector has the length {longest:g}: scores would overflow")
            others[:, self._width + 3] = torch.from_numpy(measured * np.float32(1 + 2 * _ROUNDING_16))
        else:
            others[:, self._width + 3] = longest * (1 + 2 * _ROUNDING_16)
        others[:, self._width : self._width + 3] = 1
        others[:, self._width + _COLUMNS :] = 0
        out = _memory(own, "products", len(matrix) * count, torch.bfloat16).view(len(matrix), count)
        bits = torch.mm(matrix, others.T, out=out).view(torch.int16).numpy()
        passing = _memory(own, "passing", len(matrix) * count, torch.bool).view(len(matrix), count).numpy()
        np.greater_equal(bits, 0, out=passing)
        slack = 2 * self._off * longest * (1 + 4 * _ROUNDING_16) + 2 * _TINY
        return _Products(bits, passing, open_, slack, _ROUNDING_16 * 1.02)


def _fast_16() -> bool:
    from ..networks.loading import cpu_has_fast_bfloat16

    return cpu_has_fast_bfloat16()


class _Shared:
    """The memory of an array, for numpy to make another array of it that may be written to, which nobody does."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor that shares the memory of an array; also of a read-only one, of which torch would warn."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Shared(array)))


def _memory(own: Any, name: str, size: int, dtype: Any) -> Tensor:
    """Memory of a thread that is used again."""
    import torch

    kept: Tensor | None = getattr(own, name, None)
    if kept is None or len(kept) < size:
        kept = torch.empty(size, dtype=dtype)
        setattr(own, name, kept)
    return kept[:size]


def _kth(values: Floats, k: int) -> float:
    """The k-th best of more values; of very many, a value that is not better and most often as good."""
    groups = len(values) // _GROUP
    if groups >= 4 * k:
        values, groups = values[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0), 0
    return float(np.partition(values, len(values) - k)[len(values) - k])


def _true_places(marks: npt.NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Rows and columns of what is true, in order; quick where that is little."""
    bits = np.packbits(marks)
    words = np.zeros(-(-len(bits) // 8), dtype=np.uint64)
    words.view(np.uint8)[: len(bits)] = bits
    some = np.flatnonzero(words)
    inside = np.flatnonzero(np.unpackbits(words[some].view(np.uint8)).view(np.bool_))
    rows, columns = np.divmod(some[inside >> 6] * 64 + (inside & 63), marks.shape[1])
    return rows, columns


def _keys_of(scores: Floats, rows: Rows) -> npt.NDArray[np.uint64]:
    """Numbers in the order of the best: higher scores first, of equal ones the lower row."""
    bits = scores.view(np.uint32)
    rising = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
    return ((~rising).astype(np.uint64) << np.uint64(32)) | rows.astype(np.uint64)


def _of_keys(keys: npt.NDArray[np.uint64]) -> tuple[Floats, Rows]:
    """Scores and rows of keys."""
    rising = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(rising >> np.uint32(31), rising & np.uint32(0x7FFFFFFF), ~rising)
    return bits.view(np.float32), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _chain(first: Any, second: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield second
    yield from rest
