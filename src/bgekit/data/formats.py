"""Rows of files by format: JSON lines and arrays, CSV, TSV, Parquet, Arrow and plain text, gzipped or not.

A row that cannot be parsed comes as the reason. One row is in memory at a time (one batch for tables).
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import gzip
import io
import json
import logging
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Final, Literal, TypeAlias, get_args

from ..errors import ArgumentError, DataError
from ..files.remote import is_url, open_binary, url_status
from .encodings import BOM, Ahead, Lines, check_encoding, is_utf8, not_utf8

logger = logging.getLogger(__name__)
#: `csv`: quotes enclose fields, with line breaks and delimiters in them; `none`: every line is a row; `auto`: csv for
#: csv files, and for tsv files what they turn out to be.
Quoting: TypeAlias = Literal["auto", "csv", "none"]
QUOTINGS: Final = get_args(Quoting)
#: Longest CSV field in characters. The module's own limit (128 Ki) is below a long document; without any limit one
#: unclosed quote would pull the rest of the file into memory.
_FIELD: Final = 64 << 20
#: The cells of a row, or why it is none.
Cells: TypeAlias = "list[str] | str"


#: Formats that are read from files alone: where their rows are stands at their end.
TABLES: Final = ("parquet", "arrow")
STDIN: Final = "-"
TEXT_FIELDS: Final = ("text", "content", "contents")
#: Endings of files, and the format that each stands for.
_SUFFIXES: Final = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".txt": "txt", ".text": "txt",
}  # fmt: skip
FORMATS: Final = tuple(dict.fromkeys(_SUFFIXES.values()))
#: What stands between the columns of tables, the usual one first, and the lines by which it is found out.
_DELIMITERS: Final = ",;\t|"
_SNIFFED: Final = 100
#: Words for a delimiter that is hard to type.
_WORDS_OF_DELIMITERS: Final = {"tab": "\t", "\\t": "\t"}
#: The first line of JSON that is not one object per line, and the characters of it that are read at once.
_SPREAD: Final = re.compile(r"\s*(\[\s*([{\]]|$)|\{\s*$)")
_SPREAD_READ: Final = 1 << 16
#: What a file begins with that Git has put in the place of a large one.
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
Stream: TypeAlias = "io.BufferedReader[Any]"
#: Columns of a table -> those that are needed; raises DataError when there is no text among them.
ChooseColumns: TypeAlias = "Callable[[Sequence[str]], list[str]]"


class BadRow(DataError):
    """A row that cannot be used.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: object, place: str = "") -> None:
        super().__init__(f"{place}: {reason}" if place else str(reason))
        self.reason = str(reason)


#: Fields by name, a whole text, or why there is neither.
Row: TypeAlias = "Mapping[str, Any] | str | BadRow"


