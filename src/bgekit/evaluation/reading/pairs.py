"""Rows of two texts: with a score (STS), with a label (pair classification), with neither (bitext)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from ...errors import DataError
from ..kinds.bitext import BitextTask
from ..kinds.pairs import PairClassificationTask, StsTask
from .forms import mismatch
from .lines import PAIR_LABELS, SCORES, Exclusions, Line, find_column, find_pair, first_line, read_lines
from .paths import DataFile
from .source import Source

Value = TypeVar("Value")

_EMPTY = "pairs with an empty text"


def read_sts(source: Source) -> StsTask:
    """Pairs with a score on any scale.

    Raises:
        DataError: a row is not such a pair, or all have the same score.
    """
    column = _column(source, SCORES, "sts")
    first, second, scores, left_out = _pairs(source, "sts", lambda line: line.number_of(column), column)
    if len(set(scores)) < 2:
        raise DataError(f"{source.file} has the same score in all {len(scores):,} rows: nothing can be correlated")
    return StsTask(first=first, second=second, scores=scores, **source.fields(left_out))


def read_pair_classification(source: Source) -> PairClassificationTask:
    """Pairs with a label that is 1 or 0.

    Raises:
        DataError: a row is not such a pair, or all have the same label.
    """
    column = _column(source, PAIR_LABELS, "pair_classification")
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


def _column(source: Source, wanted: tuple[str, ...], kind: str) -> str:
    names = list(first_line(source.file).fields)
    column = find_column(names, wanted)
    if column is None:
        raise mismatch(source.file, names, kind)
    return column


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
