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
from typing import Final, TypeAlias

from ...encoding.records import Record, read_rows, titled
from ...encoding.rows import Dialect, listing, open_stream
from ...errors import DataError
from ..benchmarks.named import is_named
from ..kinds.retrieval import Corpus, RetrievalTask
from .lines import IDS, QUERIES, TEXTS, TITLES, Exclusions, find_column, first_line, read_lines, written
from .paths import DataFile
from .source import Source

logger = logging.getLogger(__name__)

QUERY_IDS = ("query-id", "qid", "query")
DOCUMENT_IDS = ("corpus-id", "docid", "document-id", "pid", "passage-id")
_RELEVANCES = ("score", "relevance", "rel", "label")
#: Bytes of the longest line of TREC's judgements.
_TREC_LINE: Final = 1024
_JUDGEMENT = 'query-id, corpus-id, score (or {"qid": "q1", "docid": "d1", "relevance": 1})'

#: A file and a line in it.
Place: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How relevant a document is to a query; 0 and below is not relevant. `place` is where that is said."""

    query: str
    document: str
    relevance: int
    place: Place


@dataclass(frozen=True)
class Documents:
    """The documents of a file, read anew for each pass.

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
    with contextlib.ExitStack() as stack:
        try:
            words = open_stream(file.paths[0], stack)[0].readline(_TREC_LINE).split()
        except (OSError, DataError):
            return False  # Said by whoever reads it.
    return len(words) == 4 and re.fullmatch(rb"-?\d+", words[-1]) is not None


def _trec_judgements(file: DataFile) -> list[Judgement]:
    judgements = []
    for path in file.paths:
        for number, fields in read_rows(path, format="txt", encoding=written.get().encoding):
            words = fields["text"].split()
            if not words:
                continue
            if len(words) != 4 or not re.fullmatch(r"-?\d+", words[-1]):
                raise DataError(
                    f"{path}, line {number}: no judgement `query 0 document relevance`: {fields['text']!r:.80}"
                )
            judgements.append(Judgement(words[0], words[2], int(words[3]), (path, number)))
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
        judgements: Of any queries and documents.
        left_out: What was left out before.

    Raises:
        DataError: two judgements contradict each other, or no query is left.
    """
    qrels = judged_by_query(source, queries, frozenset(corpus.ids), judgements, left_out)
    kept = {}
    for query, found in qrels.items():
        if not queries[query].strip():
            left_out.add("queries that are empty", query)
        elif not any(relevance > 0 for relevance in found.values()):
            left_out.add("queries without a relevant document", query)
        else:
            kept[query] = found
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
    source: Source,
    queries: Mapping[str, str],
    documents: frozenset[str],
    judgements: Iterable[Judgement],
    left_out: Exclusions,
) -> dict[str, dict[str, int]]:
    """Relevance of known documents by known query; what is unknown is counted.

    Raises:
        DataError: two judgements contradict each other.
    """
    qrels: dict[str, dict[str, int]] = {}
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
    return qrels


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
