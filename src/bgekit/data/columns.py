"""The one reader of rows: lines of data files with their place, fields by type, and one list of the lines that are bad.

Columns go by several names; `sentence1`, `Sentence_1` and `sentence 1` are one.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

from ..errors import SHOWN, DataError, in_lines
from .encodings import repair
from .formats import (
    TEXT_FIELDS,
    USUAL,
    BadRow,
    Dialect,
    Position,
    check_format,
    checked_size,
    file_rows,
    listing,
    shown,
)
from .splits import DataFile

logger = logging.getLogger(__name__)
Made = TypeVar("Made")
#: Labels of natural language inference.
THREE_WAY: Final = frozenset({"entailment", "neutral", "contradiction"})
#: The column of data in several languages that says a row's own.
LANGUAGE: Final = "lang"
IDS: Final = ("_id", "id")
TITLES: Final = ("title",)
TEXTS: Final = (*TEXT_FIELDS, "sentence")
LABELS: Final = ("label", "category", "class", "intent")
#: Of pairs; a row that holds all of them has lists.
PAIR_LABELS: Final = (*LABELS, "labels")
SCORES: Final = ("score", "similarity", "similarity_score", "relatedness_score")
QUERIES: Final = ("query", "question")
#: The two columns of a pair.
PAIRS: Final = (
    ("sentence1", "sentence2"), ("text1", "text2"), ("sent1", "sent2"), ("s1", "s2"), ("question1", "question2"),
    ("sentence_a", "sentence_b"), ("text_a", "text_b"), ("first", "second"), ("premise", "hypothesis"),
    ("query", "passage"), ("query", "document"), ("question", "answer"), ("source", "target"),
    ("src", "tgt"),
)  # fmt: skip
#: How the files are written that are being read: asked for at the entry, and needed where a file is opened.
written: Final = ContextVar("written", default=USUAL)
#: Examples that an exclusion names.
_EXAMPLES: Final = 5
#: Whether the first bad line is an error, or they are left out.
OnError: TypeAlias = Literal["raise", "skip"]
#: Bad lines kept in memory; all are counted.
_LISTED: Final = 10_000
#: Bad lines that are logged one by one.
_LOGGED: Final = 20


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a file.

    Attributes:
        file: As the user named it.
        number: Its line, from 1 (in Parquet files the row).
        fields: Fields by name.
    """

    file: str
    number: int
    fields: Mapping[str, Any]

    def error(self, reason: str) -> BadRow:
        """An error that says where this line is."""
        return BadRow(reason, f"{self.file}, line {self.number}")

    def value(self, *names: str) -> Any:
        """The first field of these names; there must be one."""
        for name in names:
            if name in self.fields:
                return self.fields[name]
        raise self.error(f"no field {names[0]}; it has {listing(list(self.fields))}")

    def text(self, name: str) -> str:
        """A field that must be a string."""
        return self.string(f"the field {name}", self.value(name))

    def texts(self, name: str) -> list[str]:
        """A field that must be a list of strings; one string is a list of one."""
        if isinstance(value := self.value(name), str):
            return [value]
        for element in (value := self._list(name, "strings")):
            if not isinstance(element, str):
                raise self.error(f"the field {name} must be a list of strings, not of {shown(element)}")
        return value

    def number_of(self, name: str) -> float:
        """A field that must be a number."""
        return self._number(name, self.value(name))

    def numbers(self, name: str) -> list[float]:
        """A field that must be a list of numbers."""
        return [self._number(name, element) for element in self._list(name, "numbers")]

    def label(self, name: str) -> str:
        """A field that names a class: a string, a whole number, true or false."""
        return self._label(name, self.value(name))

    def labels(self, name: str) -> list[str]:
        """A field that must be a list of names of classes."""
        return [self._label(name, element) for element in self._list(name, "labels")]

    def binary(self, name: str) -> int:
        """A field that must be 0 or 1."""
        value = self.value(name)
        for wanted in (0, 1):
            if value == wanted or (isinstance(value, str) and value.strip() == str(wanted)):
                return wanted
        if isinstance(value, str) and value.strip().lower() in THREE_WAY:
            raise self.error(
                f"the {name} {value!r} is one of three (entailment, neutral, contradiction), and pair classification "
                "needs two: make entailment 1 and contradiction 0, and leave out neutral"
            )
        hint = "" if isinstance(value, str) else "; degrees of similarity belong in a column called score"
        raise self.error(f"the {name} must be 1 (they belong together) or 0, not {shown(value)}{hint}")

    def identifier(self, name: str) -> str:
        """A field that must be an id: a string that is not empty, or a whole number."""
        return self._identifier(name, self.value(name))

    def _identifier(self, name: str, value: Any) -> str:
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
        raise self.error(f"the id {name} must be a string or a whole number, not {shown(value)}")

    def identifiers(self, name: str) -> list[str]:
        """A field that must be a list of ids."""
        return [self._identifier(name, element) for element in self._list(name, "ids")]

    def string(self, called: str, value: Any, hint: str = "") -> str:
        """A value that must be a string.

        Args:
            called: What messages call it.
            value: The value.
            hint: The end of the message.
        """
        if not isinstance(value, str):
            raise self.error(f"{called} must be a string, not {shown(value)}{hint}")
        return value

    def content(self, called: str, value: Any) -> str:
        """A value that must be a string that is not blank, as valid Unicode, which Arrow and tokenizers need."""
        text = self.string(called, value)
        if not text or text.isspace():
            raise self.error(f"{called} is {'blank' if text else 'an empty string'}")
        return repair(text)[0]

    def contents(self, called: str, value: Any) -> tuple[str, ...]:
        """A value that must be a list of such strings."""
        if not isinstance(value, list):
            raise self.error(f"{called} must be a list of strings, not {shown(value)}")
        return tuple(self.content(f"{called}[{position}]", text) for position, text in enumerate(value))

    def finite(self, called: str, value: Any) -> float:
        """A value that must be a finite number, not one in a string."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{called} must be a number, not {shown(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(f"{called} must be a finite number, not {value!r:.60}")
        return number

    def _list(self, name: str, kind: str) -> list[Any]:
        value = self.value(name)
        if not isinstance(value, list):
            raise self.error(f"the field {name} must be a list of {kind}, not {shown(value)}")
        return value

    def _number(self, name: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(f"the field {name} must be a number, not {shown(value)}")
        return number

    def _label(self, name: str, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # What a table makes of whole numbers when one of its cells is empty.
        if isinstance(value, str | int) and value != "":
            return str(value)
        raise self.error(f"the field {name} must be a label (a name or a whole number), not {shown(value)}")


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used; line 0 stands for the file as a whole."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        if self.line:
            return f"{self.file}, line {self.line}: {self.reason}"
        return self.reason if self.file in self.reason else f"{self.file}: {self.reason}"


class BadLines:
    """Lines that cannot be used, and what becomes of them.

    Args:
        fate: `raise`: the first is an error. One at the very beginning waits for the next line: to leave such lines
            out is advice where there are good ones, and none where it would leave out all.
            `skip`: they are left out; the first 20 are logged.
            `list`: they are left out until `check` makes one error of them all.

    Attributes:
        count: All that were left out.
        files: Those of them that are files as a whole.
        lines: The first 10,000 of them.
    """

    def __init__(self, fate: Literal["raise", "skip", "list"] = "list") -> None:
        self.count = self.files = 0
        self.lines: list[BadLine] = []
        self._fate = fate
        self._waiting: BadLine | None = None
        self._any_good = False

    def add(self, file: str, line: int, reason: object) -> None:
        """A line that cannot be used; line 0 for a file as a whole.

        Raises:
            DataError: it, or an earlier one, is an error.
        """
        bad = BadLine(file, line, reason.reason if isinstance(reason, BadRow) else str(reason))
        if self._fate == "raise":
            if self._any_good or self._waiting is not None:
                raise self._error(self._waiting or bad)
            self._waiting = bad
            return
        self._count(bad, log=self._fate == "skip")

    def leave_out(self, file: str, reason: object, *, told: bool = False) -> None:
        """A file as a whole that cannot be used and was not asked for by its name: it is left out in any case.

        Args:
            file: The file.
            reason: Why.
            told: Whether that has been said already.
        """
        self.files += 1
        self._count(BadLine(file, 0, str(reason)), log=not told)

    def _count(self, bad: BadLine, *, log: bool) -> None:
        self.count += 1
        if self.count <= _LISTED:
            self.lines.append(bad)
        if log and self.count <= _LOGGED:
            logger.warning("skipped %s", bad)
        elif log and self.count == _LOGGED + 1:
            logger.warning("more is skipped; from here on it is only counted")

    def __str__(self) -> str:
        lines = self.count - self.files
        counts = [(lines, "line"), (self.files, "file")]
        return " and ".join(f"{count:,} {noun}{'s' if count > 1 else ''}" for count, noun in counts if count)

    def good(self) -> None:
        """A line that can be used.

        Raises:
            DataError: an earlier one could not.
        """
        self._any_good = True
        if self._waiting is not None:
            raise self._error(self._waiting)

    def end(self) -> None:
        """There is no further line.

        Raises:
            DataError: the only one could not be used.
        """
        if self._waiting is not None:
            raise self._error(self._waiting)

    def _error(self, line: BadLine) -> DataError:
        return DataError(f"{line} (--on-error skip leaves such lines out)" if self._any_good else str(line))

    def usable(self, lines: Iterable[Line], make: Callable[[Line], Made]) -> Iterator[tuple[Line, Made]]:
        """Lines with what is made of them; those of which nothing can be made are added here.

        Args:
            lines: The lines.
            make: Makes something of a line; raises BadRow where it cannot.
        """
        for line in lines:
            try:
                made = make(line)
            except BadRow as reason:
                self.add(line.file, line.number, reason)
            else:
                self.good()
                yield line, made
        self.end()

    def check(self, noun: str, what: str, advice: str = "") -> None:
        """Raise if there are any.

        Args:
            noun: One of them, such as "line"; more have an s.
            what: Of them, such as "cannot be used".
            advice: The end of the message.

        Raises:
            DataError: the first ten, and how many there are.
        """
        if self.count:
            plural = "s" if self.count > 1 else ""
            raise DataError(f"{self.count:,} {noun}{plural} {what}:{in_lines(self.lines[:SHOWN], self.count)}{advice}")


@contextmanager
def files_written(dialect: Dialect) -> Generator[None, None, None]:
    """While this is open, files are read as written in a dialect."""
    token = written.set(dialect)
    try:
        yield
    finally:
        written.reset(token)


def read_file(
    path: str | os.PathLike[str],
    dialect: Dialect | None = None,
    *,
    format: str | None = None,
    bad: BadLines | None = None,
) -> Generator[Line, None, None]:
    """The rows of one file of any format, each with all its fields; a line of plain text is `{"text": line}`.

    Args:
        path: The file, `-` for standard input.
        dialect: How it is written; by default as `files_written` says.
        format: As in `read_records`.
        bad: Collects lines that are not rows; by default the first of them is an error.

    Raises:
        DataError: the file or a line of it cannot be read; it names file and line.
    """
    name = os.fspath(path)
    check_format(format)
    checked_size(name)
    for number, row in file_rows(name, format, list, Position(), dialect or written.get()):
        if not isinstance(row, BadRow):
            yield Line(name, number, {TEXT_FIELDS[0]: row} if isinstance(row, str) else row)
        elif bad is None:
            raise BadRow(row.reason, f"{name}, line {number}") from row
        else:
            bad.add(name, number, row)


def read_lines(file: DataFile, dialect: Dialect | None = None) -> Generator[Line, None, None]:
    """The rows of a data file, those of its shards one after another, by default written as `files_written` says.

    Raises:
        DataError: it cannot be read, or has none.
    """
    empty, languages = True, set[str]()
    for path in file.paths:
        for line in read_file(path, dialect):
            if file.language and (language := str(line.fields.get(LANGUAGE, file.language))) != file.language:
                languages.add(language)
                continue
            if not file.language and line.fields.get(LANGUAGE) not in (None, ""):
                file.languages.add(str(line.fields[LANGUAGE]))
            empty = False
            yield line
    if empty and languages:
        raise DataError(f"{file} has no rows with the {LANGUAGE} {file.language}; it has {listing(sorted(languages))}")
    if empty:
        raise DataError(f"{file} is empty: it has no rows (of csv and tsv the first line is the header)")


def first_line(file: DataFile, dialect: Dialect | None = None) -> Line:
    """The first row of a file.

    Raises:
        DataError: it cannot be read, or has none.
    """
    with closing(read_lines(file, dialect)) as lines:
        return next(lines)


def normal(name: str) -> str:
    """A name without what its spellings differ in: `T2-Reranking` and `t2_reranking` are `T2Reranking`."""
    return re.sub(r"[ _-]", "", name).lower()


def find_column(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The column that has one of the wanted names, the earlier the better; None if there is none."""
    names = list(names)
    spelled = {normal(name): name for name in reversed(names)}
    for name in wanted:
        if name in names:
            return name
        if normal(name) in spelled:
            return spelled[normal(name)]
    return None


def find_pair(names: Iterable[str]) -> list[tuple[str, str]]:
    """The two columns of a pair; several pairs if it is not clear which is meant."""
    names = list(names)
    found = [(find_column(names, [a]), find_column(names, [b])) for a, b in PAIRS]
    return [(a, b) for a, b in found if a is not None and b is not None]


class Exclusions:
    """Counts what of the data is left out, by reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one more item that is left out."""
        self._counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(example)

    def listed(self) -> tuple[Exclusion, ...]:
        """All of them, in the order in which the reasons came up."""
        return tuple(Exclusion(reason, count, tuple(self._examples[reason])) for reason, count in self._counts.items())

    def __str__(self) -> str:
        return "; ".join(map(str, self.listed())) or "nothing was left out"


@dataclass(frozen=True)
class Exclusion:
    """Items of the data that were left out, and why.

    Attributes:
        reason: Such as "queries without a relevant document".
        count: How many.
        examples: The first few, such as ids or file and line.
    """

    reason: str
    count: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = f" ({', '.join(self.examples)}{', ...' if self.count > len(self.examples) else ''})"
        return f"{self.count:,} {self.reason}{shown if self.examples else ''}"
