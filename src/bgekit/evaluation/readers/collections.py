"""Corpus, queries and judgements -> a retrieval task, whichever form they came in."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any, Final, TypeAlias

from ...data.columns import (
    IDS,
    QUERIES,
    TEXTS,
    TITLES,
    Exclusions,
    find_column,
    first_line,
    read_file,
    read_lines,
    written,
)
from ...data.formats import Dialect, listing
from ...data.records import Record, titled
from ...data.splits import DataFile, Folder, choose_split, split_in
from ...errors import DataError
from ..benchmarks.definitions import is_named
from ..tasks.reranking import RerankingGroup, RerankingTask
from ..tasks.retrieval import Corpus, RetrievalTask
from .hub import (
    CORPUS_PART,
    DEFAULT_PART,
    QRELS_PART,
    QUERIES_PART,
    RANKED_PART,
    beside,
    configuration,
    of_split,
    part_of,
)
from .rows import POSITIVES, Source, graded_group

logger = logging.getLogger(__name__)
QUERY_IDS = ("query-id", "qid", "query")
DOCUMENT_IDS = ("corpus-id", "docid", "document-id", "pid", "passage-id")
_RELEVANCES = ("score", "relevance", "rel", "label")
_JUDGEMENT = 'query-id, corpus-id, score (or {"qid": "q1", "docid": "d1", "relevance": 1})'
#: A line of TREC's judgements: query, 0, document, relevance.
_TREC: Final = re.compile(r"\s*(\S+)\s+\S+\s+(\S+)\s+(-?\d+)\s*")
#: A file and a line in it.
Place: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Relevance of a document to a query; 0 and below is not relevant. `place` is where that is said."""

    query: str
    document: str
    relevance: int
    place: Place


@dataclass(frozen=True)
class Documents:
    """The documents of a file, read again for each pass.

    Attributes:
        file: The file.
        numbered: Documents have no ids and titles, but numbers from 0.
        dialect: How it is written; a later pass no longer has it from the entry.
    """

    file: DataFile
    numbered: bool = False
    dialect: Dialect = field(default_factory=written.get)

    def __iter__(self) -> Iterator[Record]:
        names = list(first_line(self.file, self.dialect).fields)
        text = _needed(self.file, names, ("content",) if self.numbered else TEXTS, "text")
        title = None if self.numbered else find_column(names, TITLES)
        own = None if self.numbered else _needed(self.file, names, IDS, "id")
        for number, line in enumerate(read_lines(self.file, self.dialect)):
            heading = "" if title is None or line.fields.get(title) is None else line.text(title)
            yield Record(
                str(number) if own is None else line.identifier(own), titled(heading, line.text(text)),
                line.file, line.number,
            )  # fmt: skip


def read_corpus(documents: Documents, wanted: Collection[str] = ()) -> tuple[Corpus, dict[str, list[str]]]:
    """Check a corpus in one pass, holding its ids alone.

    Args:
        documents: The documents.
        wanted: Texts to look for.

    Returns:
        The corpus, and by wanted text the ids of the documents that have it.

    Raises:
        DataError: a document cannot be used, or two have the same id; both lines are named.
    """
    ids: list[str] = []
    seen: set[str] = set()
    found: dict[str, list[str]] = {}
    digest, empty = hashlib.sha256(), 0
    for record in documents:
        if record.id in seen:
            first = next(earlier for earlier in documents if earlier.id == record.id)
            raise _twice("document", record.id, (first.file, first.line), (record.file, record.line))
        ids.append(record.id)
        seen.add(record.id)
        for part in (record.id, record.text):
            # Surrogates that have no partner do occur in JSON.
            content = part.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(content) + content)
        if record.text in wanted:
            found.setdefault(record.text, []).append(record.id)
        empty += not record.text.strip()
    if empty:
        logger.warning("%s: %d documents have no text; they stay in the corpus, as in MTEB", documents.file, empty)
    return Corpus(ids, partial(_again, documents, ids), digest.hexdigest()), found


def read_queries(file: DataFile) -> dict[str, str]:
    """Texts of queries by id, empty ones too.

    Raises:
        DataError: a query cannot be used, or two have the same id; both lines are named.
    """
    names = list(first_line(file).fields)
    own, text = _needed(file, names, IDS, "id"), _needed(file, names, (*TEXTS, *QUERIES), "text")
    queries: dict[str, str] = {}
    places: dict[str, Place] = {}
    for line in read_lines(file):
        query = line.identifier(own)
        if query in queries:
            raise _twice("query", query, places[query], (line.file, line.number))
        queries[query], places[query] = line.text(text), (line.file, line.number)
    return queries


