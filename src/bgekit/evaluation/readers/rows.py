"""Rows of one split -> a task: a reader for each kind, and the kind that the fields of a row tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from ...data.columns import (
    IDS,
    LABELS,
    PAIR_LABELS,
    QUERIES,
    SCORES,
    TEXTS,
    Exclusion,
    Exclusions,
    Line,
    find_column,
    find_pair,
    first_line,
    normal,
    read_lines,
)
from ...data.formats import listing
from ...data.splits import DataFile, Folder, find_split
from ...errors import SHOWN, DataError, in_lines
from ..judged_model import Kind
from ..tasks.base import Task
from ..tasks.bitext import BitextTask
from ..tasks.classification import ClassificationTask
from ..tasks.clustering import ClusteringTask
from ..tasks.pairs import PairClassificationTask, StsTask
from ..tasks.reranking import RerankingGroup, RerankingTask
from ..tasks.summarization import SummarizationTask, SummaryGroup


@dataclass(frozen=True)
class Wanted:
    """Name, kind and subset of a data set, as far as a caller knows them before it is read.

    Attributes:
        name: Its name; "" for that of its folder or its description.
        kind: What it is; None to see it from its content.
        subset: The one of its subsets (configurations, languages) that is wanted, such as `en`.
    """

    name: str = ""
    kind: Kind | None = None
    subset: str = ""


#: Whatever is there.
ANY: Final = Wanted()


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        name: The task's name.
        split: Its name.
        file: The file with its rows.
        folder: Where it stands, with files of other splits.
        facts: Fields of `Task` that are known, such as `published`.
        protocol: Fields of the kind's own class that are known, such as `samples_per_label`.
        remarks: What was noticed before its rows were read.
    """

    name: str
    split: str
    file: DataFile
    folder: Folder
    facts: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def fields(self, exclusions: Exclusions, *names: str) -> dict[str, Any]:
        """The fields of a task that do not depend on its kind, and those of the protocol that have these names."""
        left_out: tuple[Exclusion, ...] = exclusions.listed()
        known = {"comparable": False} | dict(self.facts)
        protocol = {name: value for name, value in self.protocol.items() if name in names}
        known["remarks"] = (*known.get("remarks", ()), *self.remarks, *self._of_languages())
        return {"name": self.name, "split": self.split, "exclusions": left_out} | known | protocol

    def _of_languages(self) -> Iterator[str]:
        """A remark where rows are of several languages, once they are read."""
        if len(found := sorted(self.file.languages)) > 1:
            yield (
                f"its rows are of {len(found)} languages ({listing(found)}) and were scored together, as one task; a "
                "file or folder per language gives a score for each"
            )

    def remarking(self, *remarks: str) -> Source:
        """This source with further remarks."""
        return replace(self, remarks=(*self.remarks, *remarks))

    def nothing_left(self, exclusions: Exclusions) -> DataError:
        """The error for data of which no item can be used."""
        return DataError(f"{self.file} leaves nothing to evaluate: {exclusions}")


#: By task type, and by form where a type has several.
EXAMPLES: Final = {
    "retrieval": (
        'a folder with corpus.jsonl {"_id": "d1", "title": "", "text": "..."}, queries.jsonl {"_id": "q1", "text": '
        '"..."} and qrels/test.tsv: a header query-id, corpus-id, score and lines such as q1, d1, 1, with tabs between'
    ),
    "retrieval (FlagEmbedding 1.4)": (
        'a folder with corpus.jsonl {"id": "d1", "title": "", "text": "..."}, test_queries.jsonl {"id": "q1", "text": '
        '"..."} and test_qrels.jsonl {"qid": "q1", "docid": "d1", "relevance": 1}'
    ),
    "retrieval (FlagEmbedding 1.2)": (
        'a folder with corpus.jsonl {"content": "..."} and queries.jsonl {"query": "...", "positive": ["..."]}'
    ),
    "reranking": '{"query": "...", "positive": ["..."], "negative": ["...", "..."]}',
    "reranking (training rows)": '{"query": "...", "pos": ["..."], "neg": ["...", "..."]}',
    "sts": '{"sentence1": "...", "sentence2": "...", "score": 4.2}',
    "pair_classification": '{"sentence1": "...", "sentence2": "...", "label": 1}',
    "classification": 'test.jsonl and train.jsonl with {"text": "...", "label": "sport"}',
    "bitext": '{"sentence1": "...", "sentence2": "..."}: line i of one translates line i of the other',
    "clustering": '{"sentences": ["...", "..."], "labels": ["a", "b"]}',
    "summarization": (
        '{"text": "...", "human_summaries": ["..."], "machine_summaries": ["...", "..."], "relevance": [3.5, 2.0]}'
    ),
}


