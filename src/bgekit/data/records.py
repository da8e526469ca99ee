"""Records of files: JSON, CSV, TSV, Parquet and Arrow, texts and documents, each also gzipped, folders, standard input.

One record is in memory at a time, whatever the size of the input; of a document the whole document.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..errors import ArgumentError, DataError
from .columns import IDS, TITLES, BadLines, Line, OnError
from .documents import Source, Unit, check_documents, find_sources
from .formats import (
    STDIN,
    TEXT_FIELDS,
    BadRow,
    Dialect,
    Position,
    Quoting,
    Row,
    checked_size,
    file_rows,
    listing,
)
from .markup import DOCUMENTS, VERSION, Document, Part, parts, read_document
from .metadata import ALL, BadValue, Cell, Keep, Kinds, Metadata, checked_keep

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One text of the input.

    Attributes:
        id: The record's own id, or the number of its row over the whole input (from 0); a document's path, with
            `#` and its heading or number where it is a part of it.
        text: Title and text, joined by one space.
        file: The file as the caller named it, or found in a folder; `-` for standard input.
        line: Line in that file, from 1 (in Parquet files the row).
        document: Text and title apart, of a document in which headings, tables and fences count: `chunk_records` cuts
            it there. None for other texts.
        metadata: What else is known of it and kept, by column: strings, numbers, truth values, dates, lists of these.

    Example:
        >>> from bgekit.data import Record
        >>> Record("doc-7", "A text to encode.").id
        'doc-7'
    """

    id: str
    text: str
    file: str = ""
    line: int = 0
    document: Document | None = field(default=None, compare=False, repr=False)
    metadata: Metadata = field(default_factory=dict, hash=False)