def read_judgements(file: DataFile) -> list[Judgement]:
    """The lines of a file of judgements: a table or JSON lines, or TREC's form, which has no header.

    Raises:
        DataError: it lacks a column, or a line is not a judgement.
    """
    if _is_trec(file):
        return _trec_judgements(file)
    names = list(first_line(file).fields)
    columns = [find_column(names, wanted) for wanted in (QUERY_IDS, DOCUMENT_IDS, _RELEVANCES)]
    query, document, relevance = columns
    if query is None or document is None or relevance is None:
        raise DataError(f"{file} begins with {listing(names)}; judgements begin with a header {_JUDGEMENT}")
    judgements = []
    for line in read_lines(file):
        value = line.number_of(relevance)
        if not value.is_integer():
            raise line.error(f"the {relevance} must be a whole number, not {value}")
        judgements.append(
            Judgement(line.identifier(query), line.identifier(document), int(value), (line.file, line.number))
        )
    return judgements


def is_judgement(file: DataFile) -> bool:
    """Whether a file's rows are judgements."""
    if _is_trec(file):
        return True
    try:
        names = list(first_line(file).fields)
    except DataError:
        return False  # Whoever needs the file says what is wrong with it.
    return all(find_column(names, wanted) for wanted in (QUERY_IDS, DOCUMENT_IDS, _RELEVANCES))


def _is_trec(file: DataFile) -> bool:
    """Whether a file begins with a line `query 0 document relevance` of TREC."""
    with contextlib.closing(read_file(file.paths[0], format="txt")) as lines:
        try:
            line = next(lines, None)
        except (OSError, DataError):
            return False  # Said by whoever reads it.
    return line is not None and _TREC.fullmatch(line.text("text")) is not None


def _trec_judgements(file: DataFile) -> list[Judgement]:
    judgements = []
    for path in file.paths:
        for line in read_file(path, format="txt"):
            text = line.text("text")
            if found := _TREC.fullmatch(text):
                judgements.append(Judgement(found[1], found[2], int(found[3]), (path, line.number)))
            elif text.strip():
                raise line.error(f"no judgement `query 0 document relevance`: {text!r:.80}")
    return judgements


def retrieval_task(
    source: Source,
    queries: Mapping[str, str],
    corpus: Corpus,
    judgements: Iterable[Judgement],
    left_out: Exclusions,
) -> RetrievalTask:
    """A task of what can be judged; the rest is counted.

    Args:
        source: The split; its file is that of the judgements.
        queries: Texts by id; those without a judgement have no part in the task.
        corpus: The documents.
        judgements: Judgements of any queries and documents.
        left_out: What was left out before.

    Raises:
        DataError: two judgements contradict each other, or no query is left.
    """
    kept = judged_by_query(queries, frozenset(corpus.ids), judgements, left_out)
    if not kept:
        raise DataError(
            f"{source.file} leaves nothing to evaluate: {left_out}. Ids of documents are such as "
            f"{listing(corpus.ids[:3])}, of queries such as {listing(list(queries)[:3])}"
        )
    fields = {"query_instruction": True} | source.fields(left_out, "skip_identical_ids")
    fields["identical_ids_settled"] = "skip_identical_ids" in fields or is_named(source.name)
    task = RetrievalTask(queries={query: queries[query] for query in kept}, corpus=corpus, qrels=kept, **fields)
    if task.identical_ids and not task.identical_ids_settled:
        logger.warning("%s: %s", task.name, task.notes[-1])
    return task


def judged_by_query(
    queries: Mapping[str, str],
    documents: frozenset[str],
    judgements: Iterable[Judgement],
    left_out: Exclusions,
) -> dict[str, dict[str, int]]:
    """Relevance of known documents by known query that has a relevant one; what is unknown or of no use is counted.

    Raises:
        DataError: two judgements contradict each other.
    """
    qrels: dict[str, dict[str, int]] = {}
    kept = {}
    for judgement in judgements:
        query, document, relevance = judgement.query, judgement.document, judgement.relevance
        place = f"{judgement.place[0]}, line {judgement.place[1]}"
        if query not in queries:
            left_out.add("judgements of unknown queries", f"{query} in {place}")
            continue
        found = qrels.setdefault(query, {})
        if document not in documents:
            left_out.add("judgements of unknown documents", f"{document} in {place}")
        elif found.setdefault(document, relevance) != relevance:
            raise DataError(
                f"{place}: document {document} has the relevance {relevance} to query {query}, in an earlier line it "
                f"has {found[document]}"
            )
    for query, found in qrels.items():
        if not queries[query].strip():
            left_out.add("queries that are empty", query)
        elif not any(relevance > 0 for relevance in found.values()):
            left_out.add("queries without a relevant document", query)
        else:
            kept[query] = found
    return kept