class UnknownForm(DataError):
    """A file or folder fits no form."""


def unfit(place: str, seen: Sequence[str], advice: str = "") -> UnknownForm:
    """The error for data of no known form.

    Args:
        place: File or folder.
        seen: What is there.
        advice: What is most likely missing.
    """
    end = "\n" if len(seen) > 1 else ". " if advice else "."
    expected = "\n".join(f"  {form}: {example}" for form, example in EXAMPLES.items())
    return UnknownForm(
        f"{place} fits no known form of evaluation data. Seen:{in_lines(seen)}{end}{advice}\n"
        f"Expected: a folder of <split>.jsonl (or csv, tsv, parquet, each also .gz), or one such file, "
        f"with one of these forms, or a folder with such folders:\n{expected}"
    )


def mismatch(file: DataFile, names: list[str], kind: str) -> DataError:
    """The error for a file that lacks the columns of the kind that it is to be."""
    return DataError(f"{file} has the fields {listing(names)}; {kind} needs {EXAMPLES[kind]}")


def seen_in(folder: Folder) -> list[str]:
    """Content of a folder, for messages."""
    files = [file for named in folder.files.values() for file in named]
    parts = [seen_file(file) for file in files[:SHOWN]]
    if len(files) > SHOWN:
        parts.append(f"{len(files) - SHOWN:,} more files of data")
    others = [*folder.others, *(f"{name}/" for name in folder.folders)]
    if others:
        parts.append(listing(others))
    return parts or ["nothing"]


def seen_file(file: DataFile) -> str:
    """The fields of a file's first line, for messages."""
    try:
        return f"{file} with the fields {listing(list(first_line(file).fields))}"
    except DataError as problem:
        return str(problem)


Value = TypeVar("Value")
#: Texts of a clustering problem, and their labels.
_PROBLEM: Final = (("sentences", "texts"), ("labels",))
_EMPTY = "pairs with an empty text"


def read_sts(source: Source) -> StsTask:
    """Pairs with a score on any scale.

    Raises:
        DataError: a row is not such a pair, or all have the same score.
    """
    (column,) = _columns(source.file, "sts", SCORES)
    first, second, scores, left_out = _pairs(source, "sts", lambda line: line.number_of(column), column)
    if len(set(scores)) < 2:
        raise DataError(f"{source.file} has the same score in all {len(scores):,} rows: nothing can be correlated")
    return StsTask(first=first, second=second, scores=scores, **source.fields(left_out))


def read_pair_classification(source: Source) -> PairClassificationTask:
    """Pairs with a label that is 1 or 0.

    Raises:
        DataError: a row is not such a pair, or all have the same label.
    """
    (column,) = _columns(source.file, "pair_classification", PAIR_LABELS)
    first, second, labels, left_out = _pairs(source, "pair_classification", lambda line: line.binary(column), column)
    if len(set(labels)) < 2:
        raise DataError(f"{source.file} has the label {labels[0]} in all {len(labels):,} rows: both 0 and 1 are needed")
    return PairClassificationTask(first=first, second=second, labels=labels, **source.fields(left_out))


def read_bitext(source: Source) -> BitextTask:
    """Pairs of which one text translates the other.

    Raises:
        DataError: a row is not such a pair.
    """
    first, second, _, left_out = _pairs(source, "bitext", lambda line: None)
    return BitextTask(first=first, second=second, **source.fields(left_out))