@dataclass(frozen=True)
class Dialect:
    """Encoding, quoting and delimiter of text files.

    Attributes:
        encoding: Encoding by a name that Python knows; None for UTF-8, with a guess in the error where a file is not.
        quoting: Whether quotes in csv and tsv enclose fields: see `Quoting`.
        delimiter: Between the columns of csv and tsv; None for a tab in tsv, and in csv what the header shows. `tab`
            is a tab.

    Raises:
        ArgumentError: there is no such encoding or quoting, or the delimiter is not one character.
    """

    encoding: str | None = None
    quoting: Quoting = "auto"
    delimiter: str | None = None

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        if self.quoting not in QUOTINGS:
            raise ArgumentError(f"quoting must be one of {', '.join(QUOTINGS)}, not {self.quoting!r}")
        if self.delimiter in _WORDS_OF_DELIMITERS:
            object.__setattr__(self, "delimiter", _WORDS_OF_DELIMITERS[self.delimiter])
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise ArgumentError(f"the delimiter must be one character, such as ; or |, not {self.delimiter!r}")

    @property
    def settings(self) -> dict[str, str]:
        """Settings that differ from the default, for records of how something was read."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "auto")}


#: UTF-8, and quotes as they turn out to be.
USUAL: Final = Dialect()


def shown(value: object) -> str:
    """A value and its type, for messages."""
    return f"{'null' if value is None else repr(value):.60} ({type(value).__name__})"


def listing(names: Sequence[object]) -> str:
    """The first eight names, for messages."""
    first = ", ".join(map(str, names[:8])) or "none"
    return f"{first}, ..." if len(names) > 8 else first


#: What `json.dumps(..., ensure_ascii=False)` makes anew for each call.
_encoded: Final = json.JSONEncoder(ensure_ascii=False).encode


def line_of(fields: Mapping[str, Any]) -> bytes:
    """A line of JSON in UTF-8."""
    try:
        return (_encoded(fields) + "\n").encode()
    except UnicodeEncodeError:  # A lone surrogate of the input: only an escape can carry it.
        return (json.dumps(fields) + "\n").encode()


def open_stream(file: str, stack: contextlib.ExitStack) -> tuple[Stream, Stream, str]:
    """The stream of a file's content, the stream of its own bytes, and its name without `.gz`.

    Raises:
        DataError: the file is called `.gz` and is not gzipped, or is a pointer to a file that was not fetched.
        OSError: it cannot be opened.
    """
    raw: Any = sys.stdin.buffer if file == STDIN else stack.enter_context(open_binary(file))
    if raw.peek(len(_POINTER))[: len(_POINTER)] == _POINTER:
        raise DataError(f"{file} is a pointer of Git LFS, not the file itself: fetch it, with `git lfs pull`")
    if raw.peek(2)[:2] == b"\x1f\x8b":
        unzipped: Any = stack.enter_context(gzip.GzipFile(fileobj=raw))
        # The buffer around it splits lines in C.
        return io.BufferedReader(unzipped, 1 << 17), raw, _without_gz(file)
    if file.lower().endswith(".gz"):
        raise DataError(f"{file} is not gzipped, in spite of its name")
    return raw, raw, file


def _without_gz(name: str) -> str:
    return re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)


@dataclass
class Position:
    """The bytes of a file that were read so far: by its stream, or by rows where there is no stream; and its format.

    Attributes:
        lines: The lines of a file that can be entered at any of them.
    """

    lines: Lines | None = None
    form: str = ""
    stream: Stream | None = None
    rows: int = 0
    size: int = 0
    row: int = 0

    def bytes(self) -> int:
        """The bytes."""
        if self.stream is not None and not self.stream.closed:
            return self.stream.tell()
        return self.size * self.row // self.rows if self.rows else 0

    @property
    def offset(self) -> int | None:
        """Bytes before the row that comes next, from which `file_rows` can begin; None where it cannot."""
        return None if self.lines is None else self.lines.offset


def file_rows(
    file: str, form: str | None, columns: ChooseColumns, position: Position, dialect: Dialect,
    *, after: tuple[int, int] = (0, 0),
) -> Iterator[tuple[int, Row]]:  # fmt: skip
    """Line numbers (from 1; of tables row numbers) and rows of a file; a row that cannot be parsed as its reason.

    Args:
        file: The file, `-` for standard input.
        form: Its format; None to find it out.
        columns: Chooses the columns of a table.
        position: Updated with how far the file has been read.
        dialect: How it is written.
        after: Lines and bytes of the file to begin behind: what `position.offset` was there.
    """
    line = 0
    try:
        with contextlib.ExitStack() as stack:
            stream, raw, name = open_stream(file, stack)
            position.form = form = form or format_of(name, stream, dialect.encoding)
            size = file_size(file)
            if form in TABLES:
                if size is None:
                    raise DataError(f"{form.title()} cannot be read from a pipe, only from a file: name the file")
                open_table = _arrow_rows if form == "arrow" else _parquet_rows
                # A file on the disk is mapped; of one at a URL the parts that are needed are read.
                position.rows, rows = open_table(file, columns, raw if is_url(file) else None)
                position.size, position.stream = size, raw if is_url(file) and not position.rows else None
            else:
                if after[1]:
                    raw.seek(after[1])
                position.stream = raw if size is not None else None
                rows = _text_rows(form, file, stream, columns, dialect, position, after)
            for line, row in rows:
                position.row = line
                yield line, row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is damaged or cut off after line {line}: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {file} after line {line}: {error.strerror or error}") from error


def check_format(format: str | None) -> None:
    """Raise ArgumentError unless it is None or the name of a format."""
    if format is not None and format not in FORMATS:
        raise ArgumentError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")


def file_size(file: str) -> int | None:
    """Bytes of a regular file; None for pipes and standard input, and at URLs whose server does not say."""
    if file == STDIN:
        return None
    if is_url(file):
        there = url_status(file)
        if there.is_folder:
            raise IsADirectoryError(errno.EISDIR, f"it is a folder; give the files in it ({file.rstrip('/')}/*)", file)
        return there.size
    status = os.stat(file)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def checked_size(file: str) -> int | None:
    """Bytes of a regular file that can be read; None for pipes and standard input.

    Raises:
        DataError: it cannot be read.
    """
    # Opened, not only looked at, so that a missing permission shows before a model is loaded. A pipe is only
    # looked at: opening it would take what was written to it.
    try:
        size = file_size(file)
        if size is not None and not is_url(file):
            with open(file, "rb"):
                return size
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    if is_url(file):
        return size
    if file != STDIN and os.path.isdir(file):
        raise DataError(f"cannot read {file}: it is a folder; give the files in it ({file.rstrip('/')}/*)")
    return None


def _text_rows(
    form: str, file: str, stream: Stream, choose_columns: ChooseColumns, dialect: Dialect, position: Position,
    after: tuple[int, int],
) -> Iterator[tuple[int, Row]]:  # fmt: skip
    """Line numbers (from 1) and rows of a stream of jsonl, csv, tsv or txt.

    Raises:
        DataError: the stream as a whole is not what it should be.
    """
    first, offset = after
    lines = Lines(file, stream, dialect.encoding, offset)
    if stream is position.stream and form in ("jsonl", "txt"):
        position.lines = lines
    if form == "jsonl":
        return _json_rows(file, lines, first, position)
    if form == "txt":
        return _plain_rows(lines, first)
    texts: Iterator[str] = iter(lines)
    delimiter = dialect.delimiter or ("\t" if form == "tsv" else None)
    if delimiter is None:
        delimiter, looked_at = _delimiter(texts)
        texts = chain(looked_at, texts)
    return _table_rows(file, lines, texts, delimiter, choose_columns, dialect.quoting)


def _arrow_rows(
    file: str, choose_columns: ChooseColumns, stream: Stream | None
) -> tuple[int, Iterator[tuple[int, Row]]]:
    """Number of rows of an Arrow file, and its row numbers (from 1) and rows.

    It may be as `datasets` writes them (a stream of batches), or have an index at its end.

    Args:
        file: The file.
        choose_columns: Chooses the columns.
        stream: Its content, if it cannot be mapped: its rows are not counted then, as that would read all of it.

    Raises:
        DataError: the file is damaged or lacks a column (while iterating, too).
    """
    import pyarrow
    from pyarrow import ipc

    def batches() -> Iterator[Any]:
        # Mapped, so that counting rows reads no texts.
        whole = contextlib.nullcontext(pyarrow.PythonFile(stream, "r")) if stream else pyarrow.memory_map(file)
        with whole as source:
            source.seek(0)
            indexed = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = ipc.open_file(source) if indexed else ipc.open_stream(source)
            yield from map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader

    with _arrow_errors(file, "Arrow"):
        counts = [batch.num_rows for batch in batches()] if stream is None else []
        first = next(batches(), None)
        columns = choose_columns(first.schema.names if first is not None else [])

    return sum(counts), _numbered(file, "Arrow", (batch.select(columns) for batch in batches()))


def _parquet_rows(
    file: str, choose_columns: ChooseColumns, stream: Stream | None
) -> tuple[int, Iterator[tuple[int, Row]]]:
    """Number of rows of a Parquet file, and its row numbers (from 1) and rows; arguments as of `_arrow_rows`."""
    from pyarrow import parquet

    with _arrow_errors(file, "Parquet"):
        table = parquet.ParquetFile(file if stream is None else stream)
        columns = choose_columns(table.schema_arrow.names)

    def batches() -> Iterator[Any]:
        with contextlib.closing(table):
            yield from table.iter_batches(batch_size=1024, columns=columns)

    return table.metadata.num_rows, _numbered(file, "Parquet", batches())


def _numbered(file: str, form: str, batches: Iterable[Any]) -> Iterator[tuple[int, Row]]:
    with _arrow_errors(file, form):
        yield from enumerate(chain.from_iterable(map(_batch_rows, batches)), 1)


@contextlib.contextmanager
def _arrow_errors(file: str, form: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        # What pyarrow raises for damaged files is a ValueError (ArrowInvalid), as our own DataError is.
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is damaged or not in the format {form}: {error}") from error


def stem_and_format(name: str) -> tuple[str, str | None]:
    """A file's name without `.gz` and ending, and the format that the ending stands for, None if it is no such."""
    stem, suffix = os.path.splitext(_without_gz(name))
    return stem, _SUFFIXES.get(suffix.lower())


