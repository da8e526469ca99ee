"""SearchIndex: vectors with ids and texts, searched by query vectors or, with the model, by texts."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from ..encoding.chunking import document_of
from ..encoding.manifest import MANIFEST
from ..encoding.result import Embeddings, Origin
from ..encoding.shardset import load_shards
from ..errors import ArgumentError, OutputError
from ..models.card import UNSET, Unset
from . import approximate, exact
from .compatible import check_model
from .facts import APPROXIMATE, FACTS, Facts, facts_of_shards, read_facts
from .second_stage import PairScorer, reranked
from .stored import Stored, StoredFiles, StoredShards

if TYPE_CHECKING:
    from ..encoding.base import Embedder

logger = logging.getLogger(__name__)

#: Passages looked at first for each document wanted.
_PASSAGES_A_DOCUMENT: Final = 4
#: Candidates of an approximate index beyond those wanted, which show whether the last one has copies.
_SPARE: Final = 16


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        rank: 1 for the best.
        score: Cosine or dot product in float32, of its best passage if documents were split.
        id: The document's id.
        text: Its text, or that passage; None when the index keeps no texts.
        passage: Number of that passage in the document, from 0; None when documents were not split.
        retrieval_score: Its score before a reranker gave it another one; None without a reranker.
    """

    rank: int
    score: float
    id: str
    text: str | None
    passage: int | None = None
    retrieval_score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values; `passage` and `retrieval_score` only where there is one."""
        content = {"rank": self.rank, "id": self.id, "score": self.score, "text": self.text}
        further = {"passage": self.passage, "retrieval_score": self.retrieval_score}
        return content | {name: value for name, value in further.items() if value is not None}


class SearchIndex:
    """An index on disk; only what a search needs is read.

    Attributes:
        facts: How the vectors were made, and how they are searched.
        folder: Where it lies.
    """

    def __init__(self, folder: Path, facts: Facts, stored: Stored) -> None:
        self.folder, self.facts, self.stored = folder, facts, stored
        self._checked: set[str] = set()
        self._warned = False

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SearchIndex:
        """Open an index folder, or a folder of shards of `bge encode` (searched exactly).

        Raises:
            OutputError: it is neither, unfinished, or damaged.
            MissingExtraError: the index needs faiss, which is not installed.
        """
        path = Path(folder)
        if (path / FACTS).exists():
            facts = read_facts(path)
            index = cls(path, facts, StoredFiles(path, facts.count, facts.dimension))
            if facts.index_type != "exact":
                _ = index._approximate  # What is missing or damaged shows now.
            return index
        if (path / MANIFEST).exists():
            shards = load_shards(path)
            return cls(path, facts_of_shards(shards), StoredShards(shards))
        what = "is no index and no folder of encoded shards" if path.exists() else "does not exist"
        raise OutputError(f"{path} {what}; `bge search FILE... --index DIR` makes an index")

    def __len__(self) -> int:
        """Vectors; with documents split into passages, of passages."""
        return self.facts.count

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.facts.dimension

    def ask(
        self,
        model: Embedder,
        queries: Sequence[str],
        top_k: int = 10,
        *,
        instruction: str | Unset | None = UNSET,
        reranker: PairScorer | None = None,
        rerank_top_k: int = 100,
    ) -> list[list[Hit]]:
        """What fits each query best, best first.

        Args:
            model: The model that the index was made with.
            queries: Texts; they get the model's query instruction.
            top_k: Documents wanted for each.
            instruction: Put before queries instead; None or "" for none.
            reranker: Puts the first `rerank_top_k` in its own order; scores are then its scores.
            rerank_top_k: Documents a query that the reranker sees, at least `top_k`.

        Raises:
            ArgumentError: the index was made with another model, or keeps no texts to rerank.
        """
        if rerank_top_k < 1:
            raise ArgumentError(f"rerank_top_k must be a positive number, not {rerank_top_k}")
        self._check_model(model)
        vectors = model.encode_queries(list(queries), convert_to_numpy=True, instruction=instruction)
        if reranker is None:
            return self._search(vectors, top_k)
        return reranked(reranker, list(queries), self._search(vectors, max(top_k, rerank_top_k)), top_k)

    def search(self, queries: npt.ArrayLike, top_k: int = 10, *, model: Embedder | None = None) -> list[list[Hit]]:
        """What is nearest to each query vector, best first; of equal scores the earlier in the index.

        Only vectors of the index's own model can be compared with its vectors. Those that `encode` returned know their
        model; of others nobody can tell, so there is a warning once.

        Args:
            queries: Vectors [n, dimension], or one [dimension].
            top_k: Documents wanted for each; there are fewer when the index has fewer.
            model: The model that made them: it is checked as by `ask`, and there is no warning.

        Raises:
            ArgumentError: the vectors, or the model, are of another model than the index.
        """
        if model is not None:
            self._check_model(model)
        for origin in _origins(queries):
            self._check_origin(origin, model)
        return self._search(queries, top_k)

    def _check_model(self, model: Embedder) -> None:
        if model.fingerprint not in self._checked:
            check_model(model, self.facts, self.stored)
            self._checked.add(model.fingerprint)

    def _check_origin(self, origin: Origin | None, model: Embedder | None) -> None:
        """See to it that vectors are comparable with those of the index, as far as it is known where they are from.

        Args:
            origin: Where they are from.
            model: The model that the caller names, which has been checked.
        """
        own = None if origin is None else origin.fingerprint
        if own is None or origin is None:
            if model is None and not self._warned:
                self._warned = True
                logger.warning(
                    "nothing tells whether these query vectors are from %s, as those of the index are: with those of "
                    "another model what is found means nothing. index.ask(model, texts) checks it, and so does "
                    "index.search(vectors, model=model)", self.facts.model_name,
                )  # fmt: skip
        elif own not in {self.facts.model_fingerprint, *self._checked}:
            if origin.model is None:
                raise ArgumentError(
                    f"these query vectors are from another model than the index, which was made with "
                    f"{self.facts.model_name}, or from that model with other settings. Encode the queries with it; "
                    "index.ask(model, texts) does so and checks the model"
                )
            self._check_model(origin.model)

    def _search(self, queries: npt.ArrayLike, top_k: int) -> list[list[Hit]]:
        vectors = np.atleast_2d(np.asarray(queries, dtype=np.float32))
        if top_k < 1:
            raise ArgumentError(f"top_k must be a positive number, not {top_k}")
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ArgumentError(
                f"query vectors must have {self.dimension} dimensions, these have the shape {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise ArgumentError("a query vector has NaN or infinity")
        found: list[list[Hit]] = []
        for first in range(0, len(vectors), exact.QUERIES):
            part = vectors[first : first + exact.QUERIES]
            found += self._documents(part, top_k) if self.facts.chunked else self._rows_as_hits(part, top_k)
        return found

    def _rows_as_hits(self, queries: exact.Floats, top_k: int) -> list[list[Hit]]:
        return [
            [
                Hit(rank, float(score), *self.stored.row(int(row)))
                for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
            ]
            for scores, rows in self._nearest(queries, top_k)
        ]

    def _documents(self, queries: exact.Floats, top_k: int) -> list[list[Hit]]:
        """Documents by their best passage: the first of each in the order of passages."""
        answers: list[list[Hit]] = [[] for _ in queries]
        open_queries = list(range(len(queries)))
        depth = _PASSAGES_A_DOCUMENT * top_k
        while open_queries:
            found = self._nearest(queries[open_queries], depth)
            for query, (scores, rows) in zip(open_queries, found, strict=True):
                answers[query] = self._best_passages(scores, rows, top_k)
            # One long document can have all the passages looked at: look at more.
            open_queries = [query for query in open_queries if len(answers[query]) < top_k and depth < len(self)]
            depth *= 4
        return answers

    def _best_passages(self, scores: exact.Floats, rows: exact.Rows, top_k: int) -> list[Hit]:
        hits: dict[str, Hit] = {}
        for score, row in zip(scores, rows, strict=True):
            name, text = self.stored.row(int(row))
            document, number = document_of(name)
            if document not in hits:
                hits[document] = Hit(len(hits) + 1, float(score), document, text, number)
            if len(hits) == top_k:
                break
        return list(hits.values())

    def _nearest(self, queries: exact.Floats, top_k: int) -> list[tuple[exact.Floats, exact.Rows]]:
        cosine = self.facts.similarity == "cosine"
        top_k = min(top_k, len(self))
        if top_k == 0:
            return [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
        queries = exact.unit(queries) if cosine else queries
        found = self._candidates(queries, top_k)
        answers = [self._scored(query, rows, cosine) for query, rows in zip(queries, found, strict=True)]
        # All queries of an exact index; of others those whose cells or whose graph did not lead to enough, or to copies
        # of the last text so many that there may be earlier ones among those left out.
        few = [query for query, (scores, _) in enumerate(answers)
               if len(scores) < top_k or scores[top_k - 1] == scores[-1]]  # fmt: skip
        if few:
            # Of unit vectors the dot product is the cosine: no need to measure the length of every one again.
            cosine_needed = cosine and not self.facts.unit_vectors
            longest = exact.UNIT_LENGTH if self.facts.unit_vectors else None
            complete = exact.nearest(queries[few], self.stored.blocks(), top_k, cosine=cosine_needed, longest=longest)
            for query, (_, rows) in zip(few, complete, strict=True):
                answers[query] = self._scored(queries[query], rows, cosine)
        return [(scores[:top_k], rows[:top_k]) for scores, rows in answers]

    def _candidates(self, queries: exact.Floats, top_k: int) -> list[exact.Rows]:
        """Rows that an approximate index finds, some more than wanted.

        None without one, or where looking at every vector is no more work.
        """
        if self.facts.index_type == "exact" or top_k > len(self) // 4:
            return [np.empty(0, np.int64) for _ in queries]
        return approximate.candidates(self._approximate, queries, top_k + _SPARE)

    def _scored(self, query: exact.Floats, rows: exact.Rows, cosine: bool) -> tuple[exact.Floats, exact.Rows]:
        """Rows in the order of their scores, computed one by one, for a query of length 1 if scores are cosines.

        A matrix product rounds a row's score differently depending on its place in a block, so that equal texts
        could come out unequal; like this, scores depend on the two vectors alone, whatever the type of index.
        """
        vectors = self.stored.vectors(rows).astype(np.float64)
        if cosine:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        scores = (vectors * query.astype(np.float64)).sum(axis=1).astype(np.float32)
        order = np.lexsort((rows, -scores))
        return scores[order], rows[order]

    @cached_property
    def _approximate(self) -> Any:
        index = approximate.read(self.folder / APPROXIMATE)
        if index.ntotal != len(self) or index.d != self.dimension:
            raise OutputError(f"{self.folder / APPROXIMATE} belongs to another index; build the index again")
        return index


def _origins(queries: object) -> set[Origin | None]:
    """Where vectors come from, or each of a list of them."""
    several = queries if isinstance(queries, list | tuple) and len(queries) else [queries]
    return {each.origin if isinstance(each, Embeddings) else None for each in several}