def _again(documents: Documents, ids: Sequence[str]) -> Iterator[Record]:
    """A further pass: the vectors of its records are found by their place, so it must be as it was."""
    for record, own in zip_longest(documents, ids):
        if record is None or record.id != own:
            raise DataError(f"{documents.file} has changed since it was checked: run the evaluation again")
        yield record


def _needed(file: DataFile, names: list[str], wanted: tuple[str, ...], what: str) -> str:
    column = find_column(names, wanted)
    if column is None:
        raise DataError(f"{file} has no {what}: it has the fields {listing(names)}; expected {' or '.join(wanted)}")
    return column


def _twice(what: str, own: str, first: Place, second: Place) -> DataError:
    where = f"{first[0]}: lines {first[1]} and {second[1]}"
    if first[0] != second[0]:
        where = f"{first[0]}, line {first[1]}, and {second[0]}, line {second[1]},"
    return DataError(f"{where} both have the {what} id {own!r}; ids must differ")


#: Files of candidates whose name does not settle that they are to be reranked.
_CANDIDATES = ("candidates",)


@dataclass(frozen=True)
class TestCollection:
    """Files of a test collection's parts, each by split; "" stands for all splits.

    Attributes:
        folder: The folder.
        corpus: The documents.
        queries: The queries.
        qrels: The judgements.
        ranked: The documents of each query that are to be reranked, where it is a reranking.
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
            kind: retrieval or reranking; None to see it from whether there are documents to rerank.

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
        documents = of_split(self.corpus, chosen, "corpus")
        ranked = {**self.candidates, **self.ranked}
        candidates = of_split(ranked, chosen, "candidates") if ranked else None
        if kind == "reranking" or (kind is None and self.ranked):
            listed = read_candidates(candidates) if candidates else None
            corpus, _ = read_corpus(Documents(documents))
            return reranking_task(source, queries, corpus, judgements, listed, left_out)
        if candidates:
            source = source.remarking(
                f"{candidates} is not used: the whole corpus is searched; to rerank those passages instead, say "
                '"task_type": "reranking" in dataset.json'
            )
        corpus, _ = read_corpus(Documents(documents))
        return retrieval_task(source, queries, corpus, judgements, left_out)

    def _unjudged(self, split: str, queries: Mapping[str, str], judged: set[str]) -> list[str]:
        """Queries that no split judges, of those that share a file with this split's."""
        own = of_split(self.queries, split, "queries")
        unjudged = [query for query in queries if query not in judged]
        for other, file in self.qrels.items():
            if unjudged and other != split and of_split(self.queries, other, "queries") == own:
                judged = {judgement.query for judgement in read_judgements(file)}
                unjudged = [query for query in unjudged if query not in judged]
        return unjudged


def find_beir(folder: Folder, subset: str = "") -> TestCollection | None:
    """The parts of BEIR's layout and of the hub's: corpus, queries and judgements.

    Each is a file, a folder or a configuration of the README with files by split. Judgements are `qrels`, the
    repository's default configuration, or in a repository next door whose name ends in `-qrels`.

    Args:
        folder: The folder.
        subset: The one of several collections in it that is wanted (`en-corpus`, `en-queries`, `en-qrels`).

    Raises:
        DataError: a folder cannot be listed, or several files could be one part.
    """
    corpus, queries = part_of(folder, CORPUS_PART, subset), part_of(folder, QUERIES_PART, subset)
    if not corpus or not queries:
        return None
    qrels = part_of(folder, QRELS_PART, subset) or _default_judgements(folder)
    if not qrels:
        return None
    named = {split or "test": file for split, file in qrels.items()}
    ranked, candidates = part_of(folder, RANKED_PART, subset), part_of(folder, _CANDIDATES, subset)
    return TestCollection(folder, corpus, queries, named, ranked, candidates)


def _default_judgements(folder: Folder) -> dict[str, DataFile]:
    """Judgements that are not called so: of the default configuration, beside the parts, or next door."""
    for place in (configuration(folder, DEFAULT_PART), folder, beside(folder)):
        if place is not None:
            files = {
                stem: place.file(stem)
                for stem in place.files
                if stem not in (*CORPUS_PART, *QUERIES_PART, *_CANDIDATES)
            }
            found = {stem: file for stem, file in files.items() if is_judgement(file)}
            if found:
                return found
    return {}


