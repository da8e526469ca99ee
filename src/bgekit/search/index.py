"""SearchIndex: vectors with ids and texts, searched by query vectors or, with the model, by texts."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from ..data.chunking import document_of
from ..data.metadata import Metadata, plain, row_of
from ..errors import ArgumentError, OutputError, check_count
from ..inference.pipeline import Embeddings, Origin
from ..inference.shards import MANIFEST, load_shards
from ..inference.similarity import unit
from ..models.card import UNSET, Unset
from .nearest import (
    QUERIES,
    UNIT_LENGTH,
    AnyBlocks,
    Floats,
    Rows,
    nearest,
    nearest_approximately,
    read_approximate,
    worthwhile,
)
from .storage import APPROXIMATE, FACTS, Facts, Stored, StoredFiles, StoredShards, facts_of_shards, read_facts
from .where import Where

if TYPE_CHECKING:
    from ..inference.model import Embedder

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
        metadata: Columns that the index keeps of it (`index_records(..., keep=...)`), null as None.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import index_records
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> index, report = index_records(model, read_records("corpus.jsonl"), "index")
        >>> hit = index.ask(model, ["where did the cat sit?"])[0][0]
        >>> hit.id.startswith("d"), -1 <= hit.score <= 1.001
        (True, True)
    """

    rank: int
    score: float
    id: str
    text: str | None
    passage: int | None = None
    retrieval_score: float | None = None
    metadata: Metadata = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """The hit as JSON takes it; `passage`, `retrieval_score` and `metadata` only where there is any."""
        content = {"rank": self.rank, "id": self.id, "score": self.score, "text": self.text}
        metadata = {name: plain(value) for name, value in self.metadata.items()} or None
        further = {"passage": self.passage, "retrieval_score": self.retrieval_score, "metadata": metadata}
        return content | {name: value for name, value in further.items() if value is not None}


