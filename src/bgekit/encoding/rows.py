"""Rows of input files by format: what `records` makes records of. A row that cannot be parsed comes as its reason."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from ..errors import DataError, import_extra
from .charsets import check_encoding, is_utf8
from .lines import Lines
from .tables import Quoting, check_quoting, table_cells

FORMATS: Final = ("jsonl", "csv", "tsv", "parquet", "arrow", "txt")
#: Formats that the extra `parquet` reads, from files alone: where their rows are stands at their end.
TABLES: Final = ("parquet", "arrow")
STDIN: Final = "-"

_SUFFIXES: Final = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv",
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".txt": "txt", ".text": "txt",
}  # fmt: skip
#: What a file begins with that Git has put in the place of a large one.
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_BOM: Final = b"\xef\xbb\xbf"

Stream: TypeAlias = "io.BufferedReader[Any]"
#: Columns of a table -> those that are needed; raises DataError when there is no text among them.
ChooseColumns: TypeAlias = "Callable[[Sequence[str]], list[str]]"


class BadRow(Exception):
    """Why a row is no record."""


#: Fields by name, a whole text, or why there is neither.
Row: TypeAlias = "Mapping[str, Any] | str | BadRow"


@dataclass(frozen=True)
class Dialect:
    """How text files are written.

    Attributes:
        encoding: By a name that Python knows; None for UTF-8, with a guess in the error where a file is not.
        quoting: Whether quotes in csv and tsv enclose fields: see `tables.Quoting`.

    Raises:
        ArgumentError: there is no such encoding or quoting.
    """

    encoding: str | None = None
    quoting: Quoting = "auto"

    def __post_init__(self) -> None:
        check_encoding(self.encoding)
        check_quoting(self.quoting)

    @property
    def settings(self) -> dict[str, str]:
        """What differs from the usual: of use where it is noted how something was read."""
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


def open_stream(file: str, stack: contextlib.ExitStack) -> tuple[Stream, Stream, str]:
    """The stream of a file's content, the stream of its own bytes, and its name without `.gz`.

    Raises:
        DataError: the file is called `.gz` and is not gzipped, or is a pointer to a file that was not fetched.
        OSError: it cannot be opened.
    """
    raw: Any = sys.stdin.buffer if file == STDIN else stack.enter_context(open(file, "rb", buffering=1 << 17))
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


def text_rows(
    form: str, file: str, stream: Stream, choose_columns: ChooseColumns, dialect: Dialect
) -> Iterator[tuple[int, Row]]:
    """Line numbers (from 1) and rows of a stream of jsonl, csv, tsv or txt.

    Raises:
        DataError: the stream as a whole is not what it should be.
    """
    lines = Lines(file, stream, dialect.encoding)
    if form == "jsonl":
        return _json_rows(file, lines)
    if form == "txt":
        return _plain_rows(lines)
    return _table_rows(file, lines, "\t" if form == "tsv" else ",", choose_columns, dialect.quoting)


def table_rows(form: str, file: str, choose_columns: ChooseColumns) -> tuple[int, Iterator[tuple[int, Row]]]:
    """How many rows a Parquet or Arrow file has, and its row numbers (from 1) and rows.

    Raises:
        DataError: the file is damaged or lacks a column (while iterating, too).
        MissingExtraError: pyarrow is not installed.
    """
    return _arrow_rows(file, choose_columns) if form == "arrow" else _parquet_rows(file, choose_columns)


def _arrow_rows(file: str, choose_columns: ChooseColumns) -> tuple[int, Iterator[tuple[int, Row]]]:
    """Of a file as `datasets` writes them (a stream of batches), or of one with an index at its end."""
    pyarrow: Any = import_extra("pyarrow", "parquet")
    ipc: Any = import_extra("pyarrow.ipc", "parquet")

    def batches() -> Iterator[Any]:
        # Mapped, so that counting rows reads no texts.
        with pyarrow.memory_map(file) as source:
            indexed = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = ipc.open_file(source) if indexed else ipc.open_stream(source)
            yield from map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader

    with _arrow_errors(file, "Arrow"):
        counts = [batch.num_rows for batch in batches()]
        first = next(batches(), None)
        columns = choose_columns(first.schema.names if first is not None else [])

    def rows() -> Iterator[tuple[int, Row]]:
        row = 0
        with _arrow_errors(file, "Arrow"):
            for batch in batches():
                for content in _batch_rows(batch.select(columns)):
                    row += 1
                    yield row, content

    return sum(counts), rows()


def _parquet_rows(file: str, choose_columns: ChooseColumns) -> tuple[int, Iterator[tuple[int, Row]]]:
    parquet = import_extra("pyarrow.parquet", "parquet")
    with _arrow_errors(file):
        table = parquet.ParquetFile(file)
        columns = choose_columns(table.schema_arrow.names)

    def rows() -> Iterator[tuple[int, Row]]:
        with contextlib.closing(table), _arrow_errors(file):
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for content in _batch_rows(batch):
                    row += 1
                    yield row, content

    return table.metadata.num_rows, rows()


@contextlib.contextmanager
def _arrow_errors(file: str, form: str = "Parquet") -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        # What pyarrow raises for damaged files is a ValueError (ArrowInvalid), as our own DataError is.
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} is damaged or no {form} file: {error}") from error


def stem_and_format(name: str) -> tuple[str, str | None]:
    """A file's name without `.gz` and ending, and the format that the ending stands for, None if it is no such."""
    stem, suffix = os.path.splitext(_without_gz(name))
    return stem, _SUFFIXES.get(suffix.lower())