class RecordReader(Iterator[Record]):
    """The records of some files, one after another. `read_records` is its name where it is called.

    Args:
        paths: Files, folders, globs, also as URLs of object stores (`s3://bucket/folder`); `-` for standard input. What
            is gzipped is recognised by its content. Of folders the files of known endings are read, those hidden or
            named by a .gitignore passed over.
        text_field: Field of the text; by default the first of `text`, `content`, `contents`.
        title_field: Field of the title; by default `title`, if there is one. "" for no title.
        id_field: Field of the id; by default `_id` or `id`. Records without one are numbered by row.
        on_error: `raise` on the first line that cannot be used, or `skip` such lines and list them in `.skipped`.
            A file that cannot be read as a whole (missing, cut off, without a column of texts) always raises if it is
            named, and is left out, with a warning, if it was found in a folder.
        format: One of `jsonl`, `csv`, `tsv`, `parquet`, `arrow`, `txt`, `md`, `html`, `pdf`, `docx` for all files; by
            default each file's name says it, or else its first bytes.
        encoding: What text files are written in, by a name that Python knows, such as `gb18030`; by default UTF-8.
        quoting: Whether quotes in csv and tsv enclose fields (`csv`) or are characters like any other, every line a
            row (`none`). `auto`: csv files are of the first sort; what a tsv file is, is seen from its lines.
        delimiter: Character between the columns of csv files; by default the one of comma, semicolon, tab and `|` that
            their header has.
        records: What of a text or a document is one record: a `line`, a `paragraph`, a `section` (a heading with the
            text below it) or the `file`. By default plain text has lines, and every document is one record.
        include: Patterns, as in a .gitignore, of the files in folders that are read; files of other endings, too, as
            plain text.
        exclude: Patterns of files and folders in folders that are passed over.
        keep: Columns that become the records' metadata, by name; "*" for all but those of text, title and id. Each has
            values of one type (null fits any); what is of another one is a line that cannot be used.

    Attributes:
        files: The files as the caller named them, or as they were found.
        names: What ids of each file's records begin with; None for files whose records have ids or numbers.
        skipped: The lines and files left out so far.
        size: Bytes of all files, None when that cannot be known (standard input, pipes).

    Raises:
        DataError: a file cannot be read, or (while iterating) a line cannot be used; it names file and line. A folder
            has no file that could be read, or a glob matches none.
        MissingExtraError: a PDF or Word file is named, and the extra `documents` is not installed.

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
        delimiter: str | None = None,
        records: Unit | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        keep: Keep | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ArgumentError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        check_documents(format, records)
        listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.skipped = BadLines(on_error)
        self._strict = on_error == "raise"
        self._fields = _Fields(text_field, title_field, id_field, checked_keep(keep))
        self._format, self._dialect = format, Dialect(encoding, quoting, delimiter)
        self._unit, self._chosen = records, {"include": include, "exclude": exclude}
        self._sources, self._sizes = list[Source](), list[int | None]()
        found = find_sources(
            [os.fspath(path) for path in listed], self.skipped, format=format, encoding=encoding,
            include=include, exclude=exclude,
        )  # fmt: skip
        for source in found:
            try:
                self._sizes.append(checked_size(source.path) if source.size is None else source.size)
            except DataError as error:
                if not source.found:
                    raise
                self.skipped.leave_out(source.path, error)
            else:
                self._sources.append(source)
        self.files = [source.path for source in self._sources]
        self.names = [self._name_of(source) for source in self._sources]
        if self.files.count(STDIN) > 1:
            raise DataError("standard input (-) is given twice; it can be read only once")
        self.size = None if None in self._sizes else sum(size or 0 for size in self._sizes)
        self._finished_bytes, self._begun = 0, False
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
            skipped = f" that could be used: {self.skipped} left out" if self.skipped.count else ""
            raise DataError(f"{listing(self.files)}: there is no text{skipped}")
        self._records = itertools.chain([first], self._records)

    def name_rows(self) -> None:
        """Number records without an id within their file, behind its name (`more.txt#0`), not over the whole input.

        For records that join others: numbers over the input say nothing about these.

        Raises:
            ArgumentError: records have been read already.
        """
        names = [source.name for source in self._sources]
        if names == self.names:
            return
        if self._begun:
            raise ArgumentError("records have been read and numbered already: give a new reader")
        self.names = list[str | None](names)

    @property
    def kept(self) -> tuple[str, ...]:
        """Columns that become metadata."""
        return self._fields.kept

    def keep(self, columns: Keep, *, where_there: Keep = ()) -> None:
        """Keep these columns as metadata, and no others.

        Args:
            columns: Their names.
            where_there: Names of further ones, which tables need not have.

        Raises:
            ArgumentError: records have been read already.
        """
        names = checked_keep(columns)
        further = [name for name in checked_keep(where_there) if name not in names]
        names = (*names, *further)
        if names == self._fields.kept:
            return
        if self._begun:
            raise ArgumentError("records have been read without these columns: give keep=... to read_records")
        self._fields.kept, self._fields.optional = names, set(further)

    @property
    def position(self) -> int:
        """Bytes of the files that were read so far; compare with `size`."""
        return self._finished_bytes + self._current.bytes()

    @property
    def settings(self) -> dict[str, Any]:
        """The options that decide which records a given input has, further ones only where they are used."""
        found: dict[str, Any] = {f"{kind}_field": name for kind, name in self._fields.asked.items()}
        found |= {"format": self._format, **self._dialect.settings}
        found |= {name: list(chosen) for name, chosen in self._chosen.items() if chosen}
        texts = [source for source in self._sources if source.is_text]
        if any((self._unit or source.unit) != "line" for source in texts):
            found["documents"] = VERSION
        if self._unit is not None and any(self._unit != source.unit for source in texts):
            found["records"] = self._unit
        if self._fields.kept:
            found["keep"] = list(self._fields.kept)
        return found

    def _read(self) -> Iterator[Record]:
        row_number, self._begun = 0, True
        for source, name, size in zip(self._sources, self.names, self._sizes, strict=True):
            any_good = False
            for line, row in self._rows(source):
                try:
                    if isinstance(row, Part):
                        record = self._fields.record_of_part(row, source, line)
                    else:
                        number = row_number if name is None else f"{name}#{line - 1}"
                        record = self._fields.record(row, number, source.path, line, self._current.form)
                except BadRow as reason:
                    # Other JSON, say, than records. What is to be kept was asked for.
                    if source.found and self._strict and not any_good and not isinstance(reason, BadValue):
                        self.skipped.leave_out(source.path, reason.reason)
                        break
                    self.skipped.add(source.path, line, reason)
                else:
                    any_good = True
                    self.skipped.good()
                    yield record
                row_number += 1
            self._finished_bytes += size or 0
            self._current = Position()
        self.skipped.end()
        self._fields.end()

    def _rows(self, source: Source) -> Iterator[tuple[int, Row | Part]]:
        """Line numbers and rows of a file, or the parts of a document; nothing more from where it cannot be read."""
        unit, columns, lines = self._unit or source.unit, partial(self._fields.columns, source.path), list[str]()
        try:
            if source.form is not None and source.form in DOCUMENTS and unit != "line":
                yield from self._parts(read_document(source.path, source.form, self._dialect.encoding), unit)
                return
            form = "txt" if source.form in DOCUMENTS else source.form
            rows = file_rows(source.path, form, columns, self._current, self._dialect)
            if unit == "line":
                yield from rows
                return
            for line, row in rows:
                if isinstance(row, str):
                    lines.append(row)
                else:
                    yield line, row
            if lines:
                yield from self._parts(Document("\n".join(lines)), unit)
        except DataError as error:
            if not source.found:
                raise
            self.skipped.leave_out(source.path, error)

    def _parts(self, document: Document, unit: Unit) -> Iterator[tuple[int, Part]]:
        if self._fields.asked["title"] == "":
            document = replace(document, title="", headings=False)
        return ((part.line, part) for part in parts(document, unit))

    def _name_of(self, source: Source) -> str | None:
        """What ids of a file's records begin with, where they begin with its name."""
        named = source.is_text and (source.found or (self._unit or source.unit) != "line")
        return source.name if named else None


