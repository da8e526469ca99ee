"""Text in columns of a terminal, where Chinese characters take two."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence


def printable(text: str) -> str:
    """A text on one line and without control characters: a document must steer neither terminal nor page."""
    return " ".join("".join(" " if unicodedata.category(each)[0] == "C" else each for each in text).split())


def encodable(text: str) -> str:
    """A text with question marks for characters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def columns(text: str) -> int:
    """The number of columns that a text takes."""
    return sum(map(_columns, text))


def clipped(text: str, width: int) -> str:
    """A text cut to so many columns, with an ellipsis where something is missing."""
    return text if columns(text) <= width else text[: _fitting(text, width - 1)].rstrip() + "…"


def middle_clipped(text: str, width: int) -> str:
    """A name cut to so many columns in its middle: names of models differ at their ends."""
    if columns(text) <= width:
        return text
    tail = text[len(text) - _fitting(text[::-1], (width - 1) // 2) :]
    return text[: _fitting(text, width - 1 - columns(tail))] + "…" + tail


def padded(text: str, width: int) -> str:
    """A text with spaces after it up to so many columns."""
    return text + " " * (width - columns(text))


def aligned(rows: Sequence[Sequence[str]], *, widest: int | None = None) -> Iterator[str]:
    """The lines of a table, whose columns are as wide as their widest cells.

    Args:
        rows: Texts of cells.
        widest: The most columns of the terminal that are kept for a cell; a longer one pushes the rest of its line.
    """
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    widths = widths if widest is None else [min(width, widest) for width in widths]
    for row in rows:
        yield "  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()


def wrapped(text: str, width: int, *, indent: str = "", lines: int | None = None) -> list[str]:
    """A text in lines of at most `width` columns, broken at spaces and, where there are none, between characters.

    Args:
        text: On one line.
        width: Columns, those of `indent` among them.
        indent: Before every line.
        lines: The most lines; what does not fit becomes an ellipsis.
    """
    room = max(width - columns(indent), 8)
    found: list[str] = []
    while text:
        last = lines is not None and len(found) == lines - 1
        end = _fitting(text, room)
        cut = last and end < len(text)
        if cut:
            end = _fitting(text, room - 1)
        if end < len(text) and text[end] != " " and (space := text.rfind(" ", 1, end)) > end // 2:
            end = space
        found.append(text[:end].rstrip() + "…" * cut)
        if last:
            break
        text = text[end:].lstrip()
    return [indent + line for line in found]


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitting(text: str, width: int) -> int:
    """The number of characters that fit into so many columns, at least one."""
    for end, character in enumerate(text):
        width -= _columns(character)
        if width < 0:
            return max(end, 1)
    return len(text)


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def escape(text: str) -> str:
    """A text that markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", printable(text).replace("&", "&amp;"))