def format_of(name: str, stream: Stream, encoding: str | None = None) -> str:
    """The format by a file's name, or else by its first bytes, which are written in `encoding`, by default UTF-8."""
    _, form = stem_and_format(name)
    if form is not None:
        return form
    head = stream.peek(4096).removeprefix(BOM)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if not is_utf8(encoding):
        decoder = codecs.getincrementaldecoder(encoding or "utf-8")("replace")
        with contextlib.suppress(UnicodeError):  # Said by whoever reads the rest.
            head = decoder.decode(head).removeprefix("\ufeff").encode("utf-8", "replace")
    if head.lstrip()[:1] in (b"{", b"["):
        return "jsonl"
    # A first line that names a column of texts is a table's header.
    header = head.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    for delimiter in _DELIMITERS:
        if delimiter in header and any(part.strip(' "') in TEXT_FIELDS for part in header.split(delimiter)):
            return "tsv" if delimiter == "\t" else "csv"
    return "txt"


def _json_rows(file: str, lines: Lines, before: int, position: Position) -> Iterator[tuple[int, Row]]:
    rest, first = iter(lines), not before
    for line, text in enumerate(rest, before + 1):
        if text.isspace():
            continue
        if first and _SPREAD.match(text):
            position.lines = None
            yield from _spread_json(file, lines, chain([text], rest), line)
            return
        first = False
        if problem := lines.problem(text):
            yield line, BadRow(problem)
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield line, BadRow(f"not valid JSON: {error}")
        else:
            yield line, _object(row)


