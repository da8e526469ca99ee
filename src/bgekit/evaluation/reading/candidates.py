"""A test collection whose queries come with the documents that are to be put in order -> a reranking task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ...errors import DataError
from ..kinds.reranking import RerankingGroup, RerankingTask
from ..kinds.retrieval import Corpus
from .groups import graded_group
from .lines import Exclusions, find_column, first_line, read_lines
from .paths import DataFile
from .retrieval import DOCUMENT_IDS, QUERY_IDS, Judgement, judged_by_query
from .source import Source

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
        judgements: Of any queries and documents.
        candidates: Ids of the documents of each query; None where those are all that are judged for it.
        left_out: What was left out before.

    Raises:
        DataError: two judgements contradict each other, or no query is left.
    """
    known = frozenset(corpus.ids)
    qrels = judged_by_query(source, queries, known, judgements, left_out)
    skip = source.protocol.get("skip_identical_ids", False)
    ordered: dict[str, list[str]] = {}
    for query, judged in qrels.items():
        if not queries[query].strip():
            left_out.add("queries that are empty", query)
        elif not any(grade > 0 for grade in judged.values()):
            left_out.add("queries without a relevant document", query)
        elif candidates is not None and query not in candidates:
            left_out.add("queries without documents to be put in order", query)
        else:
            wanted = list(judged) if candidates is None else candidates[query]
            for document in wanted:
                if document not in known:
                    left_out.add("unknown documents to be put in order", document)
            ordered[query] = [document for document in wanted if document in known and not (skip and document == query)]
    texts = corpus.texts(document for ids in ordered.values() for document in ids)
    groups = [
        _group(group, queries, qrels, ordered, texts)
        for group in _grouped(ordered, merged=bool(source.protocol.get("merge_subqueries")))
    ]
    if not groups:
        raise source.nothing_left(left_out)
    return RerankingTask(groups=groups, **{"query_instruction": True} | source.fields(left_out))


def _group(
    members: Sequence[str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    ordered: Mapping[str, Sequence[str]],
    texts: Mapping[str, str],
) -> RerankingGroup:
    """The group of one query, or of several that are judged as one: their judgements are the same."""
    judged = qrels[members[-1]]
    ids = list(dict.fromkeys(document for query in members for document in ordered[query]))
    positives = [(texts[document], judged[document]) for document in ids if judged.get(document, 0) > 0]
    negatives = [texts[document] for document in ids if judged.get(document, 0) <= 0]
    missed = [grade for document, grade in judged.items() if grade > 0 and document not in set(ids)]
    first, *others = members
    return graded_group(
        queries[first], positives, negatives, first, missed=missed, others=[queries[query] for query in others]
    )


def _grouped(ids: Iterable[str], *, merged: bool) -> list[list[str]]:
    """The queries one by one, or those together whose ids differ only behind the last `_`, as mteb merges them."""
    groups: dict[str, list[str]] = {}
    for query in ids:
        groups.setdefault(query.rpartition("_")[0] if merged else query, []).append(query)
    return list(groups.values())
