"""Folders with corpus, queries and judgements in files of their own: BEIR's layout and that of FlagEmbedding 1.4."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..kinds.retrieval import RetrievalTask
from .lines import Exclusions
from .paths import Folder, choose_split
from .retrieval import Documents, read_corpus, read_judgements, read_queries, retrieval_task
from .source import Source


@dataclass(frozen=True)
class Collection:
    """Where a test collection's parts are.

    Attributes:
        folder: The folder.
        corpus: The file of documents.
        queries: The file of queries of each split.
        qrels: The file of judgements of each split.
    """

    folder: Folder
    corpus: str
    queries: Mapping[str, str]
    qrels: Mapping[str, str]

    def read(
        self,
        name: str,
        split: str | None,
        facts: Mapping[str, Any] | None = None,
        protocol: Mapping[str, Any] | None = None,
    ) -> RetrievalTask:
        """The task of one split.

        Raises:
            DataError: a part cannot be read, there is no such split, or nothing of it can be judged.
        """
        chosen = choose_split(self.qrels, split, self.folder.path)
        source = Source(name, chosen, self.qrels[chosen], self.folder, facts or {}, protocol or {})
        # The small files first, so that what is wrong with them shows at once.
        judgements = read_judgements(source.file)
        queries = read_queries(self.queries[chosen])
        left_out = Exclusions()
        for query in self._unjudged(chosen, queries, {judgement.query for judgement in judgements}):
            left_out.add("queries without a judgement", query)
        corpus, _ = read_corpus(Documents(self.corpus))
        return retrieval_task(source, queries, corpus, judgements, left_out)

    def _unjudged(self, split: str, queries: Mapping[str, str], judged: set[str]) -> list[str]:
        """Queries that no split judges, of those that share a file with this split's."""
        unjudged = [query for query in queries if query not in judged]
        for other, file in self.qrels.items():
            if unjudged and other != split and self.queries[other] == self.queries[split]:
                judged = {judgement.query for judgement in read_judgements(file)}
                unjudged = [query for query in unjudged if query not in judged]
        return unjudged


def find_beir(folder: Folder) -> Collection | None:
    """The parts of BEIR's layout: corpus, queries, and `qrels/<split>` or (one split) `qrels`."""
    if "corpus" not in folder.files or "queries" not in folder.files:
        return None
    if "qrels" in folder.folders:
        judged = Folder.of(os.path.join(folder.path, "qrels"))
        qrels = {split: judged.file(split) for split in judged.files}
    else:
        qrels = {"test": folder.file("qrels")} if "qrels" in folder.files else {}
    if not qrels:
        return None
    return Collection(folder, folder.file("corpus"), dict.fromkeys(qrels, folder.file("queries")), qrels)


def find_split_files(folder: Folder) -> Collection | None:
    """The parts of FlagEmbedding 1.4's layout: corpus, `<split>_queries`, `<split>_qrels`."""
    splits = [stem.removesuffix("_qrels") for stem in folder.files if stem.endswith("_qrels")]
    splits = [split for split in splits if f"{split}_queries" in folder.files]
    if not splits or "corpus" not in folder.files:
        return None
    return Collection(
        folder, folder.file("corpus"),
        {split: folder.file(f"{split}_queries") for split in splits},
        {split: folder.file(f"{split}_qrels") for split in splits},
    )  # fmt: skip
