"""How search results are shown: readably on a terminal, or as JSON lines."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..search.index import Hit

#: Lines of text shown of each result, and the widest they get on a wide terminal.
_LINES: Final = 2
_WIDEST: Final = 120


def show(query: str, hits: list[Hit], *, as_json: bool, lines: int = _LINES, typed: bool = False) -> None:
    """Print the results of one query, whose text is on the screen already if it was `typed`."""
    if as_json:
        print(json_line(query, hits))
    else:
        text = readable(query, hits, min(shutil.get_terminal_size((100, 24)).columns, _WIDEST), lines)
        print(text.partition("\n")[2] if typed else text)
    sys.stdout.flush()


def json_line(query: str, hits: list[Hit]) -> str:
    """The results of one query as one line of JSON."""
    content = {"query": query, "results": [hit.to_dict() for hit in hits]}
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # A terminal's old encoding, or a lone surrogate: escapes say the same.
        return json.dumps(content)
    return line


def readable(query: str, hits: list[Hit], width: int, lines: int = _LINES) -> str:
    """The results of one query for a screen `width` columns wide."""
    shown = [f"? {_printable(query)}"]
    if not hits:
        shown.append("  nothing: the index is empty")
    margin = " " * 5
    for hit in hits:
        part = f"  (passage {hit.passage + 1})" if hit.passage else ""
        shown.append(f"{hit.rank:>3}  {hit.score:.3f}  {_printable(hit.id)}{part}")
        if hit.text:
            # A title that is the id stands above already.
            text = _printable(hit.text.removeprefix(f"{hit.id} "))
            shown += [margin + line for line in wrapped(text, max(width - len(margin), 20), lines)]
    return _encodable("\n".join(shown) + "\n")


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """The beginning of a text in at most so many lines; what is left out is an ellipsis."""
    found: list[str] = []
    rest = text
    while rest and len(found) < lines:
        last = len(found) == lines - 1
        end = _fitting(rest, width)
        if end < len(rest) and last:
            end = _fitting(rest, width - 1)
        if end < len(rest) and rest[end] != " " and (space := rest.rfind(" ", 1, end)) > end // 2:
            end = space
        line, rest = rest[:end].rstrip(), rest[end:].lstrip()
        found.append(line + "…" if rest and last else line)
    return found


def _fitting(text: str, width: int) -> int:
    """How many characters fit into so many columns; Chinese characters take two."""
    for end, character in enumerate(text):
        width -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width < 0:
            return max(end, 1)
    return len(text)


def _printable(text: str) -> str:
    """On one line, without control characters: a document must not steer the terminal."""
    return " ".join("".join(" " if unicodedata.category(each)[0] == "C" else each for each in text).split())


def _encodable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
