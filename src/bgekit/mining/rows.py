"""Training rows in and out of files, with all their fields: what is not understood here is handed on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..encoding.records import read_rows
from ..encoding.rows import STDIN, USUAL, BadRow, Dialect, stem_and_format
from ..errors import ArgumentError, DataError
from ..models.leftovers import check_place
from ..training.examples import EXAMPLE_LINE, Problems, Row, row_of, text_key


@dataclass(frozen=True)
class InputRow:
    """A row of the input.

    Attributes:
        line: Its line in the file, from 1.
        fields: All its fields, as they stand there.
        row: What training makes of it; its `index` counts the rows of the file from 0.
    """

    line: int
    fields: Mapping[str, Any]
    row: Row


def copy_key(text: str) -> int:
    """A signed 64-bit hash of a text, the same for texts that differ in case and white space only."""
    return text_key("".join(text.split()))


def read_training(file: str, dialect: Dialect = USUAL) -> Iterator[InputRow]:
    """The rows of a file of training data.

    Args:
        file: The file.
        dialect: How it is written.

    Raises:
        DataError: a line cannot be used; it names file and line.
    """
    for index, (line, fields) in enumerate(read_rows(file, encoding=dialect.encoding, quoting=dialect.quoting)):
        try:
            yield InputRow(line, fields, replace(row_of(fields), index=index))
        except BadRow as problem:
            raise DataError(f"{file}, line {line}: {problem}") from problem


def check_training(file: str, *, scored_pairs: bool = False, dialect: Dialect = USUAL) -> int:
    """The number of rows of a file of training data, all of which can be used.

    Args:
        file: The file; it is read again later, so it cannot be standard input.
        scored_pairs: Whether rows with `score`, which have no negatives, may be there.
        dialect: How it is written.

    Raises:
        DataError: lines cannot be used: the first ten of them are named, all are counted.
    """
    if file == STDIN:
        raise ArgumentError("the input is read more than once, so it cannot be standard input: write it to a file")
    problems, count = Problems(), 0
    for line, fields in read_rows(
        file, on_bad=lambda line, reason: problems.add(file, line, reason), encoding=dialect.encoding,
        quoting=dialect.quoting,
    ):  # fmt: skip
        try:
            row = row_of(fields)
        except BadRow as problem:
            problems.add(file, line, problem)
            continue
        if row.score is not None and not scored_pairs:
            problems.add(file, line, "a scored pair (a line with `score`) is trained on without negatives")
        try:
            line_of(fields)
        except TypeError as problem:  # A date or bytes of a table.
            problems.add(file, line, f"{problem}; what is handed on has to be text, numbers, lists or objects")
        count += 1
    raise_problems(problems, f"each line is a JSON object such as {EXAMPLE_LINE}")
    if not count:
        raise DataError(f"{file} has no rows; each line is a JSON object such as {EXAMPLE_LINE}")
    return count


def raise_problems(problems: Problems, expected: str) -> None:
    """Raise if there are problems.

    Raises:
        DataError: they are listed, with what is expected.
    """
    if not problems.count:
        return
    raise DataError(
        f"{problems.count:,} {'lines' if problems.count > 1 else 'line'} cannot be used:{problems.listed()}\n"
        f"What is expected: {expected}. Nothing was written."
    )


def line_of(fields: Mapping[str, Any]) -> bytes:
    """A line of JSON in UTF-8."""
    try:
        return (json.dumps(fields, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # A lone surrogate in a field that is handed on: only an escape can carry it.
        return (json.dumps(fields) + "\n").encode()


def check_output(output: str, *inputs: str) -> None:
    """See to it that an output is a file of JSON lines by its name, not also an input, and can be written.

    Raises:
        ArgumentError: it is not.
        OutputError: it cannot be written.
    """
    if output.lower().endswith(".gz") or stem_and_format(output)[1] not in (None, "jsonl"):
        raise ArgumentError(f"the output is JSON lines, and {output} would be read as something else: call it .jsonl")
    for file in inputs:
        if os.path.exists(output) and os.path.exists(file) and os.path.samefile(output, file):
            raise ArgumentError(f"{output} is also an input; give another output")
    check_place(output)
    if os.path.isdir(output):
        raise ArgumentError(
            f"{output} is a folder; the output is a file, such as {os.path.join(output, 'mined.jsonl')}"
        )
