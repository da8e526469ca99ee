"""Records of input files: JSON lines, CSV, TSV, Parquet, Arrow and plain text, each also gzipped, and standard input.

This is the one reader for the whole project. It holds one record at a time, whatever the size of the input.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from ..errors import ArgumentError, DataError, require_extra
from .formats import (
    FORMATS,
    STDIN,
    TABLES,
    BadRow,
    ChooseColumns,
    Dialect,
    Quoting,
    Row,
    Stream,
    format_of,
    listing,
    open_stream,
    shown,
    stem_and_format,
    table_rows,
    text_rows,
)

logger = logging.getLogger(__name__)
ID_FIELDS: Final = ("_id", "id")
TITLE_FIELDS: Final = ("title",)
TEXT_FIELDS: Final = ("text", "content", "contents")


@dataclass(frozen=True)
class Record:
    """One text of the input.

    Attributes:
        id: The record's own id, or the number of its row over the whole input (from 0).
        text: Title and text, joined by one space.
        file: The file as the caller named it, `-` for standard input.
        line: Line in that file, from 1 (in Parquet files the row).
    """

    id: str
    text: str
    file: str = ""
    line: int = 0


class RecordReader(Iterator[Record]):
    """The records of some files, one after another. `read_records` is its name where it is called.

    Args:
        paths: Files, `-` for standard input. What is gzipped is recognised by its content.
        text_field: Field of the text; by default the first of `text`, `content`, `contents`.
        title_field: Field of the title; by default `title`, if there is one. "" for no title.
        id_field: Field of the id; by default `_id` or `id`. Records without one are numbered by row.
        on_error: `raise` on the first line that cannot be used, or `skip` such lines and list them in `.skipped`.
            A file that cannot be read as a whole (missing, cut off, without a column of texts) always raises.
        format: One of `jsonl`, `csv`, `tsv`, `parquet`, `arrow`, `txt` for all files; by default each file's name says
            it, or else its first bytes.
        encoding: What text files are written in, by a name that Python knows, such as `gb18030`; by default UTF-8.
        quoting: Whether quotes in csv and tsv enclose fields (`csv`) or are characters like any other, every line a
            row (`none`). `auto`: csv files are of the first sort; what a tsv file is, is seen from its lines.

    Attributes:
        files: The files as the caller named them.
        skipped: What was left out so far.
        size: Bytes of all files, None when that cannot be known (standard input, pipes).

    Raises:
        DataError: a file cannot be read, or (while iterating) a line cannot be used; it names file and line.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        text_field: str | None = None,
        title_field: str | None = None,
        id_field: str | None = None,
        on_error: OnError = "raise",
        format: str | None = None,
        encoding: str | None = None,
        quoting: Quoting = "auto",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ArgumentError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        _check_format(format)
        listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.files = [os.fspath(path) for path in listed]
        self.skipped = Skipped()
        self._fields = _Fields(text_field, title_field, id_field)
        self._on_error, self._format, self._dialect = on_error, format, Dialect(encoding, quoting)
        sizes = [_checked_size(file) for file in self.files]
        if self.files.count(STDIN) > 1:
            raise DataError("standard input (-) is given twice; it can be read only once")
        self.size = sum(size for size in sizes if size is not None) if None not in sizes else None
        self._finished_bytes = 0
        self._current: _Position = _Position()
        if not {format, *(stem_and_format(file)[1] for file in self.files)}.isdisjoint(TABLES):
            require_extra("parquet", "pyarrow")
        self._records: Iterator[Record] = self._read()

    def __next__(self) -> Record:
        return next(self._records)

    def require(self) -> None:
        """Read the first record now: what is wrong at the beginning shows before there is any work.

        Raises:
            DataError: it cannot be used, or there is none.
        """
        first = next(self._records, None)
        if first is None:
            skipped = f" that could be used: {self.skipped.count:,} lines were left out" if self.skipped.count else ""
            raise DataError(f"{', '.join(self.files)}: there is no text{skipped}")
        self._records = itertools.chain([first], self._records)

    @property
    def position(self) -> int:
        """Bytes of the files that were read so far; compare with `size`."""
        return self._finished_bytes + self._current.bytes()

    @property
    def settings(self) -> dict[str, str | None]:
        """The options that decide which records a given input has."""
        fields = self._fields
        return {
            "text_field": fields.text, "title_field": fields.title, "id_field": fields.id, "format": self._format,
            **self._dialect.settings,
        }  # fmt: skip

    def _read(self) -> Iterator[Record]:
        row_number = 0
        bad_lines = BadLines(self._on_error, self.skipped)
        for file in self.files:
            columns = partial(self._fields.columns, file)
            for line, row in _rows_of(file, self._format, columns, self._current, self._dialect):
                try:
                    record = self._fields.record(row, row_number, file, line)
                except BadRow as problem:
                    bad_lines.bad(SkippedLine(file, line, str(problem)))
                else:
                    bad_lines.good()
                    yield record
                row_number += 1
            self._finished_bytes, self._current = self._finished_bytes + (_size(file) or 0), _Position()
        bad_lines.end()


