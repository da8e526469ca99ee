"""Rows of csv and tsv files: whether quotes enclose fields, or are characters like any other.

Corpora in tsv (Tatoeba, MS MARCO, T2Ranking) are mostly unquoted: a `"` that opens a field and is never closed is then
the beginning of a quotation, and the csv dialect would make one row of all lines as far as the next one.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, Literal, TypeAlias, get_args

from ..errors import ArgumentError
from .lines import Ahead

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


def check_quoting(quoting: str) -> None:
    """Raise ArgumentError unless it is one of the three."""
    if quoting not in QUOTINGS:
        raise ArgumentError(f"quoting must be one of {', '.join(QUOTINGS)}, not {quoting!r}")


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
                logger.info("%s: quotes are characters like any other, as lines from %d on show", file, number + 1)
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
        columns: Of the table, where lines that are rows on their own may not become one row; None to let them.
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
            reason = f"not valid {'TSV' if delimiter != ',' else 'CSV'}: {error}"
            if len(kept) > 1:
                reason += (
                    f"; by its quotes it goes on to line {before + rows.line_num:,}. If quotes enclose nothing in this "
                    "file: --quoting none"
                )
            yield number, reason
            continue
        last = before + rows.line_num
        if len(kept) > 1 and columns is not None and _rows_alone(kept, delimiter, columns) == len(kept):
            yield number, _alone(number, last)
            continue
        if len(kept) > 1 and not asked:
            asked = True
            _say_once(
                f"{file}: lines {number:,} to {last:,} are one row, as quotes enclose them; so are others like them. "
                "--quoting none takes every line for a row"
            )
        if cells:
            yield number, cells


def _alone(first: int, last: int) -> str:
    return (
        f"lines {first:,} to {last:,} would be one row by their quotes, and are rows on their own without them: "
        "--quoting none takes them so, --quoting csv as one"
    )


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
        columns: Of the table; None if the header is among the lines.
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
            # A field that goes on behind the lines that were looked at is no error, unless it is most of them.
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
    """How many lines have the columns of a row, if quotes count for nothing."""
    return sum(len(_bare(line).split(delimiter)) == columns for line in lines) if columns > 1 else 0