def _object(row: Any) -> Row:
    return row if isinstance(row, dict) else BadRow(f"a JSON object is expected, not {shown(row)}")


def _spread_json(file: str, lines: Lines, texts: Iterable[str], line: int) -> Iterator[tuple[int, Row]]:
    """Rows of JSON that is not one object per line: of an array, or of objects that take several lines each.

    They are numbered by the line where they begin; in an array that is one line they are counted.

    Args:
        file: For messages.
        lines: What the texts are from.
        texts: The lines from the first that is not blank.
        line: Its number.

    Raises:
        DataError: it is not JSON: where the next object would begin cannot be known.
    """
    decoder, texts, first, number = json.JSONDecoder(), iter(texts), line, 0
    buffer, place, reason = "", 0, "it is cut off"
    array, closed = False, False
    while True:
        gap = re.compile(r"[\s,]*" if array and number else r"\s*").match(buffer, place)
        behind = gap.end() if gap else place
        line, place = line + buffer.count("\n", place, behind), behind
        if place < len(buffer):
            if closed:
                raise DataError(f"{file}, line {line}: not valid JSON: something follows the array")
            if (not number and not array and buffer[place] == "[") or (array and buffer[place] == "]"):
                array, closed, place = True, array, place + 1
                continue
            try:
                row, behind = decoder.raw_decode(buffer, place)
            except (ValueError, RecursionError) as error:
                reason = str(error)
            else:
                number += 1
                problem = lines.problem(buffer[place:behind])
                yield number if line == first else line, BadRow(problem) if problem else _object(row)
                line, place = line + buffer.count("\n", place, behind), behind
                continue
        # Not whole yet. Half of what is looked at is new, so that a long row is not tried at each of its lines.
        least, added, size = max(_SPREAD_READ, len(buffer) - place), list[str](), 0
        while size < least and (text := next(texts, None)) is not None:
            added.append(text)
            size += len(text)
        if not added:
            if place < len(buffer) or (array and not closed):
                raise DataError(f"{file}, line {line}: not valid JSON: {reason}")
            return
        buffer, place = buffer[place:] + "".join(added), 0