def _pair_lines(file: DataFile, columns: Sequence[str]) -> Iterator[tuple[Line, str]]:
    """Rows of one pair, and where each stands in its file.

    A row may hold all pairs, as lists of equal length: the pair classifications of MTEB and C-MTEB once did.

    Raises:
        DataError: lists of a row differ in length.
    """
    for line in read_lines(file):
        lists = [line.fields.get(name) for name in columns]
        if not any(isinstance(each, list) for each in lists):
            yield line, f"line {line.number}"
            continue
        lengths = [len(each) if isinstance(each, list) else 0 for each in lists]
        if len(set(lengths)) > 1:
            counts = " and ".join(f"{length:,} {name}" for length, name in zip(lengths, columns, strict=True))
            raise line.error(f"it has {counts}: as many of each are expected")
        for number, values in enumerate(zip(*lists, strict=True), 1):  # type: ignore[arg-type]
            yield replace(line, fields=dict(zip(columns, values, strict=True))), f"line {line.number}, pair {number}"


def _columns(file: DataFile, kind: str, *wanted: tuple[str, ...]) -> list[str]:
    """The columns of a file, each by its possible names.

    Raises:
        DataError: one is not there.
    """
    names = list(first_line(file).fields)
    found = [column for each in wanted if (column := find_column(names, each))]
    if len(found) < len(wanted):
        raise mismatch(file, names, kind)
    return found


def _pairs(
    source: Source, kind: str, value: Callable[[Line], Value], *more: str
) -> tuple[list[str], list[str], list[Value], Exclusions]:
    names = list(first_line(source.file).fields)
    columns = find_pair(names)
    if not columns:
        raise mismatch(source.file, names, kind)
    if len(columns) > 1:
        listed = " or ".join(f"{a} and {b}" for a, b in columns)
        raise DataError(f"{source.file}: it is not clear which columns are the pair, {listed}; leave one pair out")
    ((a, b),) = columns
    first, second, values, left_out = [], [], [], Exclusions()
    for line, place in _pair_lines(source.file, (a, b, *more)):
        one, other, found = line.text(a), line.text(b), value(line)
        if not one.strip() or not other.strip():
            left_out.add(_EMPTY, place)
            continue
        first.append(one)
        second.append(other)
        values.append(found)
    if not first:
        raise source.nothing_left(left_out)
    return first, second, values, left_out


def read_classification(source: Source) -> ClassificationTask:
    """Texts with labels, and those of the train split to learn from.

    Raises:
        DataError: a row is not such a text, there is no train split, or the two have no label in common.
    """
    train = find_split(source.folder.files, "train")
    if train is None or source.folder.file(train) == source.file:
        what = "is the train split itself" if train else "has no train split beside it"
        raise DataError(
            f"{source.file} {what}: classification learns from a few texts of each label and is scored on others. "
            f"Expected {EXAMPLES['classification']}"
        )
    left_out = Exclusions()
    texts, labels = _labelled(source, source.file, left_out, "texts that are empty")
    train_file = source.folder.file(train)
    train_texts, train_labels = _labelled(source, train_file, left_out, "train texts that are empty")
    if set(labels).isdisjoint(train_labels):
        raise DataError(
            f"{source.file} and {train_file} have no label in common: the one has {_some(labels)}, the other "
            f"{_some(train_labels)}"
        )
    return ClassificationTask(
        texts=texts, labels=labels, train_texts=train_texts, train_labels=train_labels,
        **source.fields(left_out, "samples_per_label", "experiments", "seed"),
    )  # fmt: skip


def read_clustering(source: Source) -> ClusteringTask:
    """Rows of texts with their labels, each a problem; or a text and a label per row, all rows one problem.

    Raises:
        DataError: a row is not such a problem.
    """
    texts_column, labels_column = columns = _columns(source.file, "clustering", *_PROBLEM)
    sets, left_out = [], Exclusions()
    if isinstance(first_line(source.file).fields[texts_column], str):
        texts, labels = _rows_of_texts(source.file, columns, left_out, "texts that are empty")
        return ClusteringTask(sets=[(texts, labels)], **source.fields(left_out, "seed"))
    for line in read_lines(source.file):
        texts, labels = line.texts(texts_column), line.labels(labels_column)
        if len(texts) != len(labels):
            raise line.error(f"{len(texts):,} {texts_column} have {len(labels):,} {labels_column}")
        kept = []
        for place, (text, label) in enumerate(zip(texts, labels, strict=True)):
            if text.strip():
                kept.append((text, label))
            else:
                left_out.add("texts that are empty", f"line {line.number}, text {place + 1}")
        if kept:
            sets.append(([text for text, _ in kept], [label for _, label in kept]))
        else:
            left_out.add("problems without a text", f"line {line.number}")
    if not sets:
        raise source.nothing_left(left_out)
    return ClusteringTask(sets=sets, **source.fields(left_out, "seed"))