def format_of(name: str, stream: Stream, text_fields: Set[str], encoding: str | None = None) -> str:
    """The format by a file's name, or else by its first bytes, which are written in `encoding`, by default UTF-8."""
    _, form = stem_and_format(name)
    if form is not None:
        return form
    head = stream.peek(4096).removeprefix(_BOM)
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
    for form, delimiter in (("tsv", "\t"), ("csv", ",")):
        if delimiter in header and not text_fields.isdisjoint(part.strip(' "') for part in header.split(delimiter)):
            return form
    return "txt"


def _json_rows(file: str, lines: Lines) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(lines, 1):
        if text.isspace():
            continue
        if problem := lines.problem(text):
            yield line, BadRow(problem)
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            if line == 1 and text.strip() in ("[", "[{"):
                raise DataError(f"{file} is one JSON array; make it JSON lines first (jq -c '.[]')") from error
            yield line, BadRow(f"not valid JSON: {error}")
        else:
            if line == 1 and isinstance(row, list) and row and isinstance(row[0], dict):
                raise DataError(f"{file} is one JSON array; make it JSON lines first (jq -c '.[]')")
            yield line, row if isinstance(row, dict) else BadRow(f"a JSON object is expected, not {shown(row)}")


def _plain_rows(lines: Lines) -> Iterator[tuple[int, Row]]:
    # Every line counts, an empty one too: line n of the file stays row n of the vectors.
    for line, text in enumerate(lines, 1):
        problem = lines.problem(text)
        yield line, BadRow(problem) if problem else text.removesuffix("\n").removesuffix("\r")


def _table_rows(
    file: str, lines: Lines, delimiter: str, choose_columns: ChooseColumns, quoting: Quoting
) -> Iterator[tuple[int, Row]]:
    rows = table_cells(file, lines, delimiter, quoting)
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
        pass  # A row of the batch is no valid UTF-8: taken one by one, only that row is lost.
    for row in range(batch.num_rows):
        try:
            yield {name: batch.column(name)[row].as_py() for name in batch.schema.names}
        except UnicodeDecodeError as error:
            yield _not_utf8(error)


def _not_utf8(error: UnicodeDecodeError) -> BadRow:
    return BadRow(f"not valid UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}")
