"""Which kind of task the rows of a file make, by their fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from ...errors import DataError
from ..task import Kind, Task
from .groups import HUMAN, MACHINE, GroupColumns, read_reranking, read_summarization
from .labelled import read_classification, read_clustering
from .lines import LABELS, PAIR_LABELS, SCORES, TEXTS, find_column, find_pair, first_line
from .pairs import read_bitext, read_pair_classification, read_sts
from .paths import DataFile
from .source import Source

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

    def has(wanted: Iterable[str]) -> bool:
        return find_column(columns, tuple(wanted)) is not None

    if GroupColumns.find(fields) is not None:
        return "reranking"
    if has(HUMAN) and has(MACHINE):
        return "summarization"
    if has(("sentences", "texts")) and has(("labels",)):
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
        DataError: the file cannot be read, or a row is not what the first one promises.
    """
    kind = kind or kind_of_rows(source.file)
    if kind is None:
        return None
    return READERS[kind](replace(source, facts={"query_instruction": kind == "reranking"} | dict(source.facts)))
