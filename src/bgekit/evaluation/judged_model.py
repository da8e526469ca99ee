"""The model under evaluation in a setting: with an instruction or without, at a dimension, in a mode of search..."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..display.terminal import EncodeProgress, titled
from ..errors import ArgumentError, check_count
from ..files.hashing import digest
from ..inference.shard_stores import MANIFEST, read_manifest
from ..inference.shards import EncodeShards, encode_for_now, load_shards
from ..inference.similarity import paired_similarity, unit
from ..models.card import UNSET, ModelCard, Role, Unset
from ..search.bm25 import DESCRIPTION as BM25
from ..search.modes import Mode, check_mode
from ..search.parts import check_heads, outputs_of
from ..search.storage import StoredShards

if TYPE_CHECKING:
    from ..data.records import Record
    from ..inference.model import Embedder
    from ..inference.ragged import Ragged
    from ..search.fusion import FittedWeights
    from ..search.index import PairScorer

T = TypeVar("T")

Kind: TypeAlias = Literal[
    "retrieval", "reranking", "sts", "pair_classification", "classification", "clustering", "bitext", "summarization"
]
Floats: TypeAlias = npt.NDArray[np.float32]
#: Names of the kinds of task in MTEB, which checkpoints use for prompts of their own.
MTEB_NAMES: Final = {
    "retrieval": "Retrieval", "reranking": "Reranking", "sts": "STS", "pair_classification": "PairClassification",
    "classification": "Classification", "clustering": "Clustering", "bitext": "BitextMining",
    "summarization": "Summarization",
}  # fmt: skip
#: Names of the kinds of task in reports.
TITLES: Final[Mapping[str, str]] = {
    "retrieval": "Retrieval", "reranking": "Reranking", "sts": "STS", "pair_classification": "Pair classification",
    "classification": "Classification", "clustering": "Clustering", "bitext": "Bitext mining",
    "summarization": "Summarisation",
}  # fmt: skip
#: What the items of a task are called in reports, by its kind.
ITEMS: Final[Mapping[str, str]] = {
    "retrieval": "queries", "reranking": "queries", "sts": "pairs", "pair_classification": "pairs",
    "classification": "texts", "clustering": "problems", "bitext": "pairs", "summarization": "texts",
}  # fmt: skip
#: Tasks whose queries are texts of the same kind as the documents: the authors of BGE give the instruction of the
#: English models to no query of theirs (FlagEmbedding, C_MTEB/eval_MTEB.py).
_ALIKE: Final = frozenset({
    "ArguAna", "QuoraRetrieval", "AskUbuntuDupQuestions", "MindSmallReranking", "SciDocsRR", "StackOverflowDupQuestions"
})  # fmt: skip
_ENGLISH_BGE: Final = frozenset({"BGE v1, English", "BGE v1.5, English"})
#: What bars say of the sides of a task.
_SIDES: Final = {"query": "queries", "document": "documents", "plain": "texts", "rerank": "reranking"}
#: Vectors compared at once.
_BLOCK: Final = 16_384


@dataclass(frozen=True)
class Setting:
    """Use of a model: instruction, dimension, mode of search, reranker. What is left out is as its card says.

    Attributes:
        instruction: Before queries instead of the card's; None or "" for none.
        dimension: Vectors are cut to this many dimensions (and normalised again where the model normalises).
        reranker: Puts the best `rerank_top_k` passages of a retrieval, and those of reranking tasks, in a new order;
            other tasks are not measured in this setting.
        reranker_name: As shown; it also tells rerankers apart in the cache, so it should name one model.
        rerank_top_k: Passages a query that the reranker sees, at least 1.
        mode: What a retrieval compares queries and documents by: `dense`, `bm25` (which needs no model: any gives the
            same), `lexical` and `multi-vector` (of models with such heads), or `hybrid`; other tasks are measured in
            `dense` alone.
        fused: The modes that `hybrid` puts together.
        weights: Fitted weights of these; by default they are fitted on four fifths of the task's queries and scored on
            the fifth that is left, five times.

    Raises:
        ArgumentError: a reranker has no name, or no passage to see; or there is no such mode, or nothing to fuse.

    Example:
        >>> from bgekit.evaluation import Setting, evaluate
        >>> settings = [Setting(), Setting(instruction=None), Setting(dimension=128)]
        >>> report = evaluate("BAAI/bge-small-en-v1.5", "scifact", settings=settings, progress=False)
        >>> len(report.results)
        3
    """

    instruction: str | Unset | None = UNSET
    dimension: int | None = None
    reranker: PairScorer | None = None
    reranker_name: str = ""
    rerank_top_k: int = 100
    mode: Mode = "dense"
    fused: tuple[Mode, ...] = ("dense", "bm25")
    weights: FittedWeights | None = None

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.mode == "hybrid":
            for mode in self.fused:
                check_mode(mode)
            if len({*self.fused}) != len(self.fused) or len(self.fused) < 2 or "hybrid" in self.fused:
                raise ArgumentError(f"hybrid puts two or more different modes together, not {', '.join(self.fused)}")
            weighed = [] if self.weights is None else [name for name, each in self.weights.weights.items() if each]
            if others := [name for name in weighed if name not in self.fused]:
                raise ArgumentError(
                    f"the weights are of {', '.join(others)}, too, and what is fused is {', '.join(self.fused)}"
                )
        elif self.weights is not None:
            raise ArgumentError("weights go with mode='hybrid'")
        if self.reranker is not None and not self.reranker_name:
            raise ArgumentError("give the reranker a name (reranker_name): results are cached by it")
        check_count("rerank_top_k", self.rerank_top_k, "passages")

    def to_dict(self) -> dict[str, Any]:
        """Fields that differ from the model's defaults, as plain values."""
        content: dict[str, Any] = {}
        if not isinstance(self.instruction, Unset) and self.of_model:
            content["instruction"] = self.instruction or None
        if self.dimension is not None and self.of_model:
            content["dimension"] = self.dimension
        if self.mode != "dense":
            content["mode"] = self.mode
        if self.mode == "hybrid":
            content["fused"] = list(self.fused)
            content["weights"] = "cross-fitted" if self.weights is None else dict(self.weights.weights)
        if self.reranker is not None:
            content |= {"reranker": self.reranker_name, "rerank_top_k": self.rerank_top_k}
        return content

    @property
    def modes(self) -> set[Mode]:
        """The modes that take part."""
        return {*self.fused} if self.mode == "hybrid" else {self.mode}

    @property
    def of_model(self) -> bool:
        """Whether the embedder has a part in the scores."""
        return self.mode != "bm25"

    def __str__(self) -> str:
        parts: list[str] = [self.mode] if self.mode != "dense" else []
        if not isinstance(self.instruction, Unset) and self.of_model:
            parts.append(f"instruction {self.instruction!r}" if self.instruction else "no instruction")
        if self.dimension is not None and self.of_model:
            parts.append(f"{self.dimension} dimensions")
        if self.reranker is not None:
            parts.append(f"reranked by {self.reranker_name}")
        return ", ".join(parts)


