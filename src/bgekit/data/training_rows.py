"""Rows of training data in the BGE form, checked, and what a row becomes when it is drawn.

A line is `{"query": str, "pos": [str], "neg": [str], "pos_scores": [float], "neg_scores": [float], "prompt": str,
"type": str, "batch_size": int, "score": float}`; all but `query` and `pos` may be left out or null, and further
fields are ignored. `score` makes a scored pair of a line: its query and its only `pos` have that similarity. Such a
line may also be `{"sentence1": str, "sentence2": str, "score": float}`, as data of semantic similarity mostly is.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..errors import SHOWN, ArgumentError, DataError, in_lines
from ..files.atomic import check_place, write_together
from .formats import STDIN, USUAL, BadRow, Dialect, listing, shown, stem_and_format
from .records import read_rows
from .unicode import repair

#: UTF-8 bytes of all texts of a row. More is no training example but a file in a wrong form, and would stop a step.
LONGEST_ROW: Final = 8 << 20
EXAMPLE_LINE: Final = '{"query": "capital of France", "pos": ["Paris is ..."], "neg": ["Rome is ...", "Lyon is ..."]}'
#: Types with rules of their own (FlagEmbedding 1.4): one negative; as many passages as there are classes;
#: the query's instruction before passages, too.
ONE_NEGATIVE: Final = "only_1neg"
CLASSES: Final = "symmetric_class"
PROMPTED_PASSAGES: Final = frozenset({"symmetric_sts", "symmetric_clustering"})


@dataclass(frozen=True)
class Row:
    """A line of training data.

    Attributes:
        query: Never blank.
        positives: At least one, never blank.
        negatives: Any number.
        pos_scores: A teacher's score of each positive.
        neg_scores: A teacher's score of each negative.
        prompt: Instruction of this row's query, "" for none, None for the model's own.
        type: One of FlagEmbedding's types, such as `only_1neg` or `symmetric_sts`.
        score: Similarity of query and positive, for a scored pair.
        batch_size: Rows of a batch of its dataset, where the data says so.
        dataset: Number of its dataset.
        index: Number of the row over all data, the same in every run on the same files.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    type: str | None = None
    score: float | None = None
    batch_size: int | None = None
    dataset: int = 0
    index: int = 0

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher has scored all passages."""
        return self.pos_scores is not None and (self.neg_scores is not None or not self.negatives)

    @property
    def digest(self) -> int:
        """64 bits of a hash of what is trained on: equal rows have equal digests."""
        parts = [self.query, self.prompt or "", repr(self.score), *self.positives, "", *self.negatives]
        return hash64("\0".join(parts).encode())


def text_key(text: str) -> int:
    """A signed 64-bit hash of a text, the same for texts that differ in case and white space only.

    Whether two texts are the same to a model is another question, which its tokenizer answers: see `Collator.keys`.
    """
    return hash64(" ".join(text.casefold().split()).encode())


def hash64(content: bytes) -> int:
    """A signed 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def row_of(fields: Mapping[str, Any]) -> Row:
    """The row that a line's fields make.

    Raises:
        BadRow: they make none; it says why.
    """
    if "sentence1" in fields and "query" not in fields:
        return _scored_pair(fields)
    query = _text("query", _required(fields, "query"))
    positives = _texts("pos", _required(fields, "pos"))
    if not positives:
        raise BadRow("pos is empty: a row needs at least one positive passage")
    negatives = _texts("neg", [] if fields.get("neg") is None else fields["neg"])
    _check_size(query, *positives, *negatives)
    score = None if fields.get("score") is None else _number("score", fields["score"])
    if score is not None and (len(positives) != 1 or negatives):
        raise BadRow(
            f"a scored pair (a line with `score`) has one pos and no neg, not {len(positives)} and {len(negatives)}"
        )
    return Row(
        query=query,
        positives=positives,
        negatives=negatives,
        pos_scores=_scores(fields, "pos", len(positives)),
        neg_scores=_scores(fields, "neg", len(negatives)),
        prompt=_optional_text(fields, "prompt"),
        type=_optional_text(fields, "type"),
        score=score,
        batch_size=_batch_size(fields),
    )


def _scored_pair(fields: Mapping[str, Any]) -> Row:
    """Two sentences of one kind, both with the row's prompt, or both with none."""
    first, second = (_text(name, _required(fields, name)) for name in ("sentence1", "sentence2"))
    _check_size(first, second)
    prompt = _optional_text(fields, "prompt") or ""
    score = _number("score", _required(fields, "score"))
    return Row(first, (second,), prompt=prompt, type=_optional_text(fields, "type") or "symmetric_sts", score=score)


def _check_size(*texts: str) -> None:
    size = sum(len(text.encode()) for text in texts)
    if size > LONGEST_ROW:
        raise BadRow(f"its texts have {size:,} bytes, more than {LONGEST_ROW:,}: is this one document a line?")


def _required(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise BadRow(f"no field {name}; it has {listing(list(fields))}")
    return fields[name]


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} must be a string, not {shown(value)}")
    if not value or value.isspace():
        raise BadRow(f"{name} is {'blank' if value else 'an empty string'}")
    # A lone surrogate is no Unicode: neither Arrow nor a tokenizer takes it.
    return repair(value)[0]


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise BadRow(f"{name} must be a list of strings, not {shown(value)}")
    return tuple(_text(f"{name}[{position}]", text) for position, text in enumerate(value))


def _optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return None if value is None else repair(value)[0]
    raise BadRow(f"{name} must be a string, not {shown(value)}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{name} must be a number, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(f"{name} must be a finite number, not {value!r:.60}")
    return number


def _scores(fields: Mapping[str, Any], name: str, count: int) -> tuple[float, ...] | None:
    values = fields.get(f"{name}_scores")
    if values is None:
        return None
    if not isinstance(values, list):
        raise BadRow(f"{name}_scores must be a list of numbers, not {shown(values)}")
    if len(values) != count:
        raise BadRow(f"{name}_scores has {len(values)} numbers for {count} texts in {name}")
    return tuple(_number(f"{name}_scores[{position}]", value) for position, value in enumerate(values))


def _batch_size(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("batch_size")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise BadRow(f"batch_size must be a whole number of at least 1, not {shown(value)}")
    return value


@dataclass
class Problems:
    """Lines that cannot be trained on: the first ten in full, all counted."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, file: str, line: int, reason: object) -> None:
        """Note a line of a file; line 0 stands for the file as a whole."""
        self.count += 1
        if len(self.shown) < SHOWN:
            place = f"{file}, line {line}" if line else file
            self.shown.append(f"{place}: {reason}" if line or file not in str(reason) else str(reason))

    def listed(self) -> str:
        """Them for the end of a message, in a line each."""
        return in_lines(self.shown, self.count)

    def check(self) -> None:
        """Raise if there are any.

        Raises:
            DataError: the lines, what is expected, and an example.
        """
        if not self.count:
            return
        raise DataError(
            f"{self.count:,} {'problems' if self.count > 1 else 'problem'} in the training data:{self.listed()}\n"
            f"Each line is a JSON object such as {EXAMPLE_LINE}; nothing was trained."
        )


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


def write_lines(output: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows to a file; until they are complete, what was there before stays.

    Raises:
        OutputError: it cannot be written.
    """
    write_together([(output, map(line_of, rows))])