def find_split_files(folder: Folder) -> TestCollection | None:
    """The parts of FlagEmbedding 1.4's layout: corpus, `<split>_queries`, `<split>_qrels`."""
    splits = [stem.removesuffix("_qrels") for stem in folder.files if stem.endswith("_qrels")]
    splits = [split for split in splits if f"{split}_queries" in folder.files]
    if not splits or "corpus" not in folder.files:
        return None
    return TestCollection(
        folder, {"": folder.file("corpus")},
        {split: folder.file(f"{split}_queries") for split in splits},
        {split: folder.file(f"{split}_qrels") for split in splits},
    )  # fmt: skip


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
        column = find_column(first_line(source.file).fields, POSITIVES[:1]) or "positive"
        rows = {str(number): line for number, line in enumerate(read_lines(source.file))}
        queries = {query: line.text("query") for query, line in rows.items()}
        positives = {query: list(dict.fromkeys(line.texts(column))) for query, line in rows.items()}
        wanted = {text for texts in positives.values() for text in texts}
        corpus, found = read_corpus(Documents(self.corpus, numbered=True), wanted)
        left_out, judgements = Exclusions(), []
        for query, texts in positives.items():
            for text in texts:
                if text not in found:
                    where = f"{text[:60]!r} in line {rows[query].number}"
                    left_out.add("positives that are not in the corpus", where)
                place = (source.file.name, rows[query].number)
                judgements += [Judgement(query, document, 1, place) for document in found.get(text, ())]
        judged = {judgement.query for judgement in judgements}
        for query in queries:
            if query not in judged:
                left_out.add("queries without a relevant document", f"line {rows[query].number}")
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


_LISTS: Final = ("corpus-ids", "docids", "document-ids", "pids", "passage-ids")


def read_candidates(file: DataFile) -> dict[str, list[str]]:
    """Ids of documents by query, from a row for each query (with a list) or for each document.

    Raises:
        DataError: the file has other columns, or a row is none of these.
    """
    fields = first_line(file).fields
    query = find_column(fields, (*QUERY_IDS, "query_id"))
    listed, single = find_column(fields, _LISTS), find_column(fields, DOCUMENT_IDS)
    if query is None or (listed is None and single is None):
        raise DataError(f"{file} has the fields {', '.join(fields)}; expected query-id and corpus-ids (or corpus-id)")
    found: dict[str, list[str]] = {}
    for line in read_lines(file):
        ids = line.identifiers(listed) if listed else [line.identifier(single or "")]
        found.setdefault(line.identifier(query), []).extend(ids)
    return {own: list(dict.fromkeys(ids)) for own, ids in found.items()}


def reranking_task(
    source: Source,
    queries: Mapping[str, str],
    corpus: Corpus,
    judgements: Iterable[Judgement],
    candidates: Mapping[str, Sequence[str]] | None,
    left_out: Exclusions,
) -> RerankingTask:
    """The task to put candidates in order, by grades.

    As in MTEB, relevant documents that are not among a query's candidates count as not found.

    Args:
        source: The split; its file is that of the judgements.
        queries: Texts by id.
        corpus: The documents.
        judgements: Judgements of any queries and documents.
        candidates: Ids of the documents of each query; None where those are all that are judged for it.
        left_out: What was left out before.

    Raises:
        DataError: two judgements contradict each other, or no query is left.
    """
    known = frozenset(corpus.ids)
    qrels = judged_by_query(queries, known, judgements, left_out)
    skip = source.protocol.get("skip_identical_ids", False)
    ordered: dict[str, list[str]] = {}
    for query, judged in qrels.items():
        if candidates is not None and query not in candidates:
            left_out.add("queries without documents to rerank", query)
            continue
        wanted = list(judged) if candidates is None else candidates[query]
        for document in wanted:
            if document not in known:
                left_out.add("unknown documents to rerank", document)
        ordered[query] = [document for document in wanted if document in known and not (skip and document == query)]
    texts = corpus.texts(document for ids in ordered.values() for document in ids)

    def group(first: str, *others: str) -> RerankingGroup:
        """The group of one query, or of several that are judged as one: their judgements are the same."""
        judged = qrels[(first, *others)[-1]]
        ids = list(dict.fromkeys(document for query in (first, *others) for document in ordered[query]))
        positives = [(texts[document], judged[document]) for document in ids if judged.get(document, 0) > 0]
        negatives = [texts[document] for document in ids if judged.get(document, 0) <= 0]
        missed = [grade for document, grade in judged.items() if grade > 0 and document not in set(ids)]
        further = [queries[query] for query in others]
        return graded_group(queries[first], positives, negatives, first, missed=missed, others=further)

    groups = [group(*members) for members in _grouped(ordered, merged=bool(source.protocol.get("merge_subqueries")))]
    if not groups:
        raise source.nothing_left(left_out)
    return RerankingTask(groups=groups, **{"query_instruction": True} | source.fields(left_out))


def _grouped(ids: Iterable[str], *, merged: bool) -> list[list[str]]:
    """The queries one by one, or those together whose ids differ only behind the last `_`, as mteb merges them."""
    groups: dict[str, list[str]] = {}
    for query in ids:
        groups.setdefault(query.rpartition("_")[0] if merged else query, []).append(query)
    return list(groups.values())