def role_of(card: ModelCard, kind: Kind, task: str, side: Role) -> str | None:
    """The role of `card.prompts` whose prompt a text gets in a task, None for no prompt.

    The order is MTEB's: a prompt for this very task before one for its kind before that of the side. In tasks without
    queries and documents (`plain`) a model gets its default prompt. One that was trained with a prefix before
    documents too, as E5 was, never saw bare text: it gets the query prefix, as its authors say.
    """
    mteb_kind = MTEB_NAMES[kind]
    for name in (f"{task}-{side}", task, f"{mteb_kind}-{side}", mteb_kind):
        if name in card.prompts:
            return name
    if side == "query" and task in _ALIKE and card.family in _ENGLISH_BGE:
        return card.default_prompt
    if side != "plain":
        return side
    return card.default_prompt or ("query" if card.prompt("document") else None)


class EncodedCorpus:
    """What a model computed of a corpus, on disk: vectors block by block or of some rows, and lexical weights.

    Args:
        folder: Folder of its shards.
        cut: Makes of vectors what a setting uses of them.
    """

    def __init__(self, folder: Path, cut: Callable[[npt.NDArray[Any]], Floats]) -> None:
        self._shards, self._cut = load_shards(folder), cut
        self._stored = StoredShards(self._shards)

    def __iter__(self) -> Iterator[tuple[int, Floats]]:
        """First row and vectors [rows, d] of each block, in order."""
        first, waiting = 0, list[npt.NDArray[Any]]()
        for _, vectors in self._shards.iter_shards():
            # Several shards at once: what each block costs beside the products is paid less often.
            waiting.append(vectors)
            if sum(map(len, waiting)) >= _BLOCK:
                yield first, self._cut(np.concatenate(waiting))
                first, waiting = first + sum(map(len, waiting)), []
        if waiting:
            yield first, self._cut(np.concatenate(waiting))

    def at(self, rows: npt.NDArray[np.int64]) -> Floats:
        """The vectors [n, d] of some rows."""
        return self._cut(self._stored.vectors(rows))

    def lexical(self) -> Iterator[Ragged]:
        """The lexical weights of all rows, block by block."""
        return self._stored.part_blocks("lexical")


