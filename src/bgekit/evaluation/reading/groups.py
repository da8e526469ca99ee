"""Rows that hold a group of texts: a query with passages (reranking), a text with summaries (summarisation)."""

from __future__ import annotations

from ..kinds.reranking import RerankingGroup, RerankingTask
from ..kinds.summarization import SummarizationTask, SummaryGroup
from .forms import mismatch
from .lines import IDS, QUERIES, Exclusions, find_column, first_line, read_lines
from .source import Source

POSITIVES = ("positive", "positives", "pos")
NEGATIVES = ("negative", "negatives", "neg")
HUMAN = ("human_summaries",)
MACHINE = ("machine_summaries",)
_RATINGS = ("relevance", "score", "scores")


def read_reranking(source: Source) -> RerankingTask:
    """Queries with passages that belong to them and passages that do not; training rows have the same form.

    A query that lacks either kind is left out, as in MTEB: any order of its passages is right.

    Raises:
        DataError: a row is not such a group, or none has both kinds.
    """
    names = list(first_line(source.file).fields)
    columns = [find_column(names, wanted) for wanted in (QUERIES, POSITIVES, NEGATIVES)]
    query_column, positive_column, negative_column = columns
    if query_column is None or positive_column is None or negative_column is None:
        raise mismatch(source.file, names, "reranking")
    id_column = find_column(names, (*IDS, "query_id", "qid"))
    groups, left_out = [], Exclusions()
    for line in read_lines(source.file):
        query = line.text(query_column)
        positives, negatives = line.texts(positive_column), line.texts(negative_column)
        place = f"line {line.number}"
        if not query.strip():
            left_out.add("queries that are empty", place)
        elif not positives:
            left_out.add("queries without a positive", place)
        elif not negatives:
            left_out.add("queries without a negative", place)
        else:
            own = line.identifier(id_column) if id_column else str(line.number)
            groups.append(RerankingGroup(query, positives, negatives, own))
    if not groups:
        raise source.nothing_left(left_out)
    return RerankingTask(groups=groups, **source.fields(left_out))


def read_summarization(source: Source) -> SummarizationTask:
    """Texts with summaries by people and by machines, the latter rated.

    Raises:
        DataError: a row is not such a group.
    """
    names = list(first_line(source.file).fields)
    human, machine, rating = (find_column(names, wanted) for wanted in (HUMAN, MACHINE, _RATINGS))
    if human is None or machine is None or rating is None:
        raise mismatch(source.file, names, "summarization")
    text_column = find_column(names, ("text",))
    groups, left_out = [], Exclusions()
    for line in read_lines(source.file):
        summaries, ratings = line.texts(machine), line.numbers(rating)
        if len(summaries) != len(ratings):
            raise line.error(f"{len(summaries):,} {machine} have {len(ratings):,} values of {rating}")
        people = line.texts(human)
        if not people or not summaries:
            left_out.add("texts without a summary", f"line {line.number}")
            continue
        groups.append(SummaryGroup(line.text(text_column) if text_column else "", people, summaries, ratings))
    if not groups:
        raise source.nothing_left(left_out)
    return SummarizationTask(groups=groups, **source.fields(left_out))
