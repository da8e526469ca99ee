"""Folders with corpus, queries and judgements in files of their own: BEIR's layout, FlagEmbedding 1.4's, the hub's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..kinds.reranking import RerankingTask
from ..kinds.retrieval import RetrievalTask
from .candidates import read_candidates, reranking_task
from .hub import CORPUS, DEFAULT, QRELS, QUERIES, RANKED, beside, configuration, of_split, part
from .lines import Exclusions
from .paths import DataFile, Folder, choose_split
from .retrieval import Documents, is_judgement, read_corpus, read_judgements, read_queries, retrieval_task
from .source import Source

logger = logging.getLogger(__name__)

#: Files of candidates whose name does not settle that they are to be put in order.
_CANDIDATES = ("candidates",)


@dataclass(frozen=True)
class Collection:
    """Where a test collection's parts are, each by split; "" stands for all splits.

    Attributes:
        folder: The folder.
        corpus: The documents.
        queries: The queries.
        qrels: The judgements.
        ranked: The documents of each query that are to be put in order, where it is a reranking.
        candidates: The same under a name that does not settle it.
    """

    folder: Folder
    corpus: Mapping[str, DataFile]
    queries: Mapping[str, DataFile]
    qrels: Mapping[str, DataFile]
    ranked: Mapping[str, DataFile] = field(default_factory=dict)
    candidates: Mapping[str, DataFile] = field(default_factory=dict)

    def read(
        self,
        name: str,
        split: str | None,
        facts: Mapping[str, Any] | None = None,
        protocol: Mapping[str, Any] | None = None,
        *,
        kind: str | None = None,
    ) -> RetrievalTask | RerankingTask:
        """The task of one split.

        Args:
            name: The task's name.
            split: Its split, None to choose it.
            facts: Fields of `Task` that are known.
            protocol: Fields of the kind's own class that are known.
            kind: retrieval or reranking; None to see it from whether there are documents to be put in order.

        Raises:
            DataError: a part cannot be read, there is no such split, or nothing of it can be judged.
        """
        chosen = choose_split(self.qrels, split, self.folder.path)
        source = Source(name, chosen, self.qrels[chosen], self.folder, facts or {}, protocol or {})
        # The small files first, so that what is wrong with them shows at once.
        judgements = read_judgements(source.file)
        queries = read_queries(of_split(self.queries, chosen, "queries"))
        left_out = Exclusions()
        for query in self._unjudged(chosen, queries, {judgement.query for judgement in judgements}):
            left_out.add("queries without a judgement", query)
        documents = Documents(of_split(self.corpus, chosen, "corpus"))
        ranked = {**self.candidates, **self.ranked}
        if kind == "reranking" or (kind is None and self.ranked):
            listed = read_candidates(of_split(ranked, chosen, "candidates")) if ranked else None
            corpus, _ = read_corpus(documents)
            return reranking_task(source, queries, corpus, judgements, listed, left_out)
        corpus, _ = read_corpus(documents)
        if ranked:
            source = source.remarking(
                f"{of_split(ranked, chosen, 'candidates')} is not used: the whole corpus is searched; to put those "
                'passages in order instead, say "task_type": "reranking" in dataset.json'
            )
        return retrieval_task(source, queries, corpus, judgements, left_out)

    @property
    def files(self) -> list[DataFile]:
        """All of them."""
        parts = (self.corpus, self.queries, self.qrels, self.ranked, self.candidates)
        return [file for files in parts for file in files.values()]

    def _unjudged(self, split: str, queries: Mapping[str, str], judged: set[str]) -> list[str]:
        """Queries that no split judges, of those that share a file with this split's."""
        own = of_split(self.queries, split, "queries")
        unjudged = [query for query in queries if query not in judged]
        for other, file in self.qrels.items():
            if unjudged and other != split and of_split(self.queries, other, "queries") == own:
                judged = {judgement.query for judgement in read_judgements(file)}
                unjudged = [query for query in unjudged if query not in judged]
        return unjudged


def find_beir(folder: Folder, subset: str = "") -> Collection | None:
    """The parts of BEIR's layout and of the hub's: corpus, queries and judgements.

    Each is a file, a folder or a configuration of the README with files by split. Judgements are `qrels`, the
    repository's default configuration, or in a repository next door whose name ends in `-qrels`.

    Args:
        folder: The folder.
        subset: The one of several collections in it that is wanted (`en-corpus`, `en-queries`, `en-qrels`).

    Raises:
        DataError: a folder cannot be listed, or several files could be one part.
    """
    corpus, queries = part(folder, CORPUS, subset), part(folder, QUERIES, subset)
    if not corpus or not queries:
        return None
    qrels = part(folder, QRELS, subset) or _default_judgements(folder)
    if not qrels:
        return None
    named = {split or "test": file for split, file in qrels.items()}
    ranked, candidates = part(folder, RANKED, subset), part(folder, _CANDIDATES, subset)
    return Collection(folder, corpus, queries, named, ranked, candidates)


def _default_judgements(folder: Folder) -> dict[str, DataFile]:
    """Judgements that are not called so: of the default configuration, beside the parts, or next door."""
    for place in (configuration(folder, DEFAULT), folder, beside(folder)):
        if place is not None:
            files = {stem: place.file(stem) for stem in place.files if stem not in (*CORPUS, *QUERIES, *_CANDIDATES)}
            found = {stem: file for stem, file in files.items() if is_judgement(file)}
            if found:
                return found
    return {}


def find_split_files(folder: Folder) -> Collection | None:
    """The parts of FlagEmbedding 1.4's layout: corpus, `<split>_queries`, `<split>_qrels`."""
    splits = [stem.removesuffix("_qrels") for stem in folder.files if stem.endswith("_qrels")]
    splits = [split for split in splits if f"{split}_queries" in folder.files]
    if not splits or "corpus" not in folder.files:
        return None
    return Collection(
        folder, {"": folder.file("corpus")},
        {split: folder.file(f"{split}_queries") for split in splits},
        {split: folder.file(f"{split}_qrels") for split in splits},
    )  # fmt: skip
