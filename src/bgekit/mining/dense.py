"""Rankings by the vectors of a model, searched exactly block by block, or with an approximate index of faiss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, require_extra
from ..files.hashing import digest
from ..inference.engine import resolve_devices
from ..inference.shards import EncodeShards, encode_for_now, load_shards
from ..inference.similarity import unit
from ..search.approximate import Approximate
from ..search.approximate_build import build_in_memory
from ..search.nearest import QUERIES, UNIT_LENGTH, Rows, TopK
from ..search.storage import check_similarity

if TYPE_CHECKING:
    from ..display.terminal import EncodeProgress
    from ..inference.model import Embedder
    from .negatives import TextStore

Floats: TypeAlias = "npt.NDArray[np.float32]"
IndexKind = Literal["exact", "hnsw", "ivf"]

#: Texts of a shard: what an interrupted run loses at most.
SHARD: Final = 2048
#: Vectors that queries are compared with at once.
_BLOCK: Final = 16_384
#: Pairs of vectors that are multiplied at once on a device.
_SCORED: Final = 8192


class DenseMiner:
    """A model and the vectors of all texts.

    Attributes:
        name: The model's name.
        cosine: Whether vectors are compared by cosine; otherwise by dot product.
    """

    def __init__(self, embedder: Embedder, store: TextStore, folder: Path, *, index: IndexKind = "exact",
                 device: str | None = None, encode: EncodeShards = encode_for_now) -> None:  # fmt: skip
        """A miner; `prepare` computes the vectors.

        Args:
            embedder: The model.
            store: The texts.
            folder: Where vectors are kept.
            index: `exact` looks at every vector; `hnsw` and `ivf` need faiss.
            device: Compare vectors there (`cuda`); by default on the CPU.
            encode: Encodes the texts: `encode_to_shards`, or the same with more machines.

        Raises:
            ArgumentError: the model's vectors are not compared by cosine or dot product, or the device cannot be used.
            MissingExtraError: the index needs faiss, which is not installed.
        """
        check_similarity(embedder.card.name, embedder.card.similarity, unit_vectors=embedder.card.normalize)
        # Before hours of encoding, not after them.
        if index != "exact":
            require_extra("faiss", "faiss")
        if device is not None:
            if index != "exact":
                raise ArgumentError(f"search_device {device} is for the exact search; {index} is searched on the CPU")
            resolve_devices(device)
        self.name, self.cosine = embedder.card.name, embedder.card.similarity == "cosine"
        self._embedder, self._store, self._kind, self._device = embedder, store, index, device
        self._encode = encode
        self._folder = folder / f"vectors-{digest(embedder.fingerprint, store.digest)[:16]}"
        self._shards: list[npt.NDArray[Any]] = []
        self._index: Approximate | None = None

    def prepare(self, progress: EncodeProgress | None = None) -> None:
        """Encode all texts, as far as an earlier run has not, and build the index."""
        self._encode(self._embedder, self._store.records(), self._folder, shard_size=SHARD, progress=progress)
        self._shards = [vectors for _, vectors in load_shards(self._folder).iter_shards()]
        if self._kind != "exact" and self._store.candidates:
            self._index = build_in_memory(
                self._kind, lambda: self._blocks(SHARD), self._store.candidates, self._embedder.dimension,
                cosine=self.cosine, normalized=self._embedder.card.normalize,
            )  # fmt: skip

    def encode(self, queries: Sequence[str], prompts: Sequence[str | None]) -> Floats:
        """Vectors [n, d] of queries, of length 1 where the cosine counts.

        Args:
            queries: The queries.
            prompts: The instruction of each, None for the model's own.
        """
        vectors = np.empty((len(queries), self._embedder.dimension), dtype=np.float32)
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, each in enumerate(prompts) if each == prompt]
            texts = [queries[row] for row in rows]
            options: dict[str, Any] = {} if prompt is None else {"instruction": prompt}
            vectors[rows] = self._embedder.encode_queries(texts, convert_to_numpy=True, show_progress=False, **options)
        return self._comparable(vectors)

    def rank(self, queries: Floats, top_k: int) -> list[Rows]:
        """The candidates nearest to each query; of equal ones the earlier first."""
        if self._index is not None:
            return self._rank_by_index(self._index, queries, top_k)
        make: Callable[..., TopK] = TopK if self._device is None else partial(_DeviceTopK, device=self._device)
        longest = UNIT_LENGTH if self.cosine else None
        best = [
            make(queries[first : first + QUERIES], top_k, cosine=False, longest=longest)
            for first in range(0, len(queries), QUERIES)
        ]
        for first, block in self._blocks(_BLOCK):
            vectors = self._comparable(block)
            for each in best:
                each.add(first, vectors)
        return [rows for each in best for _, rows in each.found()]

    def similarity(self, query: Floats, rows: Rows) -> npt.NDArray[np.float64]:
        """Similarity [n] of a query and texts. It depends on the vectors alone, whatever else is asked for."""
        found = np.empty(len(rows))
        for shard in np.unique(rows // SHARD):
            there = np.flatnonzero(rows // SHARD == shard)
            vectors = self._comparable(self._shards[shard][rows[there] % SHARD])
            found[there] = np.einsum("d,nd->n", query, vectors, dtype=np.float64)
        return found

    def _rank_by_index(self, index: Approximate, queries: Floats, top_k: int) -> list[Rows]:
        rankings = []
        for query, rows in zip(queries, index.candidates(queries, top_k), strict=True):
            rows = np.sort(rows)
            rankings.append(rows[np.argsort(-self.similarity(query, rows), kind="stable")][:top_k])
        return rankings

    def _comparable(self, vectors: npt.NDArray[Any]) -> Floats:
        return unit(vectors) if self.cosine else np.asarray(vectors, dtype=np.float32)

    def _blocks(self, size: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """The first row of each block of candidates, and its vectors."""
        count = self._store.candidates
        step = size // SHARD
        for first in range(0, -(-count // SHARD), step):
            parts = self._shards[first : first + step]
            block = parts[0] if len(parts) == 1 else np.concatenate(parts)
            yield first * SHARD, block[: count - first * SHARD]


class _DeviceTopK(TopK):
    """`TopK` whose products are computed by torch, most often on a GPU."""

    def __init__(self, queries: Floats, top_k: int, *, cosine: bool, device: str, longest: float | None = None) -> None:
        import torch

        super().__init__(queries, top_k, cosine=cosine, longest=longest)
        self._torch, self._there = torch, torch.as_tensor(self._queries, device=device)

    def add(self, rows: int | Rows, block: npt.NDArray[Any]) -> None:
        """Look at the vectors [rows, d] of a block at once."""
        if not len(block) or not len(self._queries):
            return
        torch = self._torch
        vectors = torch.as_tensor(np.ascontiguousarray(block, dtype=np.float32), device=self._there.device)
        if self._cosine:
            vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
        longest = self._longest or float(vectors.norm(dim=1).max()) * UNIT_LENGTH
        rounding = vectors.shape[1] * float(np.finfo(np.float32).eps) + self._coarseness()
        margin = self._there.norm(dim=1, keepdim=True) * longest * rounding
        products = self._there @ vectors.T
        least = products.topk(min(self._top_k, len(block)), dim=1).values[:, -1:]
        floors = torch.as_tensor(self._floors[:, None], device=vectors.device)
        queries, columns = ((products > floors - margin) & (products >= least - 2 * margin)).nonzero(as_tuple=True)
        # In float64: how a reduction is divided depends on the number of its rows, and must not be seen in float32.
        parts = [
            (self._there[some_queries].double() * vectors[some_columns].double()).sum(dim=1).float()
            for some_queries, some_columns in zip(queries.split(_SCORED), columns.split(_SCORED), strict=True)
        ]
        scores = torch.cat([self._there.new_empty(0), *parts]).cpu().numpy() + np.float32(0)
        places = columns.cpu().numpy()
        self._keep(queries.cpu().numpy(), scores, places + rows if isinstance(rows, int) else rows[places])

    def _coarseness(self) -> float:
        # A caller may have allowed TF32 or bfloat16 for products of float32.
        return {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}[self._torch.get_float32_matmul_precision()]