#: What callers use; the class is for those who ask what they were given.
read_records = RecordReader


def read_rows(
    file: str | os.PathLike[str],
    *,
    format: str | None = None,
    on_bad: Callable[[int, BadRow], None] | None = None,
    encoding: str | None = None,
    quoting: Quoting = "auto",
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Line numbers (from 1; in Parquet files rows) and rows of one file of any form, each row as its fields by name.

    Of a table every column is read, whatever it is called; a line of plain text is `{"text": line}`.

    Args:
        file: The file, `-` for standard input.
        format: As in `read_records`.
        on_bad: Called with the line and the reason where a line is no row, which is then left out; by default the
            first such line is an error.
        encoding: As in `read_records`.
        quoting: As in `read_records`.

    Raises:
        DataError: the file or a line of it cannot be read; it names file and line.
    """
    name = os.fspath(file)
    _check_format(format)
    _checked_size(name)
    for line, row in _rows_of(name, format, list, _Position(), Dialect(encoding, quoting)):
        if isinstance(row, BadRow):
            if on_bad is None:
                raise DataError(f"{name}, line {line}: {row}") from row
            on_bad(line, row)
            continue
        yield line, {TEXT_FIELDS[0]: row} if isinstance(row, str) else row


def titled(title: str, text: str) -> str:
    """Title and text as one text, with no space at either end when one of the two is empty."""
    return f"{title} {text}" if title and text else title or text


@dataclass
class _Position:
    """How far a file has been read: by its stream, or by rows where there is no stream."""

    stream: Stream | None = None
    rows: int = 0
    size: int = 0
    row: int = 0

    def bytes(self) -> int:
        if self.stream is not None and not self.stream.closed:
            return self.stream.tell()
        return self.size * self.row // self.rows if self.rows else 0


def _rows_of(
    file: str, form: str | None, columns: ChooseColumns, position: _Position, dialect: Dialect
) -> Iterator[tuple[int, Row]]:
    """Line numbers (from 1) and rows of one file; a row that cannot be parsed comes as the reason.

    Args:
        file: The file, `-` for standard input.
        form: Its format; None to find it out.
        columns: Chooses the columns of a table.
        position: Told how far the file has been read.
        dialect: How it is written.
    """
    line = 0
    try:
        with contextlib.ExitStack() as stack:
            stream, raw, name = open_stream(file, stack)
            form = form or format_of(name, stream, set(TEXT_FIELDS), dialect.encoding)
            size = _size(file)
            if form in TABLES:
                if size is None:
                    raise DataError(f"{form.title()} cannot be read from a pipe, only from a file: name the file")
                position.rows, rows = table_rows(form, file, columns)
                position.size = size
            else:
                rows = text_rows(form, file, stream, columns, dialect)
                position.stream = raw if size is not None else None
            for line, row in rows:
                position.row = line
                yield line, row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is damaged or cut off after line {line}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {file} after line {line}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Fields:
    """Which fields of a row hold its text, title and id."""

    text: str | None
    title: str | None
    id: str | None

    def record(self, row: Row, number: int, file: str, line: int) -> Record:
        if isinstance(row, BadRow):
            raise row
        if isinstance(row, str):
            return Record(str(number), row, file, line)
        text = self._text(row)
        return Record(self._id(row, number), titled(self._title(row), text), file, line)

    def columns(self, file: str, names: Sequence[str]) -> list[str]:
        """The columns of a table that are needed.

        Raises:
            DataError: the table has no column of texts, or not the one that was asked for.
        """
        found = []
        for kind, wanted, usual in self._wanted():
            present = [name for name in ((wanted,) if wanted else usual) if name in names]
            if not present and (wanted or kind == "text"):
                asked = wanted or " or ".join(usual)
                raise DataError(f"{file} has no column {asked}; it has {listing(names)}. Name it with --{kind}-field.")
            found += present[: 1 if kind == "text" else None]
        return list(dict.fromkeys(found))

    def _wanted(self) -> list[tuple[str, str | None, tuple[str, ...]]]:
        titles = () if self.title == "" else TITLE_FIELDS
        return [("text", self.text, TEXT_FIELDS), ("title", self.title, titles), ("id", self.id, ID_FIELDS)]

    def _text(self, row: Mapping[str, Any]) -> str:
        for name in (self.text,) if self.text else TEXT_FIELDS:
            if name in row:
                return _string(name, row[name])
        wanted = self.text or f"{', '.join(TEXT_FIELDS[:-1])} or {TEXT_FIELDS[-1]}"
        raise BadRow(f"no field {wanted}; it has {listing(list(row))}. Name the field with --text-field.")

    def _title(self, row: Mapping[str, Any]) -> str:
        if self.title == "":
            return ""
        for name in (self.title,) if self.title else TITLE_FIELDS:
            if row.get(name) is not None:
                return _string(name, row[name])
        return ""

    def _id(self, row: Mapping[str, Any], number: int) -> str:
        for name in (self.id,) if self.id else ID_FIELDS:
            value = row.get(name)
            if value is None or value == "":
                continue
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value)
            raise BadRow(f"the id {name} must be a string or a whole number, not {shown(value)}")
        if self.id and self.id not in row:
            raise BadRow(f"no field {self.id}; it has {listing(list(row))}")
        return str(number)


def _string(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise BadRow(f"the field {name} must be a string, not {shown(value)}")


def _check_format(format: str | None) -> None:
    if format is not None and format not in FORMATS:
        raise ArgumentError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")


def _size(file: str) -> int | None:
    """Bytes of a regular file; None for pipes and standard input."""
    if file == STDIN:
        return None
    status = os.stat(file)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _checked_size(file: str) -> int | None:
    # Opened, not only looked at, so that a missing permission shows before a model is loaded. A pipe is only
    # looked at: opening it would take what was written to it.
    try:
        size = _size(file)
        if size is not None:
            with open(file, "rb"):
                return size
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    if file != STDIN and os.path.isdir(file):
        raise DataError(f"cannot read {file}: it is a folder; give the files in it ({file.rstrip('/')}/*)")
    return None


OnError = Literal["raise", "skip"]
#: Bad lines kept in memory and listed; all are counted.
_LISTED: Final = 10_000
#: Bad lines that are logged one by one.
_LOGGED: Final = 20


@dataclass(frozen=True)
class SkippedLine:
    """A line of the input that holds no usable record."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


@dataclass
class Skipped:
    """Lines that were left out.

    Attributes:
        count: All of them.
        lines: The first 10,000.
    """

    count: int = 0
    lines: list[SkippedLine] = field(default_factory=list)

    def add(self, line: SkippedLine) -> None:
        """Count, keep and log one line."""
        self.count += 1
        if self.count <= _LISTED:
            self.lines.append(line)
        if self.count <= _LOGGED:
            logger.warning("skipped %s", line)
        elif self.count == _LOGGED + 1:
            logger.warning("more lines are skipped; from here on they are only counted")


class BadLines:
    """What becomes of lines that cannot be used: an error at the first one, or they are left out.

    The error of a line at the very beginning waits for the next one: to leave such lines out is advice where there are
    good ones, and none where it would leave out all.

    Args:
        on_error: Which of the two.
        skipped: Told what is left out.
    """

    def __init__(self, on_error: OnError, skipped: Skipped) -> None:
        self._on_error, self._skipped = on_error, skipped
        self._waiting: SkippedLine | None = None
        self._any_good = False

    def bad(self, line: SkippedLine) -> None:
        """A line that cannot be used.

        Raises:
            DataError: it, or an earlier one, is an error.
        """
        if self._on_error == "skip":
            self._skipped.add(line)
        elif self._any_good:
            raise self._error(line, advice=True)
        elif self._waiting is not None:
            raise self._error(self._waiting)
        else:
            self._waiting = line

    def good(self) -> None:
        """A line that can be used.

        Raises:
            DataError: an earlier one could not.
        """
        self._any_good = True
        if self._waiting is not None:
            raise self._error(self._waiting, advice=True)

    def end(self) -> None:
        """There is no further line.

        Raises:
            DataError: the only one could not be used.
        """
        if self._waiting is not None:
            raise self._error(self._waiting)

    def _error(self, line: SkippedLine, *, advice: bool = False) -> DataError:
        return DataError(f"{line} (--on-error skip leaves such lines out)" if advice else str(line))