def _plain_rows(lines: Lines, before: int) -> Iterator[tuple[int, Row]]:
    # Every line counts, an empty one too: line n of the file stays row n of the vectors.
    for line, text in enumerate(lines, before + 1):
        problem = lines.problem(text)
        yield line, BadRow(problem) if problem else text.removesuffix("\n").removesuffix("\r")


def _delimiter(lines: Iterator[str]) -> tuple[str, list[str]]:
    """The character between the columns of a table, and the lines that were taken to find it out.

    It is one that the header has; of several the one by which the most of the next rows have as many columns.
    """
    looked_at = list[str]()
    for line in lines:
        looked_at.append(line)
        if not line.isspace():
            break
    there = [each for each in _DELIMITERS if looked_at and each in looked_at[-1]]
    if len(there) > 1:
        looked_at += islice(lines, _SNIFFED)
        there.sort(key=lambda each: -_rows_like_header(looked_at, each))
    return there[0] if there else ",", looked_at


def _rows_like_header(lines: Sequence[str], delimiter: str) -> int:
    with contextlib.suppress(csv.Error):
        widths = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells]
        return widths.count(widths[0]) if widths[0] > 1 else 0
    return 0


def _table_rows(
    file: str, lines: Lines, texts: Iterable[str], delimiter: str, choose_columns: ChooseColumns, quoting: Quoting
) -> Iterator[tuple[int, Row]]:
    rows = table_cells(file, texts, delimiter, quoting)
    first, header = next(rows, (0, None))
    if header is None:
        return
    # Bad bytes come as lone surrogates: an exception inside the readers of lines would end them.
    problem = header if isinstance(header, str) else lines.problem(delimiter.join(header))
    if problem:
        raise DataError(f"{file}, line {first}: the header cannot be read: {problem}")
    choose_columns(header)
    for line, cells in rows:
        if isinstance(cells, str):
            yield line, BadRow(cells)
        elif len(cells) != len(header):
            yield line, BadRow(f"it has {len(cells)} columns, the header has {len(header)}")
        elif problem := next(filter(None, map(lines.problem, cells)), None):
            yield line, BadRow(problem)
        else:
            yield line, dict(zip(header, cells, strict=True))


def _batch_rows(batch: Any) -> Iterator[Row]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # A row of the batch is not valid UTF-8: taken one by one, only that row is lost.
    for row in range(batch.num_rows):
        try:
            yield {name: batch.column(name)[row].as_py() for name in batch.schema.names}
        except UnicodeDecodeError as error:
            yield BadRow(not_utf8(error))