class SearchIndex:
    """An index on disk; only what a search needs is read.

    Attributes:
        facts: How the vectors were made, and how they are searched.
        folder: Where it lies.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import SearchIndex, index_records
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> index, report = index_records(model, read_records("corpus.jsonl"), "index")
        >>> len(SearchIndex.load("index").ask(model, ["where did the cat sit?"], top_k=3)[0])
        3
    """

    def __init__(self, folder: Path, facts: Facts, stored: Stored) -> None:
        self.folder, self.facts, self.stored = folder, facts, stored
        self._checked: set[str] = set()
        self._warned = False
        self._last: tuple[str, Rows] | None = None

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
            columns = None if facts.metadata is None else facts.metadata["columns"]
            index = cls(path, facts, StoredFiles(path, facts.count, facts.dimension, columns))
            if facts.index_type != "exact":
                _ = index._approximate  # What is missing or damaged shows now.
            return index
        if (path / MANIFEST).exists():
            shards = load_shards(path)
            return cls(path, facts_of_shards(shards), StoredShards(shards))
        what = "is neither an index nor a folder of encoded shards" if path.exists() else "does not exist"
        raise OutputError(f"{path} {what}; `bge search FILE... --index DIR` makes an index")

    def __len__(self) -> int:
        """Vectors; with documents split into passages, of passages."""
        return self.facts.count

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.facts.dimension

    @property
    def metadata(self) -> Any:
        """Columns that were kept, as a pyarrow table with a row per vector; None without."""
        return self.stored.metadata

    def ask(
        self,
        model: Embedder,
        queries: Sequence[str],
        top_k: int = 10,
        *,
        where: str | None = None,
        instruction: str | Unset | None = UNSET,
        reranker: PairScorer | None = None,
        rerank_top_k: int = 100,
    ) -> list[list[Hit]]:
        """Hits of each query, best first.

        Args:
            model: The model that the index was made with.
            queries: Texts; they get the model's query instruction.
            top_k: Documents wanted for each.
            where: Condition on metadata that what is found must meet, such as "year >= 2020 and lang = 'en'".
            instruction: Put before queries instead; None or "" for none.
            reranker: Puts the first `rerank_top_k` in its own order; scores are then its scores.
            rerank_top_k: Documents a query that the reranker sees, at least `top_k`.

        Raises:
            ArgumentError: the index was made with another model, keeps no texts to rerank, or the condition has no
                meaning for its metadata.
        """
        check_count("rerank_top_k", rerank_top_k, "documents")
        kept = None if where is None else self.rows_where(where)
        self.check_model(model)
        vectors = model.encode_queries(list(queries), convert_to_numpy=True, instruction=instruction)
        if reranker is None:
            return self._search(vectors, top_k, kept)
        return reranked(reranker, list(queries), self._search(vectors, max(top_k, rerank_top_k), kept), top_k)

    def search(
        self, queries: npt.ArrayLike, top_k: int = 10, *, where: str | None = None, model: Embedder | None = None
    ) -> list[list[Hit]]:
        """Nearest rows of each query vector, best first; of equal scores the earlier in the index.

        Only vectors of the index's own model can be compared with its vectors. Those that `encode` returned know their
        model; of others nobody can tell, so there is a warning once.

        Args:
            queries: Vectors [n, dimension], or one [dimension].
            top_k: Documents wanted for each; there are fewer when the index has fewer.
            where: Condition on metadata, as in `ask`. What is found is the nearest of all rows that meet it.
            model: The model that made them: it is checked as by `ask`, and there is no warning.

        Raises:
            ArgumentError: the vectors, or the model, are of another model than the index, or the condition has no
                meaning for its metadata.
        """
        if model is not None:
            self.check_model(model)
        for origin in _origins(queries):
            self._check_origin(origin, model)
        return self._search(queries, top_k, None if where is None else self.rows_where(where))

    def rows_where(self, where: str) -> Rows:
        """The rows that meet a condition on metadata, in order.

        Raises:
            ArgumentError: it is not written as conditions are, or has no meaning for the metadata of the index.
        """
        if self._last is None or self._last[0] != where:
            condition = Where(where)
            if self.metadata is None:
                columns = [each if each.isidentifier() else f"'{each}'" for each in condition.columns]
                raise ArgumentError(
                    f"{self.folder} keeps no metadata for a condition: build it again with keep=[...] "
                    f"(--keep {' '.join(columns)})"
                )
            self._last = where, np.flatnonzero(condition.rows(self.metadata))
        return self._last[1]

    def check_model(self, model: Embedder) -> None:
        """See to it that a model gives vectors that can be compared with those of the index.

        Raises:
            BgekitError: it does not.
        """
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
                    "it is not known whether these query vectors are from %s, as those of the index are: with vectors "
                    "of another model, results mean nothing. index.ask(model, texts) checks it, and so does "
                    "index.search(vectors, model=model)", self.facts.model_name,
                )  # fmt: skip
        elif own not in {self.facts.model_fingerprint, *self._checked}:
            if origin.model is None:
                raise ArgumentError(
                    f"these query vectors are from another model than the index, which was made with "
                    f"{self.facts.model_name}, or from that model with other settings. Encode the queries with it; "
                    "index.ask(model, texts) does so and checks the model"
                )
            self.check_model(cast("Embedder", origin.model))

    def _search(self, queries: npt.ArrayLike, top_k: int, kept: Rows | None) -> list[list[Hit]]:
        vectors = np.atleast_2d(np.asarray(queries, dtype=np.float32))
        check_count("top_k", top_k, "documents")
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ArgumentError(
                f"query vectors must have {self.dimension} dimensions, these have the shape {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise ArgumentError("a query vector has NaN or infinity")
        found: list[list[Hit]] = []
        for first in range(0, len(vectors), QUERIES):
            part = vectors[first : first + QUERIES]
            hits = self._documents if self.facts.chunked else self._rows_as_hits
            found += hits(part, top_k, kept)
        return found

    def _metadata_of(self, row: int) -> Metadata:
        return {} if self.metadata is None else row_of(self.metadata, row)

    def _rows_as_hits(self, queries: Floats, top_k: int, kept: Rows | None) -> list[list[Hit]]:
        return [
            [
                Hit(rank, float(score), *self.stored.row(int(row)), metadata=self._metadata_of(int(row)))
                for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
            ]
            for scores, rows in self._nearest(queries, top_k, kept)
        ]

    def _documents(self, queries: Floats, top_k: int, kept: Rows | None) -> list[list[Hit]]:
        """Documents by their best passage: the first of each in the order of passages."""
        answers: list[list[Hit]] = [[] for _ in queries]
        open_queries = list(range(len(queries)))
        depth, most = _PASSAGES_A_DOCUMENT * top_k, len(self) if kept is None else len(kept)
        while open_queries:
            found = self._nearest(queries[open_queries], depth, kept)
            for query, (scores, rows) in zip(open_queries, found, strict=True):
                answers[query] = self._best_passages(scores, rows, top_k)
            # One long document can have all the passages looked at: look at more.
            open_queries = [query for query in open_queries if len(answers[query]) < top_k and depth < most]
            depth *= 4
        return answers

    def _best_passages(self, scores: Floats, rows: Rows, top_k: int) -> list[Hit]:
        hits: dict[str, Hit] = {}
        for score, row in zip(scores, rows, strict=True):
            name, text = self.stored.row(int(row))
            document, number = document_of(name)
            if document not in hits:
                metadata = self._metadata_of(int(row))
                hits[document] = Hit(len(hits) + 1, float(score), document, text, number, metadata=metadata)
            if len(hits) == top_k:
                break
        return list(hits.values())

    def _nearest(self, queries: Floats, top_k: int, kept: Rows | None) -> list[tuple[Floats, Rows]]:
        cosine = self.facts.similarity == "cosine"
        kept = None if kept is not None and len(kept) == len(self) else kept
        top_k = min(top_k, len(self) if kept is None else len(kept))
        if top_k == 0:
            return [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
        queries = unit(queries) if cosine else queries
        found = self._candidates(queries, top_k, kept)
        answers = [self._scored(query, rows, cosine) for query, rows in zip(queries, found, strict=True)]
        # All queries of an exact index; of others those whose cells or whose graph did not lead to enough, or to copies
        # of the last text so many that there may be earlier ones among those left out.
        few = [query for query, (scores, _) in enumerate(answers)
               if len(scores) < top_k or scores[top_k - 1] == scores[-1]]  # fmt: skip
        if few:
            # Of unit vectors the dot product is the cosine: no need to measure the length of every one again.
            cosine_needed = cosine and not self.facts.unit_vectors
            longest = UNIT_LENGTH if self.facts.unit_vectors else None
            blocks: AnyBlocks = self.stored.blocks() if kept is None else self.stored.gathered(kept)
            complete = nearest(queries[few], blocks, top_k, cosine=cosine_needed, longest=longest)
            for query, (_, rows) in zip(few, complete, strict=True):
                answers[query] = self._scored(queries[query], rows, cosine)
        return [(scores[:top_k], rows[:top_k]) for scores, rows in answers]

    def _candidates(self, queries: Floats, top_k: int, kept: Rows | None) -> list[Rows]:
        """Rows that an approximate index finds, some more than wanted.

        None without one, or where looking at every vector is no more work.
        """
        rows = len(self) if kept is None else len(kept)
        if self.facts.index_type == "exact" or top_k > rows // 4 or not worthwhile(self._approximate, rows):
            return [np.empty(0, np.int64) for _ in queries]
        return nearest_approximately(self._approximate, queries, top_k + _SPARE, kept)

    def _scored(self, query: Floats, rows: Rows, cosine: bool) -> tuple[Floats, Rows]:
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
        index = read_approximate(self.folder / APPROXIMATE)
        if index.ntotal != len(self) or index.d != self.dimension:
            raise OutputError(f"{self.folder / APPROXIMATE} belongs to another index; build the index again")
        return index


def _origins(queries: object) -> set[Origin | None]:
    """Origins of vectors, or of each of a list of them."""
    several = queries if isinstance(queries, list | tuple) and len(queries) else [queries]
    return {each.origin if isinstance(each, Embeddings) else None for each in several}


class PairScorer(Protocol):
    """A model that reads query and passage together and scores the pair, such as `FlagReranker`."""

    def compute_score(self, sentence_pairs: list[tuple[str, str]]) -> Sequence[float]:
        """One score for each pair; higher is more relevant."""
        ...


def reranked(scorer: PairScorer, queries: Sequence[str], found: Sequence[Sequence[Hit]], top_k: int) -> list[list[Hit]]:
    """The best of what was found for each query, by the scorer; of equal scores what was found first.

    Args:
        scorer: Scores the pairs, all in one call.
        queries: The queries, without instructions of the first stage.
        found: What the first stage found for each.
        top_k: How many are wanted of each.

    Raises:
        ArgumentError: the index keeps no texts.
    """
    pairs = []
    for query, hits in zip(queries, found, strict=True):
        for hit in hits:
            if hit.text is None:
                raise ArgumentError("the index keeps no texts to rerank: encode with --store-texts, or index the files")
            pairs.append((query, hit.text))
    scores = iter(scorer.compute_score(pairs) if pairs else ())
    answers = []
    for hits in found:
        scored = [replace(hit, score=float(next(scores)), retrieval_score=hit.score) for hit in hits]
        scored.sort(key=lambda hit: -hit.score)
        answers.append([replace(hit, rank=rank) for rank, hit in enumerate(scored[:top_k], 1)])
    return answers


#: Rows among which a short text is looked for, to encode it again.
_ROWS: Final = 64
#: Characters that every model takes uncut.
_SHORT: Final = 100
#: Least cosine of a text's new vector to the stored one. Number formats differ by less than 0.02, models by more.
_COSINE: Final = 0.98


def check_model(model: Embedder, facts: Facts, stored: Stored) -> None:
    """Make sure that the model makes vectors like those of the index.

    Another number format than the one the index was made in is fine (an index made on a machine that is fast in
    bfloat16 may be searched on one that is not); so are other instructions for queries. A text of the index,
    encoded again, tells them from another model.

    Raises:
        ArgumentError: it does not; the message says what differs.
    """
    if model.fingerprint == facts.model_fingerprint:
        return
    difference = _difference(model, facts, stored)
    if difference is None:
        return
    (what, advice), name = difference, facts.model_name
    if name == model.card.name:
        raise ArgumentError(
            f"the index was made with {name}, with other settings: {what}. {advice}, or build the index again"
        )
    raise ArgumentError(
        f"the index was made with {name} and cannot be searched with {model.card.name}: {what}. "
        f"Search with --model {name}, or build an index with {model.card.name}."
    )


def _difference(model: Embedder, facts: Facts, stored: Stored) -> tuple[str, str] | None:
    """What differs, and advice where the model is the same one."""
    card = model.card.to_dict()
    if model.dimension != facts.dimension:
        whole = facts.dimension == facts.model_card.get("dimension")
        return (
            f"its vectors have {facts.dimension} dimensions, the model's have {model.dimension}",
            "Leave out truncate_dim=..." if whole else f"Give truncate_dim={facts.dimension}",
        )
    for fact, argument in (("pooling", "pooling_method"), ("normalize", "normalize_embeddings"), ("similarity", "")):
        before = facts.model_card.get(fact)
        if card[fact] != before:
            advice = "Use the model as it was then"
            if fact == "normalize":
                advice = "Leave out normalize_embeddings=False" if before else "Give normalize_embeddings=False"
            elif argument:
                advice = f"Give {argument}={before}"
            return f"{fact} was {before} and is {card[fact]} now", advice
    if stored.count == 0:
        return None
    row, text = _short_text(stored)
    if not text:
        return (
            "their fingerprints differ, and the index keeps no texts to compare their vectors by",
            "Give the model's files and options as they were then",
        )
    role: str = facts.settings["kind"]
    length = min(facts.settings["max_length"], model.card.max_length)
    encoded = next(iter(model.encode_blocks([[text]], role=role, max_length=length)))
    cosine = float(unit(encoded.vectors[0]) @ unit(stored.vectors(np.asarray([row]))[0]))
    if cosine < _COSINE:
        return (
            f"a text of the index has another vector now (cosine {cosine:.3f} to the stored one)",
            _of_prompts(card, facts) or "Give the model's files as they were then",
        )
    logger.info(
        "the index was made by %s in %s and is searched by %s in %s: a text's vectors agree (cosine %.4f)",
        facts.model_name, facts.precision, model.card.name, model.precision, cosine,
    )  # fmt: skip
    return None


def _of_prompts(card: Mapping[str, Any], facts: Facts) -> str | None:
    """Advice where documents have another instruction now; None where they have the same."""
    before, now = (each.get("prompts", {}).get("document", ["", ""]) for each in (facts.model_card, card))
    if list(before) == list(now):
        return None
    if before[1]:
        return (
            f"Documents had the instruction {before[0]!r}, with {before[1]!r} behind the text: give the model with it"
        )
    return f"Give passage_instruction_for_retrieval={before[0]!r}"


def _short_text(stored: Stored) -> tuple[int, str]:
    """Row and text of the longest of the first texts that no model cuts, else of the shortest; "" without texts."""
    texts = [stored.row(row)[1] or "" for row in range(min(_ROWS, stored.count))]
    lengths = [len(text) for text in texts]
    best = max(range(len(texts)), key=lambda row: lengths[row] if lengths[row] <= _SHORT else -lengths[row])
    if not texts[best]:
        best = min((row for row in range(len(texts)) if texts[row]), key=lengths.__getitem__, default=best)
    return best, texts[best]