def _is_complete(folder: Path) -> bool:
    """Whether all of a corpus is encoded in a folder."""
    return (folder / MANIFEST).exists() and bool(read_manifest(folder / MANIFEST)["complete"])


class JudgedModel:
    """An embedder in a setting, for the protocols of `tasks/`.

    Vectors of a corpus go to the disk, shard by shard: memory stays flat, and a later run continues from there. Several
    settings of one model share them.

    Attributes:
        embedder: What encodes.
        setting: How it is used.
        settings: All in which it is measured on the task.
        cosine: Whether similarity is the cosine; otherwise the dot product.
        reused: Whether vectors that were asked for were there already, of another setting or an earlier run.

    Example:
        >>> from bgekit import FlagModel
        >>> from bgekit.evaluation import JudgedModel, Setting, read_tasks
        >>> model = JudgedModel(FlagModel("BAAI/bge-small-en-v1.5"), Setting(instruction=None))
        >>> sorted(read_tasks("scifact")[0].score(model).metrics)[0]
        'hit_rate_at_1'
    """

    def __init__(
        self, embedder: Embedder, setting: Setting | None = None, *, folder: Path | None = None,
        progress: bool | None = None, memo: dict[str, Any] | None = None, place: str = "",
        encode: EncodeShards = encode_for_now, settings: Sequence[Setting] = (),
    ) -> None:  # fmt: skip
        """A model in a setting.

        Args:
            embedder: What encodes.
            setting: By default what the card says.
            folder: Where vectors of corpora are kept; by default in a temporary folder while they are needed.
            progress: Show progress bars; by default on a terminal.
            memo: What settings of one model share on a task, so that it is computed once.
            place: Which of the models it is, such as `model 2 of 2`, for the bars.
            encode: Encodes corpora: `encode_to_shards`, or the same with more machines.
            settings: All in which the model is measured on the task, this one among them: what several of them take
                from a text is computed in one pass.
        """
        self.embedder, self.setting = embedder, setting or Setting()
        self.settings = settings or (self.setting,)
        card = embedder.card
        # Of vectors of length 1 the Euclidean distance has the order of the cosine.
        self.cosine = card.similarity == "cosine" or (card.similarity == "euclidean" and card.normalize)
        self._folder, self._progress, self._place, self._encode_shards = folder, progress, place, encode
        self._memo = memo if memo is not None else {}
        self._own: set[str] = set()
        self.reused = False
        wanted = self.setting.dimension
        if wanted is not None and not 1 <= wanted <= embedder.dimension:
            raise ArgumentError(f"dimension {wanted} is not among the {embedder.dimension} of {embedder.card.name}")
        if self.setting.weights is not None:
            self.setting.weights.check_model(embedder)
        if heads := sorted(self.setting.modes & {"lexical", "multi-vector"}):
            check_heads(embedder, heads)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides the vectors and how they are used."""
        setting = self.setting.to_dict()
        if self.setting.reranker is not None:
            # What it is tells more than its name, where it says so.
            setting["reranker"] = getattr(self.setting.reranker, "fingerprint", self.setting.reranker_name)
        maker = self.embedder.fingerprint if self.setting.of_model else BM25
        return digest(maker, repr(sorted(setting.items())))

    def once(self, what: str, make: Callable[[], T]) -> T:
        """What a function makes, or what it made when another setting of the model, on the same task, asked for it.

        Args:
            what: Tells it from others; settings of which it depends on none have the same.
            make: Makes it.
        """
        if what not in self._memo:
            self._memo[what] = make()
        made: T = self._memo[what]
        return made

    def queries(self, texts: Sequence[str], kind: Kind, task: str) -> Floats:
        """Vectors [n, d] of queries, with the query instruction."""
        instruction = self.setting.instruction
        if isinstance(instruction, Unset):
            return self._encode(texts, kind, task, "query")
        with titled(self._title(task, "query")):
            return self._remembered(
                f"instruction {instruction}", texts, self.embedder.encode_queries, instruction=instruction
            )

    def documents(self, texts: Sequence[str], kind: Kind, task: str) -> Floats:
        """Vectors [n, d] of passages."""
        return self._encode(texts, kind, task, "document")

    def plain(self, texts: Sequence[str], kind: Kind, task: str) -> Floats:
        """Vectors [n, d] of texts in a task that knows neither queries nor documents."""
        return self._encode(texts, kind, task, "plain")

    @contextlib.contextmanager
    def corpus(
        self, records: Iterable[Record], content: str, kind: Kind, task: str, *, count: int | None = None,
        lexical: bool = False,
    ) -> Iterator[EncodedCorpus]:  # fmt: skip
        """The vectors of a corpus, on disk; not more than a block is in memory.

        Args:
            records: The corpus, from its start.
            content: Digest of its texts.
            kind: Kind of the task.
            task: Name of the task.
            count: Number of the records, for the bar; None if nobody knows.
            lexical: Whether lexical weights are read, too; they come with the vectors where any setting takes them.
        """
        role = role_of(self.embedder.card, kind, task, "document")
        lexical = lexical or any("lexical" in each.modes for each in self.settings)
        with contextlib.ExitStack() as stack:
            if self._folder is None:
                parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bgekit-")))
            else:
                parent = self._folder
            # Their names have the digest of the corpus in them. One with lexical weights serves for vectors, too.
            known = self.embedder.fingerprint, content, str(role)
            folders = [] if lexical else [parent / digest(*known)[:32]]
            if lexical or "sparse" in self.embedder.outputs:
                folders.append(parent / digest(*known, self.embedder.output_fingerprint("sparse"))[:32])
            complete = next(filter(_is_complete, folders), None)
            folder = complete or folders[0]
            self.reused |= complete is not None
            if complete is None:
                with contextlib.ExitStack() as shown:
                    shows = sys.stderr.isatty() if self._progress is None else self._progress
                    shown.enter_context(titled(self._title(task, "document")))
                    bar = shown.enter_context(EncodeProgress(count)) if shows else None
                    self._encode_shards(
                        self.embedder, records, folder, kind=role or "plain", progress=bar,
                        outputs=outputs_of(["lexical"] if lexical else []),
                    )  # fmt: skip
            yield EncodedCorpus(folder, self._cut)

    def comparable(self, vectors: Floats) -> Floats:
        """The vectors, whose dot products are the similarities: of length 1 where the cosine counts."""
        if not self.cosine and self.embedder.card.similarity != "dot":
            raise ArgumentError(
                f"{self.embedder.card.name} compares by the {self.embedder.card.similarity} distance, by which corpora "
                "cannot be searched here"
            )
        return unit(vectors) if self.cosine else np.asarray(vectors, dtype=np.float32)

    def similarity(self, a: Floats, b: Floats) -> npt.NDArray[np.float64]:
        """Similarity [n] of the vectors a[i] and b[i], as the model's card compares them."""
        return paired_similarity(a, b, self.embedder.card.similarity)

    def rerank(
        self, queries: Sequence[str], passages: Sequence[Sequence[str]], task: str
    ) -> list[npt.NDArray[np.float64]]:
        """The reranker's scores of the passages of each query, all of them in one call."""
        if self.setting.reranker is None:
            raise ArgumentError("this setting has no reranker")
        pairs = [(query, text) for query, texts in zip(queries, passages, strict=True) for text in texts]
        # What is given as a reranker need not know of bars.
        shown = {"show_progress": self._progress} if hasattr(self.setting.reranker, "rank") else {}
        with titled(self._title(task, "rerank")):
            found = self.setting.reranker.compute_score(pairs, **shown) if pairs else ()
        scores = np.asarray(found, dtype=np.float64)
        return np.split(scores, np.cumsum([len(texts) for texts in passages])[:-1])

    def _encode(self, texts: Sequence[str], kind: Kind, task: str, side: Role) -> Floats:
        role = role_of(self.embedder.card, kind, task, side)
        with titled(self._title(task, side)):
            if role == "query":
                return self._remembered("role query", texts, self.embedder.encode_queries)
            if role == "document":
                return self._remembered("role document", texts, self.embedder.encode_corpus)
            options: dict[str, Any] = {}
            if role != self.embedder.card.default_prompt:
                options = {"prompt_name": role} if role else {"prompt": None}
            return self._remembered(f"role {role}", texts, self.embedder.encode, **options)

    def _title(self, task: str, side: str) -> str:
        """What a bar says: task, side and model."""
        return ", ".join(filter(None, (f"{task}: {_SIDES[side]}", self._place)))

    def _remembered(self, how: str, texts: Sequence[str], encode: Callable[..., Any], **options: Any) -> Floats:
        key = digest(how, *map(repr, texts))
        # What this task has asked for before, such as both sides of equal pairs, is its own work.
        self.reused |= key in self._memo and key not in self._own
        self._own.add(key)
        if key not in self._memo:
            self._memo[key] = encode(list(texts), convert_to_numpy=True, show_progress=self._progress, **options)
        return self._cut(self._memo[key])

    def _cut(self, vectors: npt.NDArray[Any]) -> Floats:
        """The first dimensions, of length 1 again where the model normalises (Matryoshka)."""
        whole: Floats = np.asarray(vectors)
        if self.setting.dimension is None:
            return whole
        part = whole[:, : self.setting.dimension]
        return unit(part) if self.embedder.card.normalize else part
