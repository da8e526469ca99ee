"""Rows of data files with the place where they stand, and their fields with the type that is needed.

Columns go by several names; `sentence1`, `Sentence_1` and `sentence 1` are one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..errors import DataError
from .formats import USUAL, Dialect, listing, shown
from .records import read_rows
from .splits import DataFile

if TYPE_CHECKING:
    pass

#: Labels of natural language inference.
THREE_WAY: Final = frozenset({"entailment", "neutral", "contradiction"})
#: The column of data in several languages that says a row's own.
LANGUAGE: Final = "lang"
IDS: Final = ("_id", "id")
TITLES: Final = ("title",)
TEXTS: Final = ("text", "content", "contents", "sentence")
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


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a file.

    Attributes:
        file: As the user named it.
        number: Its line, from 1 (in Parquet files the row).
        fields: By name.
    """

    file: str
    number: int
    fields: Mapping[str, Any]

    def error(self, reason: str) -> DataError:
        """An error that says where this line is."""
        return DataError(f"{self.place}: {reason}")

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.file}, line {self.number}"

    def text(self, name: str) -> str:
        """A field that must be a string."""
        value = self._value(name)
        if not isinstance(value, str):
            raise self.error(f"the field {name} must be a string, not {shown(value)}")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that must be a list of strings; one string is a list of one."""
        value = self._value(name)
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list):
            raise self.error(f"the field {name} must be a list of strings, not {shown(value)}")
        for element in value:
            if not isinstance(element, str):
                raise self.error(f"the field {name} must be a list of strings, not of {shown(element)}")
        return value

    def number_of(self, name: str) -> float:
        """A field that must be a number."""
        return self._number(name, self._value(name))

    def numbers(self, name: str) -> list[float]:
        """A field that must be a list of numbers."""
        value = self._value(name)
        if not isinstance(value, list):
            raise self.error(f"the field {name} must be a list of numbers, not {shown(value)}")
        return [self._number(name, element) for element in value]

    def label(self, name: str) -> str:
        """A field that names a class: a string, a whole number, true or false."""
        return self._label(name, self._value(name))

    def labels(self, name: str) -> list[str]:
        """A field that must be a list of names of classes."""
        value = self._value(name)
        if not isinstance(value, list):
            raise self.error(f"the field {name} must be a list of labels, not {shown(value)}")
        return [self._label(name, element) for element in value]

    def binary(self, name: str) -> int:
        """A field that must be 0 or 1."""
        value = self._value(name)
        for wanted in (0, 1):
            if value == wanted or (isinstance(value, str) and value.strip() == str(wanted)):
                return wanted
        if isinstance(value, str) and value.strip().lower() in THREE_WAY:
            raise self.error(
                f"the {name} {value!r} is one of three (entailment, neutral, contradiction), and pair classification "
                "needs two: make entailment 1 and contradiction 0, and leave out neutral"
            )
        hint = "" if isinstance(value, str) else "; degrees of similarity belong into a column called score"
        raise self.error(f"the {name} must be 1 (they belong together) or 0, not {shown(value)}{hint}")

    def identifier(self, name: str) -> str:
        """A field that must be an id: a string that is not empty, or a whole number."""
        return self._identifier(name, self._value(name))

    def _identifier(self, name: str, value: Any) -> str:
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
        raise self.error(f"the id {name} must be a string or a whole number, not {shown(value)}")

    def identifiers(self, name: str) -> list[str]:
        """A field that must be a list of ids."""
        value = self._value(name)
        if not isinstance(value, list):
            raise self.error(f"the field {name} must be a list of ids, not {shown(value)}")
        return [self._identifier(name, element) for element in value]

    def _value(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise self.error(f"no field {name}; it has {listing(list(self.fields))}") from None

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


@contextmanager
def files_written(dialect: Dialect) -> Generator[None, None, None]:
    """While this is open, files are read as written in a dialect."""
    token = written.set(dialect)
    try:
        yield
    finally:
        written.reset(token)


def read_lines(file: DataFile, dialect: Dialect | None = None) -> Generator[Line, None, None]:
    """The rows of a file, those of its shards one after another, by default as `files_written` says.

    Raises:
        DataError: it cannot be read, or has none.
    """
    line, languages, dialect = None, set[str](), dialect or written.get()
    for path in file.paths:
        for number, fields in read_rows(path, encoding=dialect.encoding, quoting=dialect.quoting):
            if file.language and (language := str(fields.get(LANGUAGE, file.language))) != file.language:
                languages.add(language)
                continue
            line = Line(path, number, fields)
            yield line
    if line is None and languages:
        raise DataError(f"{file} has no rows with the {LANGUAGE} {file.language}; it has {listing(sorted(languages))}")
    if line is None:
        raise DataError(f"{file} is empty: it has no rows (of csv and tsv the first line is the header)")


def first_line(file: DataFile, dialect: Dialect | None = None) -> Line:
    """The first row of a file.

    Raises:
        DataError: it cannot be read, or has none.
    """
    with closing(read_lines(file, dialect)) as lines:
        return next(lines)


def normal(name: str) -> str:
    """A column's name without what people write differently."""
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
        """One more item."""
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
