"""Rows that hold a group of texts: a query with passages (reranking), a text with summaries (summarisation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..kinds.reranking import RerankingGroup, RerankingTask
from ..kinds.summarization import SummarizationTask, SummaryGroup
from .forms import mismatch
from .lines import IDS, QUERIES, Exclusions, Line, find_column, first_line, normal, read_lines
from .paths import DataFile
from .source import Source

POSITIVES = ("positive", "positives", "pos")
NEGATIVES = ("negative", "negatives", "neg")
#: One list of passages, relevant and not.
PASSAGES = ("passages", "documents", "docs", "candidates")
#: How relevant each passage of a list is.
GRADES = (
    "grades", "relevance", "relevances", "relevance_grades", "relevance_scores", "relevance_labels", "labels", "scores",
    "ratings", "judgements", "judgments", "grade", "label", "score", "rating",
)  # fmt: skip
HUMAN = ("human_summaries",)
MACHINE = ("machine_summaries",)
_RATINGS = ("relevance", "score", "scores")


def read_reranking(source: Source) -> RerankingTask:
    """Queries with passages that belong to them and passages that do not; training rows have the same form.

    A row has two lists (positives and negatives), with grades or without, or one list of passages with a grade each. A
    query that lacks either kind is left out, as in MTEB, unless grades differ: any order of its passages is right.

    Raises:
        DataError: a row is not such a group, or none has both kinds.
    """
    fields = first_line(source.file).fields
    columns = GroupColumns.find(fields)
    if columns is None:
        raise mismatch(source.file, list(fields), "reranking")
    columns = columns.settled(source.file)
    groups, left_out = [], Exclusions()
    for line in read_lines(source.file):
        query, *others = line.texts(columns.query) or [""]
        place = f"line {line.number}"
        passages = columns.passages(line)
        positives = [(text, grade) for text, grade in passages if grade > 0]
        negatives = [text for text, grade in passages if grade <= 0]
        if not query.strip():
            left_out.add("queries that are empty", place)
        elif not positives:
            left_out.add("queries without a positive", place)
        elif not negatives and len({grade for _, grade in positives}) < 2:
            left_out.add("queries without a negative", place)
        else:
            own = line.identifier(columns.id) if columns.id else str(line.number)
            groups.append(graded_group(query, positives, negatives, own, others=others))
    if not groups:
        raise source.nothing_left(left_out)
    return RerankingTask(groups=groups, **source.remarking(*columns.remarks()).fields(left_out))


def graded_group(
    query: str,
    positives: Sequence[tuple[str, int]],
    negatives: Sequence[str],
    own: str,
    *,
    missed: Sequence[int] = (),
    others: Sequence[str] = (),
) -> RerankingGroup:
    """A group whose grades are only there where they say more than that a passage is relevant.

    Args:
        query: The query.
        positives: Relevant passages with their grades.
        negatives: The other passages.
        own: The query's id.
        missed: Grades of relevant passages that are not among those to be put in order.
        others: Further queries of the group.
    """
    grades = [grade for _, grade in positives]
    plain = all(grade == 1 for grade in grades)
    return RerankingGroup(
        query,
        [text for text, _ in positives],
        list(negatives),
        own,
        () if plain else grades,
        tuple(missed),
        tuple(others),
    )


@dataclass(frozen=True)
class GroupColumns:
    """Which columns hold the queries and passages of reranking rows, and the grades of the passages.

    Attributes:
        query: The query, or a list of queries of which each passage counts by its best.
        lists: Lists of passages, each with what its passages are without a grade: 1 relevant, 0 not.
        grades: Lists of grades: one for each list of passages, or one for all of them.
        id: The query's id, None if there is none.
        unused: Columns that could be meant as grades, and are a teacher's scores.
    """

    query: str
    lists: Sequence[tuple[str, int]]
    grades: Sequence[str]
    id: str | None
    unused: Sequence[str] = ()

    @classmethod
    def find(cls, fields: Mapping[str, Any]) -> GroupColumns | None:
        """The columns of rows with these fields, None if they are no such rows."""
        names = list(fields)
        lists = [name for name in names if isinstance(fields[name], list)]
        query, own = find_column(names, QUERIES), find_column(names, (*IDS, "query_id", "qid"))
        positive, negative = find_column(names, POSITIVES), find_column(names, NEGATIVES)
        passages, grades = find_column(lists, PASSAGES), find_column(lists, GRADES)
        if query is None:
            return None
        if positive is None or negative is None:
            return cls(query, [(passages, 0)], [grades], own) if passages and grades else None
        sides = [name for side in (POSITIVES, NEGATIVES) if (name := _grades_of(lists, side))]
        return cls(query, [(positive, 1), (negative, 0)], sides or ([grades] if grades else []), own)

    def settled(self, file: DataFile) -> GroupColumns:
        """The same without `pos_scores` and `neg_scores` where these are a teacher's and no grades.

        FlagEmbedding's training rows have them. Grades are whole numbers, and those of negatives are 0.
        """
        teacher = [name for name in self.grades if normal(name) in ("posscores", "negscores", "scores")]
        for line in read_lines(file) if teacher else ():
            for name in teacher:
                for value in line.numbers(name):
                    if not value.is_integer() or (value > 0 and normal(name) == "negscores"):
                        grades = [name for name in self.grades if name not in teacher]
                        return replace(self, grades=grades, unused=teacher)
        return self

    def passages(self, line: Line) -> list[tuple[str, int]]:
        """The passages of a row with their grades.

        Raises:
            DataError: there is not one whole number for each passage.
        """
        texts = [line.texts(name) for name, _ in self.lists]
        graded = [grade for texts_of, (_, grade) in zip(texts, self.lists, strict=True) for _ in texts_of]
        listed = [(name, line.numbers(name)) for name in self.grades]
        found = [grade for _, grades in listed for grade in grades]
        if broken := next((grade for grade in found if not grade.is_integer()), None):
            raise line.error(f"a grade in {' and '.join(self.grades)} must be a whole number, not {broken}")
        if self.grades and len(found) not in (len(graded), len(texts[0])):
            counts = " and ".join(f"{len(each):,} {name}" for each, (name, _) in zip(texts, self.lists, strict=True))
            raise line.error(f"{counts} have {len(found):,} values of {' and '.join(self.grades)}: give one for each")
        # Grades of the positives alone leave the negatives as they are.
        graded[: len(found)] = map(int, found)
        return list(zip((text for each in texts for text in each), graded, strict=True))

    def remarks(self) -> tuple[str, ...]:
        """What to say of columns that are not used."""
        if not self.unused:
            return ()
        told = f"{' and '.join(self.unused)} are a teacher's scores and no grades: the score does not depend on them"
        return (f"{told}; call people's grades positive_grades and negative_grades",)


def _grades_of(names: Sequence[str], side: Sequence[str]) -> str | None:
    """The column of grades of the positives or of the negatives."""
    return find_column(names, [f"{part}_{grade}" for grade in GRADES for part in side])


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