def _labelled(source: Source, file: DataFile, left_out: Exclusions, reason: str) -> tuple[list[str], list[str]]:
    texts, labels = _rows_of_texts(file, _columns(file, "classification", TEXTS, LABELS), left_out, reason)
    if not texts:
        raise source.nothing_left(left_out)
    return texts, labels


def _rows_of_texts(
    file: DataFile, columns: Sequence[str], left_out: Exclusions, reason: str
) -> tuple[list[str], list[str]]:
    """Texts and labels of rows with one of each."""
    texts, labels = [], []
    for line in read_lines(file):
        text, label = line.text(columns[0]), line.label(columns[1])
        if text.strip():
            texts.append(text)
            labels.append(label)
        else:
            left_out.add(reason, f"line {line.number}")
    return texts, labels


def _some(labels: list[str]) -> str:
    return ", ".join(sorted(set(labels))[:5])


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
        missed: Grades of relevant passages that are not among those to rerank.
        others: Further queries of the group.
    """
    grades = [grade for _, grade in positives]
    plain = all(grade == 1 for grade in grades)
    texts = [text for text, _ in positives]
    return RerankingGroup(query, texts, list(negatives), own, () if plain else grades, tuple(missed), tuple(others))


@dataclass(frozen=True)
class GroupColumns:
    """Columns of reranking rows: queries, passages, and the grades of the passages.

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
        """These columns without `pos_scores` and `neg_scores` where these are a teacher's and no grades.

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
        """Remarks on columns that are not used."""
        if not self.unused:
            return ()
        told = f"{' and '.join(self.unused)} are a teacher's scores, not grades: the score does not depend on them"
        return (f"{told}; call people's grades positive_grades and negative_grades",)


def _grades_of(names: Sequence[str], side: Sequence[str]) -> str | None:
    """The column of grades of the positives or of the negatives."""
    return find_column(names, [f"{part}_{grade}" for grade in GRADES for part in side])


def read_summarization(source: Source) -> SummarizationTask:
    """Texts with summaries by people and by machines, the latter rated.

    Raises:
        DataError: a row is not such a group.
    """
    human, machine, rating = _columns(source.file, "summarization", HUMAN, MACHINE, _RATINGS)
    text_column = find_column(first_line(source.file).fields, ("text",))
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


#: The reader of each kind that stands in one file a split.
READERS: Final[Mapping[Kind, Callable[[Source], Task]]] = {
    "sts": read_sts,
    "pair_classification": read_pair_classification,
    "bitext": read_bitext,
    "classification": read_classification,
    "clustering": read_clustering,
    "reranking": read_reranking,
    "summarization": read_summarization,
}


def kind_of_rows(file: DataFile) -> Kind | None:
    """The kind of task whose rows have the fields of a file's first row; None if there is none.

    Raises:
        DataError: the file cannot be read, or its fields fit two kinds.
    """
    fields = first_line(file).fields
    columns = list(fields)

    def has(wanted: tuple[str, ...]) -> bool:
        return find_column(columns, wanted) is not None

    if GroupColumns.find(fields) is not None:
        return "reranking"
    if has(HUMAN) and has(MACHINE):
        return "summarization"
    if all(map(has, _PROBLEM)):
        return "clustering"
    if find_pair(columns):
        if has(SCORES) and has(PAIR_LABELS):
            raise DataError(
                f"{file} has pairs with both a score (sts) and a label (pair_classification): leave one of the two out"
            )
        return "sts" if has(SCORES) else "pair_classification" if has(PAIR_LABELS) else "bitext"
    return "classification" if has(TEXTS) and has(LABELS) else None


def read_rows_task(source: Source, kind: Kind | None = None) -> Task | None:
    """The task that a file's rows make; None if they make none.

    Args:
        source: The file.
        kind: What the rows are, where columns alone do not tell.

    Raises:
        DataError: the file cannot be read, or a row is not like the first one.
    """
    kind = kind or kind_of_rows(source.file)
    if kind is None:
        return None
    return READERS[kind](replace(source, facts={"query_instruction": kind == "reranking"} | dict(source.facts)))
