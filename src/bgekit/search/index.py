"""SearchIndex: vectors with ids and texts, searched by query vectors or, with the model, by texts."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from ..data.chunking import document_of
from ..data.metadata import Metadata, plain, rows_of
from ..errors import ArgumentError, OutputError, check_count
from ..files.remote import is_url, refuse_url
from ..inference.pipeline import Embeddings, Origin
from ..inference.shard_stores import MANIFEST
from ..inference.shards import SHARD_SIZE, load_shards
from ..inference.similarity import unit
from ..models.card import UNSET, Unset
from ..models.head_files import Output
from . import words
from .approximate import Approximate, open_structure
from .bm25 import Bm25
from .copied import local_index
from .fusion import FUSION, RANK_CONSTANT, FittedWeights, read_fusion
from .lexical import TokenWeights
from .model_check import check_model
from .modes import DEPTH, Find, Mode, by_terms, by_tokens, check_mode, second_stage, together
from .modes import Part as ModePart
from .nearest import (
    QUERIES,
    UNIT_LENGTH,
    AnyBlocks,
    Floats,
    Rows,
    nearest,
    pair_scores,
)
from .parts import check_heads
from .postings import Postings
from .segments import document_hashes, documents_of
from .storage import (
    FACTS,
    Facts,
    Selected,
    Stored,
    StoredFiles,
    StoredShards,
    facts_of_shards,
    open_stored,
    read_deleted,
    read_facts,
    segments_of,
)
from .updates import Removal, UpdateReport, add_records, compact, remove_documents
from .where import Where

if TYPE_CHECKING:
    from ..data.records import Record
    from ..display.terminal import EncodeProgress
    from ..inference.model import Embedder

logger = logging.getLogger(__name__)
#: The output of a model that a mode compares.
_OUTPUTS: Final[dict[str, Output]] = {"dense": "dense", "lexical": "sparse", "multi-vector": "multi-vector"}
#: What is said of an index that lacks a part.
_LACKING: Final = {
    "bm25": "the index has no words to search by: give --parts bm25 once, which takes them from its texts (in Python "
    "index_records(..., parts=['bm25']))",
    "lexical": "the index has no lexical weights: a model with such a head, as BGE-M3, makes them of the files with "
    "--parts lexical (in Python index_records(..., parts=['lexical'])); mode 'bm25' compares words with any model",
}
#: Passages looked at first for each document wanted.
_PASSAGES_A_DOCUMENT: Final = 4
#: Vectors of a block that is mapped, and of one that is gathered, which takes memory.
_COMPARED, _GATHERED = 1 << 20, 4096
#: Share of the rows, one in so many, below which these are gathered instead of looked at among all others.
_SPARSE: Final = 3
#: Rows of a sample that lie side by side.
_RUN: Final = 4


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
        folder: Where it lies on the local disk.
        origin: Where it was opened from: the folder, or its URL.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.data import read_records
        >>> from bgekit.search import SearchIndex, index_records
        >>> model = FlagModel("BAAI/bge-small-en-v1.5")
        >>> index, report = index_records(model, read_records("corpus.jsonl"), "index")
        >>> len(SearchIndex.load("index").ask(model, ["where did the cat sit?"], top_k=3)[0])
        3
    """

    def __init__(self, folder: Path, state: _State, origin: str = "") -> None:
        self.folder, self._state = folder, state
        self.origin = origin or str(folder)
        self._checked: set[str] = set()
        self._warned = False

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SearchIndex:
        """Open an index folder, or a folder of shards of `bge encode` (searched exactly).

        One at a URL is copied to the local cache, where it stays as long as it is the same; it is not changed there.

        Raises:
            OutputError: it is neither, unfinished, or damaged.
            MissingExtraError: the index needs faiss, which is not installed.
        """
        path, origin = local_index(folder), os.fspath(folder)
        if (path / FACTS).exists():
            return cls(path, _opened(path), origin)
        if (path / MANIFEST).exists():
            shards = load_shards(path)
            return cls(path, _State(facts_of_shards(shards), StoredShards(shards)), origin)
        what = "is neither an index nor a folder of encoded shards" if path.exists() else "does not exist"
        raise OutputError(f"{path} {what}; `bge search FILE... --index DIR` makes an index")

    def refresh(self) -> bool:
        """Go on with what the index folder holds now, after documents were added or removed.

        Until then an index that is open answers from the state that it was opened in, also when that state's files are
        gone; so do searches under way in other threads. What has not changed stays open. An index of encoded shards
        never changes.

        Returns:
            Whether it has changed.

        Raises:
            OutputError: the folder is no index any more, or damaged; the index stays as it is.
        """
        if isinstance(self.stored, StoredShards):
            return False
        if is_url(self.origin):
            self.folder = local_index(self.origin)
        state = _opened(self.folder, self._state)
        if state is self._state:
            return False
        if state.facts.model_fingerprint != self.facts.model_fingerprint:
            self._checked = set()
        self._state = state
        return True

    @property
    def facts(self) -> Facts:
        """How the vectors were made, and how they are searched."""
        return self._state.facts

    @property
    def stored(self) -> Stored:
        """All rows, deleted ones included: what the numbers of rows mean."""
        return self._state.stored

    @property
    def live(self) -> Stored:
        """The rows that are not deleted, numbered anew."""
        return self.stored if self._state.live is None else Selected(self.stored, self._state.live)

    @property
    def whole_structure(self) -> Any:
        """The approximate structure over all rows where there is one and no row is deleted; else None."""
        structures = self._state.structures
        return structures[0][2] if len(structures) == 1 and self._state.deleted is None else None

    def add(
        self,
        model: Embedder,
        records: Iterable[Record],
        *,
        batch_size: int | None = None,
        shard_size: int = SHARD_SIZE,
        progress: Callable[[], EncodeProgress] | None = None,
    ) -> UpdateReport:
        """Add documents; one whose id is there replaces that document, with all its passages.

        They are split and cut as those of the index. Texts that the replaced documents had already are not encoded
        again. Records of files without an id are numbered within their file, behind its name (`more.txt#0`). A column
        of metadata that is new is null in rows that are there. Until all is written, and if it fails, the index stays
        what it was; an interrupted call with the same files goes on after the last shard that it has finished.

        Args:
            model: The model that the index was made with.
            records: The documents. Of files the columns are kept that the index keeps, and those that
                `read_records(..., keep=...)` names.
            batch_size: Maximum number of texts per batch; by default sized from the device.
            shard_size: Texts of a shard; of as many or fewer nothing is kept if their encode is interrupted.
            progress: As in `index_records`.

        Raises:
            ArgumentError: the model is another one, or the files are read otherwise than those of the index.
            DataError: a record cannot be read, or a column of metadata has another type than in the index.
            OutputError: the folder cannot be written, or another process writes to it.
        """
        refuse_url(self.origin, "an index is changed")
        report = add_records(
            self.folder, model, records, batch_size=batch_size, shard_size=shard_size, progress=progress
        )
        self.refresh()
        return report

    def remove(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: str | None = None,
        ignore_missing: bool = False,
        dry_run: bool = False,
    ) -> Removal:
        """Remove documents, with all their passages, by their ids or by a condition on metadata.

        They are not found any more; the space they take is free again after `compact`, or when `add` writes the part
        of the index again that they lie in.

        Args:
            ids: Ids of documents.
            where: Condition on metadata, as in `ask`.
            ignore_missing: Remove the others where an id is not there; otherwise nothing is removed.
            dry_run: Remove nothing, and say what would be removed.

        Raises:
            ArgumentError: both are given or neither, or the condition has no meaning for the metadata.
            DataError: an id is not there.
            OutputError: the folder cannot be written, or another process writes to it.
        """
        refuse_url(self.origin, "an index is changed")
        removal = remove_documents(self.folder, ids, where=where, ignore_missing=ignore_missing, dry_run=dry_run)
        self.refresh()
        return removal

    def compact(self) -> UpdateReport:
        """Write the index anew without what was removed, as one segment; nothing is encoded.

        Takes as much space beside the index as it has, until it is done.

        Raises:
            OutputError: the folder cannot be written, or another process writes to it.
        """
        refuse_url(self.origin, "an index is changed")
        report = compact(self.folder)
        self.refresh()
        return report

    @property
    def documents(self) -> int:
        """Documents: texts, or where these were split into passages, what was split."""
        if isinstance(self.stored, StoredShards):
            return len(documents_of(self.stored.lines(), chunked=self.facts.chunked))
        found, first = list[npt.NDArray[np.uint64]](), 0
        for part in segments_of(self.stored):
            hashes, rows = document_hashes(part, chunked=self.facts.chunked)
            deleted = self._state.deleted
            found.append(hashes if deleted is None else hashes[~deleted[first + rows.astype(np.int64)]])
            first += part.count
        return len(np.unique(np.concatenate(found)))

    def describe(self) -> dict[str, Any]:
        """What the index holds and how it was made, as values that JSON takes: what `bge index info --json` prints."""
        facts, settings = self.facts, self.facts.settings
        size = 0
        for place, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):  # Gone meanwhile.
                    size += os.path.getsize(os.path.join(place, name))
        return {
            "rows": len(self),
            "documents": self.documents,
            "deleted": self.stored.count - len(self),
            "segments": max(len(facts.segments), 1),
            "generation": facts.generation,
            "bytes": size,
            "index_type": facts.index_type,
            "parts": ["dense", *(facts.parts or {})],
            "measured": self._measured(),
            "dimension": facts.dimension,
            "model": facts.model_name,
            "similarity": facts.similarity,
            "precision": facts.precision,
            "max_length": settings["max_length"],
            "chunk_size": settings.get("chunk_size"),
            "chunk_overlap": settings.get("chunk_overlap"),
            "texts": settings["store_texts"],
            "columns": (facts.metadata or {}).get("columns", {}),
        }

    def _measured(self) -> dict[str, Any] | None:
        """What was measured of the largest segment that is searched approximately; None without one."""
        tuned = [(count, each.tuning) for _, count, each in self._state.structures if each is not None and each.tuning]
        return max(tuned, key=lambda each: each[0])[1].to_dict() if tuned else None

    def __len__(self) -> int:
        """Vectors, deleted ones left out; with documents split into passages, of passages."""
        return self.facts.count

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.facts.dimension

    @property
    def metadata(self) -> Any:
        """Columns that were kept, as a pyarrow table with a row per vector; None without.

        Mapped into memory; where documents were removed since the index was compacted, the others are copied.
        """
        if self._state.metadata is None:
            self._state.metadata = self.live.metadata
        return self._state.metadata

    def ask(
        self,
        model: Embedder | None,
        queries: Sequence[str],
        top_k: int = 10,
        *,
        mode: Mode = "dense",
        where: str | None = None,
        instruction: str | Unset | None = UNSET,
        reranker: PairScorer | None = None,
        rerank_top_k: int = 100,
    ) -> list[list[Hit]]:
        """Hits of each query, best first.

        Args:
            model: The model that the index was made with; `bm25` needs none.
            queries: Texts; they get the model's query instruction.
            top_k: Documents wanted for each.
            mode: What they are compared by: `dense` by vectors, `lexical` by the weights that the model gives to
                tokens, `bm25` by words, `multi-vector` by a vector of each token, among the nearest by `dense`,
                `hybrid` by all that the index has, put together by its fitted weights, or by reciprocal ranks where it
                has none.
            where: Condition on metadata that what is found must meet, such as "year >= 2020 and lang = 'en'".
            instruction: Put before queries instead; None or "" for none.
            reranker: Puts the first `rerank_top_k` in its own order; scores are then its scores.
            rerank_top_k: Documents a query that the reranker sees, at least `top_k`.

        Raises:
            ArgumentError: the index was made with another model, keeps no texts to rerank, lacks what the mode
                compares, has weights of another model, or the condition has no meaning for its metadata.
        """
        check_count("rerank_top_k", rerank_top_k, "documents")
        check_mode(mode)
        now = copy.copy(self)  # Which no refresh() changes meanwhile.
        kept, asked = now._kept(where), list(queries)
        find = now._finding(model, asked, mode, None if where is None else kept, instruction)
        wanted = top_k if reranker is None else max(top_k, rerank_top_k)
        found = now._found(len(asked), wanted, kept, find)
        return found if reranker is None else reranked(reranker, asked, found, top_k)

    def check_mode(self, mode: str) -> None:
        """See to it that the index has what a mode compares.

        Raises:
            ArgumentError: there is no such mode, or it lacks that.
        """
        check_mode(mode)
        if mode == "hybrid":
            self._hybrid(None)
        elif mode in ("lexical", "bm25") and mode not in (self.facts.parts or {}):
            raise ArgumentError(_LACKING[mode])

    def outputs_of(self, mode: Mode) -> tuple[Output, ...]:
        """What a model computes of questions for a mode: nothing for `bm25`.

        Raises:
            ArgumentError: as `check_mode`.
        """
        self.check_mode(mode)
        names, _ = self._parts_of(mode, None)
        return tuple(output for name, output in _OUTPUTS.items() if name in names)

    def how(self, mode: Mode, model: Embedder | None = None) -> str:
        """How a mode of search compares questions with texts, in words: what `bge search` says once.

        Args:
            mode: As in `ask`.
            model: The model that will be asked with; weights must be of it.

        Raises:
            ArgumentError: as `ask`.
        """
        check_mode(mode)
        if mode != "hybrid":
            stored = "multi-vector" in (self.facts.parts or {})
            return {
                "dense": "by meaning (dense)",
                "lexical": "by the weights that the model gives to tokens (lexical)",
                "bm25": "by words (bm25)",
                "multi-vector": f"token by token (multi-vector) among the nearest {self._second()} by dense"
                + ("" if stored else ", whose texts are encoded now, as the index has no part multi-vector"),
            }[mode]
        names, fitted = self._hybrid(model)
        if fitted is None:
            way = f"reciprocal ranks (k = {RANK_CONSTANT}), as the index has no fitted weights"
        else:
            way = "weights " + ", ".join(f"{name} {fitted.weights.get(name, 0):.2f}" for name in names)
            way += f", fitted on {fitted.data}"
        return f"hybrid of {', '.join(names[:-1])} and {names[-1]} by {way}"

    def _second(self) -> int:
        """Rows that are compared token by token at least, fewer where their texts have to be encoded first."""
        return 2 * DEPTH if "multi-vector" in (self.facts.parts or {}) else DEPTH

    def _parts_of(self, mode: Mode, model: Embedder | None) -> tuple[list[str], FittedWeights | None]:
        """The modes that a mode is made of, and the weights of these, where there are any."""
        if mode == "hybrid":
            return self._hybrid(model)
        return ["dense", mode] if mode == "multi-vector" else [mode], None

    def _hybrid(self, model: Embedder | None) -> tuple[list[str], FittedWeights | None]:
        """The modes that a hybrid search puts together, and the weights that the index has for them.

        Raises:
            ArgumentError: there is but one mode, or the weights are of another model or of modes that there are not.
        """
        names = ["dense", *(self.facts.parts or {})]
        if len(names) == 1:
            raise ArgumentError(
                "the index has vectors alone, and hybrid puts several modes together: give --parts bm25 once, which "
                "adds the words of its texts (in Python index_records(..., parts=['bm25']))"
            )
        fitted = None if isinstance(self.stored, StoredShards) else read_fusion(self.folder)
        if fitted is not None:
            if model is not None:
                fitted.check_model(model, str(self.folder / FUSION))
            lacking = [name for name, weight in fitted.weights.items() if weight and name not in names]
            if lacking:
                raise ArgumentError(
                    f"{self.folder / FUSION} has weights of {', '.join(lacking)}, which the index lacks: fit them anew "
                    "with bge calibrate --hybrid, or remove the file"
                )
        return names, fitted

    def _finding(
        self, model: Embedder | None, queries: list[str], mode: Mode, kept: Rows | None, instruction: Any
    ) -> Find:
        """What finds rows for questions in a mode."""
        names, fitted = self._parts_of(mode, model)
        if model is None and names != ["bm25"]:
            raise ArgumentError(f"mode {mode!r} needs the model that the index was made with")
        parts = self._parts(model, queries, names, kept, instruction)
        if mode == "multi-vector":
            return second_stage(cast(Find, parts["dense"].find), parts[mode], self._second())
        if mode != "hybrid":
            return cast(Find, parts[mode].find)
        return together({name: parts[name] for name in names}, None if fitted is None else fitted.weights)

    def parts(
        self, model: Embedder, queries: Sequence[str], *, instruction: str | Unset | None = UNSET
    ) -> dict[str, ModePart]:
        """What finds and scores rows for questions in each mode that the index has: what a hybrid search puts together.

        Args:
            model: The model that the index was made with.
            queries: The questions.
            instruction: As in `ask`.

        Raises:
            ArgumentError: the index was made with another model.
        """
        now = copy.copy(self)
        return now._parts(model, list(queries), ["dense", *(now.facts.parts or {})], None, instruction)

    def _parts(
        self, model: Embedder | None, queries: list[str], names: Sequence[str], kept: Rows | None, instruction: Any
    ) -> dict[str, ModePart]:
        """Modes by their names; only words can be compared without a model."""
        parts = dict[str, ModePart]()
        if "bm25" in names:
            bm25 = self._state.words()
            parts["bm25"] = by_terms(lambda query: bm25.of_rows(queries[query]), kept)
        if model is not None and [*names] != ["bm25"]:
            parts |= self._by_model(model, queries, names, kept, instruction)
        return parts

    def _by_model(
        self, model: Embedder, queries: list[str], names: Sequence[str], kept: Rows | None, instruction: Any
    ) -> dict[str, ModePart]:
        """The modes that compare what a model computes of questions, all from one pass."""
        self.check_model(model)
        outputs = [output for name, output in _OUTPUTS.items() if name in names]
        self._check_heads(model, names)
        if outputs == ["dense"]:
            vectors: Any = model.encode_queries(queries, convert_to_numpy=True, instruction=instruction)
        else:
            encoded = model.encode_outputs(
                queries, outputs, role="query", instruction=instruction, show_progress=False
            )  # fmt: skip
            vectors = encoded.vectors
        parts = dict[str, ModePart]()
        if "dense" in names:
            parts["dense"] = self._dense(self._as_queries(vectors), self._state.live if kept is None else kept)
        if "lexical" in names:
            tokens, weights = self._state.tokens(), encoded.ragged["sparse"]
            parts["lexical"] = by_terms(lambda query: tokens.of_rows(weights[query]), kept)
        if "multi-vector" in names:
            parts["multi-vector"] = by_tokens(encoded.ragged["multi-vector"], partial(self._token_vectors, model))
        return parts

    def _check_heads(self, model: Embedder, names: Sequence[str]) -> None:
        """See to it that a model has what modes compare, and that the index has it of the same heads."""
        for name in names:
            output, known = _OUTPUTS.get(name), (self.facts.parts or {}).get(name)
            if output is None or output == "dense":
                continue
            check_heads(model, [name])
            if known is None and name == "lexical":
                raise ArgumentError(_LACKING[name])
            same = model.fingerprint == self.facts.model_fingerprint
            if known is not None and same and model.output_fingerprint(output) != known["head"]:
                raise ArgumentError(
                    f"the part {name} of the index was made with another head than {model.card.name} has now: build "
                    "the index again"
                )

    def _token_vectors(self, model: Embedder, rows: Rows) -> Sequence[npt.NDArray[Any]]:
        """Vectors of the tokens of rows, stored or computed now."""
        if "multi-vector" in (self.facts.parts or {}):
            return list(self.stored.part_at("multi-vector", rows))
        texts = [text for _, text in self.stored.rows_at(rows)]
        if None in texts:
            raise ArgumentError(
                "the index has neither the part multi-vector nor texts to encode: encode with --store-texts, or index "
                "the files"
            )
        length = min(self.facts.settings["max_length"], model.card.max_length)
        wanted: tuple[Output, ...] = ("multi-vector",)
        encoded = model.encode_outputs(
            cast("list[str]", texts), wanted, role="document", max_length=length, show_progress=False
        )  # fmt: skip
        return encoded.ragged["multi-vector"]

    def _dense(self, vectors: Floats, kept: Rows | None) -> ModePart:
        """Vectors of questions compared with those of rows that may be found."""
        cosine = self.facts.similarity == "cosine"

        def score(query: int, rows: Rows) -> npt.NDArray[np.float64]:
            own = vectors[[query]]
            return self._scores(unit(own)[0] if cosine else own[0], rows, cosine).astype(np.float64)

        return ModePart(lambda chosen, k: self._nearest(vectors[chosen], k, kept), score)

    def search(
        self,
        queries: npt.ArrayLike,
        top_k: int = 10,
        *,
        mode: Mode = "dense",
        where: str | None = None,
        model: Embedder | None = None,
    ) -> list[list[Hit]]:
        """Nearest rows of each query vector, best first; of equal scores the earlier in the index.

        Only vectors of the index's own model can be compared with its vectors. Those that `encode` returned know their
        model; of others nobody can tell, so there is a warning once.

        Args:
            queries: Vectors [n, dimension], or one [dimension]; in other modes than `dense` texts, as for `ask`.
            top_k: Documents wanted for each; there are fewer when the index has fewer.
            mode: As in `ask`.
            where: Condition on metadata, as in `ask`. What is found is the nearest of all rows that meet it.
            model: The model that made them: it is checked as by `ask`, and there is no warning.

        Raises:
            ArgumentError: the vectors, or the model, are of another model than the index, the condition has no
                meaning for its metadata, or it is as for `ask`.
        """
        check_mode(mode)
        if mode != "dense":
            if isinstance(queries, str) or not all(isinstance(each, str) for each in cast(Any, queries)):
                raise ArgumentError(f"mode {mode!r} compares texts: give a list of these instead of vectors")
            return self.ask(model, cast("Sequence[str]", queries), top_k, mode=mode, where=where)
        self._check_vectors(queries, model)
        now = copy.copy(self)
        kept, vectors = now._kept(where), self._as_queries(queries)
        return now._found(len(vectors), top_k, kept, cast(Find, now._dense(vectors, kept).find))

    def nearest(
        self, vectors: npt.ArrayLike, k: int, where: str | None = None, *, model: Embedder | None = None
    ) -> tuple[Floats, Rows]:
        """Scores and rows of the nearest stored vectors of each query vector, best first; `search` makes hits of them.

        Rows are numbered from 0 through the whole index as it is now, as those of `metadata` are: `add` and `remove`
        change the numbers. With documents split into passages, each passage is a row.
        Of equal scores the earlier row comes first. Where fewer than `k` rows can be found, the rest of a line is
        filled as faiss fills it, with row -1, and with the score -inf.

        Args:
            vectors: Query vectors [n, dimension], or one [dimension].
            k: Rows wanted of each.
            where: Condition on metadata, as in `ask`.
            model: The model that made the query vectors, as in `search`.

        Returns:
            Scores [n, k] float32, cosines or dot products as `search` gives them, and rows [n, k] int64.

        Raises:
            ArgumentError: as `search`.

        Example:
            >>> from bgekit import FlagModel
            >>> from bgekit.data import read_records
            >>> from bgekit.search import index_records
            >>> model = FlagModel("BAAI/bge-small-en-v1.5")
            >>> index, report = index_records(model, read_records("corpus.jsonl"), "index")
            >>> scores, rows = index.nearest(model.encode_queries(["where did the cat sit?"]), k=3)
            >>> scores.shape, rows.shape
            ((1, 3), (1, 3))
        """
        self._check_vectors(vectors, model)
        queries = self._as_queries(vectors)
        check_count("k", k, "rows")
        now = copy.copy(self)
        kept = now._kept(where)
        step = _at_once(k)
        found = [now._nearest(queries[first : first + step], k, kept) for first in range(0, len(queries), step)]
        if len(found) == 1:
            return found[0][0], now._numbers(found[0][1])
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for first, (own, there) in zip(range(0, len(queries), step), found, strict=True):
            scores[first : first + step], rows[first : first + step] = own, now._numbers(there)
        return scores, rows

    def rows_where(self, where: str) -> Rows:
        """The rows that meet a condition on metadata, in order, numbered as by `nearest`.

        Raises:
            ArgumentError: it is not written as conditions are, or has no meaning for the metadata of the index.
        """
        now = copy.copy(self)
        return now._numbers(now._meeting(where))

    def _meeting(self, where: str) -> Rows:
        """The rows that are stored, not deleted, and meet a condition, in order."""
        state = self._state
        last = state.last
        if last is None or last[0] != where:
            meeting = Where(where).rows_in(self.folder, state.stored.metadata)
            state.last = last = where, np.flatnonzero(meeting if state.deleted is None else meeting & ~state.deleted)
        return last[1]

    def _kept(self, where: str | None) -> Rows | None:
        """The rows that may be found; None for all."""
        return self._state.live if where is None else self._meeting(where)

    def _numbers(self, rows: Rows) -> Rows:
        """Numbers, among those that are not deleted, of rows that are stored; -1 is no row."""
        live = self._state.live
        return rows if live is None else np.where(rows < 0, rows, np.searchsorted(live, rows))

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

    def _check_vectors(self, vectors: npt.ArrayLike, model: Embedder | None) -> None:
        if model is not None:
            self.check_model(model)
        for origin in _origins(vectors):
            self._check_origin(origin, model)

    def _as_queries(self, queries: npt.ArrayLike) -> Floats:
        vectors = np.atleast_2d(np.asarray(queries, dtype=np.float32))
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ArgumentError(
                f"query vectors must have {self.dimension} dimensions, these have the shape {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise ArgumentError("a query vector has NaN or infinity")
        return vectors

    def _found(self, count: int, top_k: int, kept: Rows | None, find: Find) -> list[list[Hit]]:
        """Hits of so many questions."""
        check_count("top_k", top_k, "documents")
        found: list[list[Hit]] = []
        step = _at_once(top_k)
        for first in range(0, count, step):
            part = range(first, min(first + step, count))
            found += self._documents(part, top_k, kept, find) if self.facts.chunked else self._rows(part, top_k, find)
        return found

    def _rows(self, questions: Sequence[int], top_k: int, find: Find) -> list[list[Hit]]:
        scores, rows = find(questions, top_k)
        known = self._known(rows)
        metadata = self._metadata_of(known)
        return [
            [
                Hit(rank, score, *known[row], metadata=dict(metadata.get(row, ())))
                for rank, (score, row) in enumerate(zip(own, there, strict=True), 1)
                if row >= 0
            ]
            for own, there in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def _documents(self, questions: Sequence[int], top_k: int, kept: Rows | None, find: Find) -> list[list[Hit]]:
        """Documents by their best passage: the first of each in the order of passages."""
        answers: dict[int, list[Hit]] = {}
        still_open = list(questions)
        depth, most = _PASSAGES_A_DOCUMENT * top_k, self.stored.count if kept is None else len(kept)
        while still_open:
            scores, rows = find(still_open, min(depth, most))
            known = self._known(rows)
            best = [
                self._best_passages(own, there, known, top_k)
                for own, there in zip(scores.tolist(), rows.tolist(), strict=True)
            ]
            metadata = self._metadata_of(dict.fromkeys(row for passages in best for row in passages))
            for query, passages in zip(still_open, best, strict=True):
                answers[query] = [replace(hit, metadata=dict(metadata.get(row, ()))) for row, hit in passages.items()]
            # One long document can have all the passages looked at: look at more.
            still_open = [
                query
                for query, there in zip(still_open, rows, strict=True)
                if len(answers[query]) < top_k and depth < most and (there >= 0).all()
            ]
            depth *= 4
        return [answers[query] for query in questions]

    def _best_passages(
        self, scores: list[float], rows: list[int], known: Mapping[int, tuple[str, str | None]], top_k: int
    ) -> dict[int, Hit]:
        """Hits by their rows, without metadata."""
        hits: dict[int, Hit] = {}
        documents: set[str] = set()
        for score, row in zip(scores, rows, strict=True):
            if row < 0 or len(hits) == top_k:
                break
            name, text = known[row]
            document, number = document_of(name)
            if document not in documents:
                documents.add(document)
                hits[row] = Hit(len(hits) + 1, score, document, text, number)
        return hits

    def _known(self, rows: Rows) -> dict[int, tuple[str, str | None]]:
        """Ids and texts of rows, each of which is read once; -1 is no row."""
        some = np.unique(rows)
        some = some[some >= 0]
        return dict(zip(some.tolist(), self.stored.rows_at(some), strict=True))

    def _metadata_of(self, rows: Iterable[int]) -> dict[int, Metadata]:
        """The metadata of rows; none without metadata."""
        metadata = self.stored.metadata
        if metadata is None:
            return {}
        some = list(rows)
        return dict(zip(some, rows_of(metadata, some), strict=True))

    def _nearest(self, queries: Floats, top_k: int, kept: Rows | None) -> tuple[Floats, Rows]:
        """Scores and rows [queries, top_k], best first, filled with -inf and -1 where there are fewer rows."""
        cosine = self.facts.similarity == "cosine"
        kept = None if kept is not None and len(kept) == self.stored.count else kept
        wanted = min(top_k, self.stored.count if kept is None else len(kept))
        scores = np.full((len(queries), top_k), -np.inf, np.float32)
        rows = np.full((len(queries), top_k), -1, np.int64)
        if wanted == 0:
            return scores, rows
        queries = unit(queries) if cosine else queries
        # All queries of an exact index; of others those whose cells or whose graph did not lead to enough, or to copies
        # of the last text so many that there may be earlier ones among those left out.
        few = []
        for query, found in enumerate(self._candidates(queries, wanted, kept)):
            if len(found) >= wanted:
                own, there = self._scored(queries[query], found, cosine)
                scores[query, :wanted], rows[query, :wanted] = own[:wanted], there[:wanted]
            if len(found) < wanted or own[wanted - 1] == own[-1]:
                few.append(query)
        if few:
            scores[few, :wanted], rows[few, :wanted] = self._compared(queries[few], wanted, kept, cosine)
        return scores, rows

    def _compared(self, queries: Floats, top_k: int, kept: Rows | None, cosine: bool) -> tuple[Floats, Rows]:
        """Scores and rows [queries, top_k] of the nearest of all rows, or of those kept: every one is looked at."""
        stored, count = self.stored, self.stored.count if kept is None else len(kept)

        def gathered(rows: Rows) -> AnyBlocks:
            for first in range(0, len(rows), _GATHERED):
                part = rows[first : first + _GATHERED]
                yield part, partial(stored.vectors, part)

        def blocks() -> AnyBlocks:
            if kept is None:
                yield from stored.blocks(_COMPARED)
            elif count * _SPARSE < stored.count:
                yield from gathered(kept)
            else:
                # To look at the others, too, takes less time than to gather these.
                for first, block in stored.blocks(_COMPARED):
                    begin, end = np.searchsorted(kept, (first, first + len(block)))
                    rows = np.full(len(block), -1, dtype=np.int64)
                    rows[kept[begin:end] - first] = kept[begin:end]
                    yield rows, block

        def sample(size: int) -> AnyBlocks:
            # Some rows side by side, so that a cold disk is read at fewer places.
            firsts = np.linspace(0, count - _RUN, size // _RUN).astype(np.int64)
            some = (firsts[:, None] + np.arange(_RUN)).ravel()
            return gathered(some if kept is None else kept[some])

        # Of unit vectors the dot product is the cosine: no need to measure the length of every one again.
        units = self.facts.unit_vectors
        return nearest(
            queries, blocks, top_k, cosine=cosine and not units, longest=UNIT_LENGTH if units else None,
            count=count, sample=sample,
        )  # fmt: skip

    def _candidates(self, queries: Floats, top_k: int, kept: Rows | None) -> list[Rows]:
        """Rows that approximate structures find, some more than wanted, and those of segments that have none.

        None without one, or where looking at every vector is no more work.
        """
        none = [np.empty(0, np.int64) for _ in queries]
        if all(structure is None for _, _, structure in self._state.structures):
            return none
        found = [[each] for each in none]
        row_bytes = 4 * self.dimension
        total = self.stored.count if kept is None else len(kept)
        asked, looked_at = [], 0
        for (first, count, structure), inside in zip(self._state.structures, self._state.inside(kept), strict=True):
            rows = count if inside is None else int(np.count_nonzero(inside))
            if structure is not None and structure.worthwhile(min(top_k, rows), rows, row_bytes):
                asked.append((first, structure, inside))
                continue
            looked_at += rows
            if looked_at * 2 > total:
                return none  # One pass over all that may be found looks at these as well.
            every = np.arange(count) if inside is None else np.flatnonzero(inside)
            for each in found:
                each.append(first + every)
        for first, structure, inside in asked:
            for each, some in zip(found, structure.candidates(queries, top_k, inside), strict=True):
                each.append(first + some)
        return [np.concatenate(each) for each in found]

    def _scored(self, query: Floats, rows: Rows, cosine: bool) -> tuple[Floats, Rows]:
        """Rows in the order of their scores, computed one by one, for a query of length 1 if scores are cosines.

        A matrix product rounds a row's score differently depending on its place in a block, so that equal texts
        could come out unequal; like this, scores depend on the two vectors alone, whatever the type of index.
        """
        scores = self._scores(query, rows, cosine)
        order = np.lexsort((rows, -scores))
        return scores[order], rows[order]

    def _scores(self, query: Floats, rows: Rows, cosine: bool) -> Floats:
        vectors, one = self.stored.vectors(rows), np.zeros(len(rows), dtype=np.int64)
        return pair_scores(query[None].astype(np.float64), one, vectors, np.arange(len(rows)), cosine=cosine)


@dataclass
class _State:
    """What index.json said when it was read, and the files that it names, open.

    Attributes:
        facts: What it said.
        stored: The rows.
        deleted: Whether each row is deleted; None where none is.
        live: The rows that are not; None for all.
        structures: First row, number of rows and approximate structure of each segment; None for none.
        last: The last condition, and the rows that met it.
        marked: The last rows that were marked, and their marks in each segment.
        metadata: The columns of rows that are not deleted, once they were asked for.
        bm25: Over the words of all rows, once it was asked for.
        lexical: The same over tokens.
    """

    facts: Facts
    stored: Stored
    deleted: npt.NDArray[np.bool_] | None = None
    live: Rows | None = None
    structures: list[tuple[int, int, Approximate | None]] = field(default_factory=list)
    last: tuple[str, Rows] | None = None
    metadata: Any = None
    marked: tuple[Rows, list[npt.NDArray[np.bool_] | None]] | None = None
    bm25: Bm25 | None = None
    lexical: TokenWeights | None = None

    def words(self) -> Bm25:
        """The words of the rows that are not deleted.

        Raises:
            ArgumentError: the index lacks the part.
            OutputError: its words were taken otherwise than those of questions would be.
        """
        if self.bm25 is None:
            known = (self.facts.parts or {}).get("bm25")
            if known is None:
                raise ArgumentError(_LACKING["bm25"])
            if known["words"] != words.VERSION:
                raise OutputError("the words of the index were taken by another version of bgekit: build it again")
            lengths = [part.parts.lengths for part in segments_of(self.stored)]
            self.bm25 = Bm25(self._postings("bm25"), np.concatenate(lengths), self.deleted)
        return self.bm25

    def tokens(self) -> TokenWeights:
        """The tokens of the rows that are not deleted, with their weights."""
        if self.lexical is None:
            self.lexical = TokenWeights(self._postings("lexical"), self.stored.count, self.deleted)
        return self.lexical

    def _postings(self, name: str) -> list[tuple[int, Postings]]:
        parts = segments_of(self.stored)
        firsts = itertools.accumulate((part.count for part in parts), initial=0)
        return [(first, part.parts.postings[name]) for first, part in zip(firsts, parts, strict=False)]

    def inside(self, kept: Rows | None) -> list[npt.NDArray[np.bool_] | None]:
        """Whether each row of each segment is among some rows; None where all of a segment are, or all are wanted."""
        if kept is None:
            return [None] * len(self.structures)
        marked = self.marked
        if marked is None or marked[0] is not kept:
            marks: list[npt.NDArray[np.bool_] | None] = []
            for first, count, _ in self.structures:
                begin, end = np.searchsorted(kept, (first, first + count))
                marks.append(None if end - begin == count else np.zeros(count, dtype=np.bool_))
                if marks[-1] is not None:
                    marks[-1][kept[begin:end] - first] = True
            self.marked = marked = kept, marks
        return marked[1]


#: Times that an index is read again because a change was made meanwhile.
_ATTEMPTS: Final = 100


def _opened(path: Path, before: _State | None = None) -> _State:
    """The present state of an index folder; `before` itself if that is still it.

    Whoever changes an index removes the files of the state before, so one of them may be gone when it is opened: then
    there is a new index.json.
    """
    for _ in range(_ATTEMPTS):
        facts = read_facts(path)
        if before is not None and before.facts == facts:
            return before
        try:
            return _open_state(path, facts, before)
        except OutputError:
            if read_facts(path) == facts:
                raise
    raise OutputError(f"{path} changes faster than it can be opened: try again")


def _open_state(path: Path, facts: Facts, before: _State | None) -> _State:
    known: dict[str, StoredFiles] = {}
    structures: dict[str, Any] = {}
    if before is not None and before.facts.dimension == facts.dimension:
        opened = zip(before.facts.segments, segments_of(before.stored), before.structures, strict=True)
        for segment, part, (_, _, structure) in opened:
            if segment in facts.segments and part.is_current():
                known[segment.folder], structures[segment.folder] = part, structure
    stored = open_stored(path, facts, known)
    deleted = read_deleted(path, facts)
    found, first = list[tuple[int, int, Any]](), 0
    for segment in facts.segments:
        structure = structures.get(segment.folder)
        if structure is None and segment.structure is not None:
            # What is missing or damaged shows now.
            structure = open_structure(path / segment.folder, segment.structure, segment.count, facts.dimension)
        found.append((first, segment.count, structure))
        first += segment.count
    return _State(facts, stored, deleted, None if deleted is None else np.flatnonzero(~deleted), found)


def _at_once(top_k: int) -> int:
    """Queries that are compared at once: the fewer, the more rows of each are wanted, as these take memory."""
    return max(64, QUERIES * 1000 // max(top_k, 1000 // 8))


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
