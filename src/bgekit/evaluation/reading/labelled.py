"""Texts with labels: one a row (classification), or a whole problem a row (clustering)."""

from __future__ import annotations

from ...errors import DataError
from ..kinds.classification import ClassificationTask
from ..kinds.clustering import ClusteringTask
from .forms import EXAMPLES, mismatch
from .lines import LABELS, TEXTS, Exclusions, find_column, first_line, read_lines
from .paths import DataFile, find_split
from .source import Source


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
    """Rows of texts with their labels, each a problem; or a text and a label a row, all rows one problem.

    Raises:
        DataError: a row is not such a problem.
    """
    fields = first_line(source.file).fields
    texts_column, labels_column = find_column(fields, ("sentences", "texts")), find_column(fields, ("labels",))
    if texts_column is None or labels_column is None:
        raise mismatch(source.file, list(fields), "clustering")
    sets, left_out = [], Exclusions()
    if isinstance(fields[texts_column], str):
        texts, labels = _rows_of_texts(source.file, (texts_column, labels_column), left_out, "texts that are empty")
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
    names = list(first_line(file).fields)
    text_column, label_column = find_column(names, TEXTS), find_column(names, LABELS)
    if text_column is None or label_column is None:
        raise mismatch(file, names, "classification")
    texts, labels = _rows_of_texts(file, (text_column, label_column), left_out, reason)
    if not texts:
        raise source.nothing_left(left_out)
    return texts, labels


def _rows_of_texts(
    file: DataFile, columns: tuple[str, str], left_out: Exclusions, reason: str
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