#: What callers use; the class is for those who ask what they were given.
read_records = RecordReader


def titled(title: str, text: str) -> str:
    """Title and text as one text, with no space at either end when one of the two is empty."""
    return f"{title} {text}" if title and text else title or text


class _Fields:
    """Names of the fields that hold a row's text, title and id, those first that count most, and of those kept."""

    def __init__(self, text: str | None, title: str | None, id: str | None, kept: tuple[str, ...]) -> None:
        self.kept, self.optional = kept, set[str]()
        self._kinds, self._seen, self._first = Kinds(), set[str](), dict[str, None]()
        self.asked = {"text": text, "title": title, "id": id}
        self._texts = (text,) if text else TEXT_FIELDS
        self._titles = () if title == "" else (title,) if title else TITLES
        self._ids = (id,) if id else IDS

    def record(self, row: Row, number: int | str, file: str, line: int, form: str) -> Record:
        if isinstance(row, BadRow):
            raise row
        if isinstance(row, str):
            return Record(str(number), row, file, line, metadata=dict.fromkeys(self._named))
        fields = Line(file, line, row)
        text = titled(self._title(fields), self._text(fields))
        metadata = self._metadata(fields, cells=form in ("csv", "tsv")) if self.kept else {}
        return Record(self._id(fields, number), text, file, line, metadata=metadata)

    def record_of_part(self, part: Part, source: Source, line: int) -> Record:
        """The record of a part of a document, with fields of its front matter."""
        document = part.document
        text = titled(document.own_title, document.whole)
        metadata = self._metadata(Line(source.path, line, document.fields)) if self.kept else {}
        marked = document if document.marked else None
        return Record(source.name + part.suffix, text, source.path, line, marked, metadata)

    @property
    def _named(self) -> list[str]:
        """Columns that are kept by name."""
        return [name for name in self.kept if name != ALL]

    def _metadata(self, line: Line, *, cells: bool = False) -> Metadata:
        named = self._named
        if len(self._seen) < len(named):
            self._first = self._first or dict.fromkeys(line.fields)
            self._seen.update(name for name in named if name in line.fields)
        if ALL in self.kept:
            # Of front matter nothing is text or id.
            text = next((name for name in self._texts if name in line.fields), "")
            used = {text, *self._titles, *self._ids, ""}
            named = list(dict.fromkeys([*(name for name in line.fields if name not in used), *named]))
        values = {name: line.fields.get(name) for name in named}
        if cells:
            values = {name: None if value is None else Cell(value) for name, value in values.items()}
        return self._kinds.checked(values, line.file, line.number)

    def end(self) -> None:
        """Say which columns that were to be kept no row had."""
        missing = [name for name in self._named if name not in self._seen]
        if missing:
            first = f"; the first row has {listing(list(self._first))}" if self._first else ""
            logger.warning("no row has a column %s, which was to be kept%s", " or ".join(missing), first)

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
                other = ", or what separates the columns with --delimiter" if len(names) == 1 else ""
                raise DataError(f"{lacking}; it has {listing(names)}. Name it with --{kind}-field{other}.")
            found += present[: 1 if kind == "text" else None]
        absent = [name for name in self._named if name not in {*names, *self.optional}]
        if absent:
            raise DataError(f"{file} has no column {' or '.join(absent)} to keep; it has {listing(names)}")
        return list(
            dict.fromkeys(names if ALL in self.kept else [*found, *(each for each in self._named if each in names)])
        )

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

    def _id(self, line: Line, number: int | str) -> str:
        for name in self._ids:
            if line.fields.get(name) not in (None, ""):
                return line.identifier(name)
        if self.asked["id"]:
            line.value(self.asked["id"])
        return str(number)
