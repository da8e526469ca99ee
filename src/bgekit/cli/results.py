"""How search results are shown: readably on a terminal, or as JSON lines."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

from ..evaluation.reports.columns import encodable, printable, wrapped

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
    return as_json({"query": query, "results": [hit.to_dict() for hit in hits]})


def as_json(content: Any) -> str:
    """One line of JSON that standard output can take."""
    line = json.dumps(content, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # A terminal's old encoding, or a lone surrogate: escapes say the same.
        return json.dumps(content)
    return line


def readable(query: str, hits: list[Hit], width: int, lines: int = _LINES) -> str:
    """The results of one query for a screen `width` columns wide."""
    shown = [f"? {printable(query)}"]
    if not hits:
        shown.append("  nothing: the index is empty")
    margin = " " * 5
    for hit in hits:
        part = f"  (passage {hit.passage + 1})" if hit.passage else ""
        shown.append(f"{hit.rank:>3}  {hit.score:.3f}  {printable(hit.id)}{part}")
        if hit.text:
            # A title that is the id stands above already.
            text = printable(hit.text.removeprefix(f"{hit.id} "))
            shown += [margin + line for line in wrapped(text, max(width - len(margin), 20), lines=lines)]
    return encodable("\n".join(shown) + "\n")
