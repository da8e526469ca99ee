"""Records of input files: JSON lines, CSV, TSV, Parquet, Arrow and plain text, each also gzipped, and standard input.

One record is in memory at a time, whatever the size of the input.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ..errors import ArgumentError, DataError
from .columns import IDS, TITLES, BadLines, Line, OnError
from .formats import (
    STDIN,
    TEXT_FIELDS,
    BadRow,
    Dialect,
    Position,
    Quoting,
    Row,
    check_format,
    checked_size,
    file_rows,
    file_size,
    listing,
)


@dataclass(frozen=True)
class Record:
    """One text of the input.

    Attributes:
        id: The record's own id, or the number of its row over the whole input (from 0).
        text: Title and text, joined by one space.
        file: The file as the caller named it, `-` for standard input.
        line: Line in that file, from 1 (in Parquet files the row).

    Example:
        >>> from bgekit.data import Record
        >>> Record("doc-7", "A text to encode.").id
        'doc-7'
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
        skipped: The lines left out so far.
        size: Bytes of all files, None when that cannot be known (standard input, pipes).

    Raises:
        DataError: a file cannot be read, or (while iterating) a line cannot be used; it names file and line.

    Example:
        >>> from bgekit.data import read_records
        >>> for record in read_records("corpus.jsonl"):
        ...     print(record.id, record.text)
        ...     break
        d1 The cat sat on the mat.
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
        check_format(format)
        listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.files = [os.fspath(path) for path in listed]
        self.skipped = BadLines(on_error)
        self._fields = _Fields(text_field, title_field, id_field)
        self._format, self._dialect = format, Dialect(encoding, quoting)
        sizes = [checked_size(file) for file in self.files]
        if self.files.count(STDIN) > 1:
            raise DataError("standard input (-) is given twice; it can be read only once")
        self.size = sum(size for size in sizes if size is not None) if None not in sizes else None
        self._finished_bytes = 0
        self._current = Position()
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
        fields = {f"{kind}_field": name for kind, name in self._fields.asked.items()}
        return {**fields, "format": self._format, **self._dialect.settings}

    def _read(self) -> Iterator[Record]:
        row_number = 0
        for file in self.files:
            columns = partial(self._fields.columns, file)
            for line, row in file_rows(file, self._format, columns, self._current, self._dialect):
                try:
                    record = self._fields.record(row, row_number, file, line)
                except BadRow as reason:
                    self.skipped.add(file, line, reason)
                else:
                    self.skipped.good()
                    yield record
                row_number += 1
            self._finished_bytes, self._current = self._finished_bytes + (file_size(file) or 0), Position()
        self.skipped.end()


#: What callers use; the class is for those who ask what they were given.
read_records = RecordReader


def titled(title: str, text: str) -> str:
    """Title and text as one text, with no space at either end when one of the two is empty."""
    return f"{title} {text}" if title and text else title or text


class _Fields:
    """Names of the fields that hold a row's text, title and id, those first that count most."""

    def __init__(self, text: str | None, title: str | None, id: str | None) -> None:
        self.asked = {"text": text, "title": title, "id": id}
        self._texts = (text,) if text else TEXT_FIELDS
        self._titles = () if title == "" else (title,) if title else TITLES
        self._ids = (id,) if id else IDS

    def record(self, row: Row, number: int, file: str, line: int) -> Record:
        if isinstance(row, BadRow):
            raise row
        if isinstance(row, str):
            return Record(str(number), row, file, line)
        fields = Line(file, line, row)
        text = self._text(fields)
        return Record(self._id(fields, number), titled(self._title(fields), text), file, line)

    def columns(self, file: str, names: Sequence[str]) -> list[str]:
        """The columns of a table that are needed.

        Raises:
            DataError: the table has no column of texts, or not the one that was asked for.
        """
        found = []
        for (kind, asked), wanted in zip(self.asked.items(), (self._texts, self._titles, self._ids), strict=True):
            present = [name for name in wanted if name in names]
            if not present and (asked or kind == "text"):
                lacking = f"{file} has no column {' or '.join(wanted)}"
                raise DataError(f"{lacking}; it has {listing(names)}. Name it with --{kind}-field.")
            found += present[: 1 if kind == "text" else None]
        return list(dict.fromkeys(found))

    def _text(self, line: Line) -> str:
        for name in self._texts:
            if name in line.fields:
                return line.text(name)
        *others, last = self._texts
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise line.error(f"no field {wanted}; it has {listing(list(line.fields))}. Name the field with --text-field.")

    def _title(self, line: Line) -> str:
        for name in self._titles:
            if line.fields.get(name) is not None:
                return line.text(name)
        return ""

    def _id(self, line: Line, number: int) -> str:
        for name in self._ids:
            if line.fields.get(name) not in (None, ""):
                return line.identifier(name)
        if self.asked["id"]:
            line.value(self.asked["id"])
        return str(number)