def table_cells(file: str, lines: Iterable[str], delimiter: str, quoting: Quoting) -> Iterator[tuple[int, Cells]]:
    """Line numbers (from 1) and rows of a table, the header too; empty lines are left out.

    Args:
        file: For messages.
        lines: Its lines, with their ends.
        delimiter: Between cells.
        quoting: See `Quoting`.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD))
    if quoting == "none":
        return _unquoted(lines, delimiter)
    if quoting == "csv":
        return _quoted(file, lines, delimiter, asked=True)
    if delimiter != "\t":
        return _quoted(file, lines, delimiter)
    return _recognised(file, Ahead(lines), delimiter)


def _recognised(file: str, lines: Ahead[str], delimiter: str) -> Iterator[tuple[int, Cells]]:
    """As long as there is no quote, both ways are the same; the lines from the first one on decide."""
    columns: int | None = None
    for number, line in enumerate(lines):
        if '"' in line:
            window = [line, *lines.look()]
            rest = chain([line], lines)
            if _is_quoted(window, delimiter, columns, whole=lines.ended):
                yield from _quoted(file, rest, delimiter, columns or _width(window, delimiter), before=number)
            else:
                logger.info("%s: quotes are ordinary characters here, as the lines from %d on show", file, number + 1)
                yield from _unquoted(rest, delimiter, before=number)
            return
        for _, cells in _unquoted([line], delimiter):
            columns = columns or len(cells)
            yield number + 1, cells


def _unquoted(lines: Iterable[str], delimiter: str, *, before: int = 0) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, before + 1):
        bare = _bare(line)
        if bare:
            yield number, bare.split(delimiter)


def _bare(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _quoted(
    file: str, lines: Iterable[str], delimiter: str, columns: int | None = None, *, before: int = 0, asked: bool = False
) -> Iterator[tuple[int, Cells]]:
    """Rows of the csv dialect.

    Args:
        file: For messages.
        lines: With their ends.
        delimiter: Between cells.
        columns: Columns of the table, where lines that are rows on their own may not become one row; None to let them.
        before: Lines of the file before these.
        asked: Whether the caller wants it so; else it is said where lines become one row.
    """
    kept: list[str] = []
    rows = csv.reader(_remembered(lines, kept), delimiter=delimiter, strict=True)
    while True:
        number = before + rows.line_num + 1
        kept.clear()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            form = "TSV" if delimiter == "\t" else "CSV"
            reason = f"not valid {form}: {error}"
            if len(kept) > 1:
                reason += (
                    f"; by its quotes it continues to line {before + rows.line_num:,}. If quotes enclose nothing in "
                    "this file, give --quoting none"
                )
            yield number, reason
            continue
        last = before + rows.line_num
        if len(kept) > 1 and columns is not None and _rows_alone(kept, delimiter, columns) == len(kept):
            reason = (
                f"lines {number:,} to {last:,} are one row if quotes enclose fields, and separate rows if they do not: "
                "--quoting csv reads them as one row, --quoting none as separate rows"
            )
            yield number, reason
            continue
        if len(kept) > 1 and not asked:
            asked = True
            _say_once(
                f"{file}: lines {number:,} to {last:,} are read as one row, because quotes enclose them; so are others "
                "like them. --quoting none reads every line as a row"
            )
        if cells:
            yield number, cells


@lru_cache(1024)
def _say_once(message: str) -> None:
    # A file is read more than once: to find out what it is, to check it, to use it.
    logger.warning(message)


def _remembered(lines: Iterable[str], kept: list[str]) -> Iterator[str]:
    for line in lines:
        kept.append(line)
        yield line


def _is_quoted(window: Sequence[str], delimiter: str, columns: int | None, *, whole: bool) -> bool:
    """Whether quotes enclose fields in some lines, of which the first has a quote.

    What loses fewer rows is right. If neither way loses any, one sign speaks against the csv dialect: a quote within a
    field that is not enclosed, since whatever writes that dialect encloses such fields.

    Args:
        window: The lines, with their ends.
        delimiter: Between cells.
        columns: Columns of the table; None if the header is among the lines.
        whole: Whether no further line follows.
    """
    plain = [cells for _, cells in _unquoted(window, delimiter)]
    width = columns or len(plain[0])
    lost_plain = sum(len(cells) != width for cells in plain)
    width = columns or _width(window, delimiter)
    kept: list[str] = []
    rows = csv.reader(_remembered(window, kept), delimiter=delimiter, strict=True)
    lost, stray = 0, False
    while True:
        kept.clear()
        try:
            cells = next(rows)
        except StopIteration:
            break
        except csv.Error:
            # A field that continues behind the lines that were looked at is not an error, unless it is most of them.
            lost += whole or rows.line_num < len(window) or 2 * len(kept) > len(window)
            lost += _rows_alone(kept[1:], delimiter, width) if width > 1 else 0
            continue
        if not cells:
            continue
        lost += len(cells) != width
        if len(kept) == 1:
            # With quotes within: were they enclosed, there would be more of them in the line than in the cells.
            stray = stray or any('"' in cell and cell in _bare(kept[0]).split(delimiter) for cell in cells)
        elif width > 1:
            lost += _rows_alone(kept, delimiter, width)
    return lost < lost_plain or (lost == lost_plain and not stray)


def _width(window: Sequence[str], delimiter: str) -> int:
    """Columns of the header that some lines begin with, in the csv dialect."""
    try:
        return len(next(csv.reader(window, delimiter=delimiter), []))
    except csv.Error:
        return 0


def _rows_alone(lines: Sequence[str], delimiter: str, columns: int) -> int:
    """Number of lines that have the columns of a row if quotes count for nothing."""
    return sum(len(_bare(line).split(delimiter)) == columns for line in lines) if columns > 1 else 0
