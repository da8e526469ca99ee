"""Rows of two texts: with a score (STS), with a label (pair classification), with neither (bitext)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ...errors import DataError
from ..kinds.bitext import BitextTask
from ..kinds.pairs import PairClassificationTask, StsTask
from .forms import mismatch
from .lines import LABELS, SCORES, Exclusions, Line, find_column, find_pair, first_line, read_lines
from .source import Source

Value = TypeVar("Value")

_EMPTY = "pairs with an empty text"


def read_sts(source: Source) -> StsTask:
    """Pairs with a score on any scale.

    Raises:
        DataError: a row is not such a pair, or all have the same score.
    """
    column = _column(source, SCORES, "sts")
    first, second, scores, left_out = _pairs(source, "sts", lambda line: line.number_of(column))
    if len(set(scores)) < 2:
        raise DataError(f"{source.file} has the same score in all {len(scores):,} rows: nothing can be correlated")
    return StsTask(first=first, second=second, scores=scores, **source.fields(left_out))


def read_pair_classification(source: Source) -> PairClassificationTask:
    """Pairs with a label that is 1 or 0.

    Raises:
        DataError: a row is not such a pair, or all have the same label.
    """
    column = _column(source, LABELS, "pair_classification")
    first, second, labels, left_out = _pairs(source, "pair_classification", lambda line: line.binary(column))
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


def _column(source: Source, wanted: tuple[str, ...], kind: str) -> str:
    names = list(first_line(source.file).fields)
    column = find_column(names, wanted)
    if column is None:
        raise mismatch(source.file, names, kind)
    return column


def _pairs(
    source: Source, kind: str, value: Callable[[Line], Value]
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
    for line in read_lines(source.file):
        one, other, found = line.text(a), line.text(b), value(line)
        if not one.strip() or not other.strip():
            left_out.add(_EMPTY, f"line {line.number}")
            continue
        first.append(one)
        second.append(other)
        values.append(found)
    if not first:
        raise source.nothing_left(left_out)
    return first, second, values, left_out
