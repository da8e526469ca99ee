"""FlagEmbedding 1.2's form: documents and queries without ids, matched by text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from ..kinds.retrieval import RetrievalTask
from .groups import POSITIVES
from .lines import Exclusions, find_column, first_line, read_lines
from .paths import DataFile, Folder, choose_split, split_in
from .retrieval import Documents, Judgement, read_corpus, retrieval_task
from .source import Source


@dataclass(frozen=True)
class TextCollection:
    """A corpus of `{"content"}` and files of `{"query", "positive"}`.

    Attributes:
        folder: Where they are.
        corpus: The file of documents.
        queries: The file of queries of each split.
    """

    folder: Folder
    corpus: DataFile
    queries: Mapping[str, DataFile]

    def read(self, name: str, split: str | None, protocol: Mapping[str, Any] | None = None) -> RetrievalTask:
        """The task of one split; a document's id is its number, from 0, and equal documents are equally relevant.

        Raises:
            DataError: a file cannot be read, there is no such split, or no positive stands in the corpus.
        """
        chosen = choose_split(self.queries, split, self.folder.path)
        source = Source(name, chosen, self.queries[chosen], self.folder, protocol=protocol or {})
        queries, positives, lines = _read_queries(source.file)
        wanted = {text for texts in positives.values() for text in texts}
        corpus, found = read_corpus(Documents(self.corpus, numbered=True), wanted)
        left_out, judgements = Exclusions(), []
        for query, texts in positives.items():
            for text in texts:
                if text not in found:
                    left_out.add("positives that are not in the corpus", f"{text[:60]!r} in line {lines[query]}")
                judgements += [
                    Judgement(query, document, 1, (source.file.name, lines[query])) for document in found.get(text, ())
                ]
        judged = {judgement.query for judgement in judgements}
        for query in queries:
            if query not in judged:
                left_out.add("queries without a relevant document", f"line {lines[query]}")
        return retrieval_task(source, queries, corpus, judgements, left_out)


def find_contents(folder: Folder, only: str | None = None) -> TextCollection | None:
    """The files of FlagEmbedding 1.2's form in a folder.

    Args:
        folder: The folder.
        only: The one file of queries that counts, by its name without ending; by default all.

    Raises:
        DataError: there are several corpora.
    """
    corpora: list[DataFile] = []
    queries: dict[str, DataFile] = {}
    for stem in folder.files:
        try:
            file = folder.file(stem)
            names = list(first_line(file).fields)
        except DataError:
            continue  # Not of this form; who needs the file will say what is wrong with it.
        if "content" in names and not {"query", "label"} & set(names):
            corpora.append(file)
        elif "query" in names and find_column(names, POSITIVES[:1]) and only in (None, stem):
            queries[stem] = file
    if not corpora or not queries:
        return None
    if len(corpora) > 1:
        raise DataError(f"{folder.path} has several corpora, {' and '.join(map(str, corpora))}: keep one")
    # `query.json` alone names no split; of several files each is one.
    lone = "test" if len(queries) == 1 else ""
    splits = {split_in(stem) or lone or stem: file for stem, file in queries.items()}
    if len(splits) < len(queries):
        splits = queries
    return TextCollection(folder, corpora[0], splits)


def _read_queries(file: DataFile) -> tuple[dict[str, str], dict[str, list[str]], dict[str, int]]:
    """Texts, positives and lines of queries, by number from 0."""
    column = find_column(first_line(file).fields, POSITIVES[:1])
    queries, positives, lines = {}, {}, {}
    for number, line in enumerate(read_lines(file)):
        query = str(number)
        queries[query] = line.text("query")
        positives[query] = list(dict.fromkeys(line.texts(column or "positive")))
        lines[query] = line.number
    return queries, positives, lines
