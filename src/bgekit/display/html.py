"""Pieces of an HTML page. What comes from data goes through `text`; everything else takes and gives HTML."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Iterable, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from .plots import DARK, LIGHT, MARKERS, ROLES, Look
from .text import printable

if TYPE_CHECKING:
    pass


def text(content: str) -> str:
    """A text of a document, of data or of a file as HTML: no tags, no control characters, no turned direction."""
    return escape(printable(content))


def prose(content: str) -> str:
    """A text in a language of its own, which may run from right to left."""
    return f'<bdi dir="auto">{text(content)}</bdi>'


def tag(name: str, *content: str, cls: str = "") -> str:
    """An element."""
    attribute = f' class="{cls}"' if cls else ""
    return f"<{name}{attribute}>{''.join(content)}</{name}>"


def marker(look: Look, label: str = "") -> str:
    """How a model is drawn in plots, with its name for those who cannot see it unless that stands beside it."""
    inner = f'<path d="{MARKERS[look.marker]}"/>'
    role = 'aria-hidden="true"'
    if label:
        role, inner = f'role="img" aria-label="{text(label)}"', f"<title>{text(label)}</title>{inner}"
    return f'<svg class="mark" viewBox="0 0 16 16" {role} style="fill: var(--s{look.place})">{inner}</svg>'


def model(label: str, look: Look) -> str:
    """A model's name after its marker."""
    return f'<span class="model">{marker(look)}{tag("bdi", text(label))}</span>'


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Collection[int] = (), cls: str = "",
    sortable: bool = False,
) -> str:  # fmt: skip
    """A table in a box that scrolls where the page is too narrow.

    Args:
        head: Of the columns.
        rows: The first cell of each is its head.
        numbers: Places of columns of numbers.
        cls: Further classes.
        sortable: Whether readers can sort it.
    """

    def attributes(place: int) -> str:
        return ' class="n"' if place in numbers else ""

    heads = "".join(f'<th scope="col"{attributes(place)}>{each}</th>' for place, each in enumerate(head))
    body = []
    for first, *others in rows:
        cells = "".join(f"<td{attributes(place)}>{each}</td>" for place, each in enumerate(others, 1))
        body.append(f'<tr><th scope="row"{attributes(0)}>{first}</th>{cells}</tr>')
    classes = " ".join(each for each in (cls, "sortable" if sortable and len(body) > 2 else "") if each)
    opening = f'<table class="{classes}">' if classes else "<table>"
    inner = f"{opening}<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    # With a tab stop, so that the keyboard can scroll it.
    return f'<div class="scroll" tabindex="0">{inner}</div>'


def pairs(content: Iterable[tuple[str, str]]) -> str:
    """Names and values, neither of them HTML yet."""
    return tag("dl", *(f"<div><dt>{text(key)}</dt><dd>{prose(value)}</dd></div>" for key, value in content))


def figure(svg: str, caption: str, *, cls: str = "") -> str:
    """A plot with its caption."""
    return tag("figure", svg, tag("figcaption", caption), cls=cls)


def folded(summary: str, *content: str, opened: bool = False, cls: str = "") -> str:
    """What readers unfold."""
    attribute = f' class="{cls}"' if cls else ""
    return f"<details{attribute}{' open' if opened else ''}><summary>{summary}</summary>{''.join(content)}</details>"


def page(title: str, header: str, main: str, *, script: str = "") -> str:
    """A page in our style: colours for light and dark, type, tables.

    Args:
        title: In the browser's tab; a text.
        header: HTML at the top.
        main: HTML of the content.
        script: The only one that runs.
    """
    # Nothing is loaded, and no script runs but our own: a text that slipped through escaping could do nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{allowed}'"
        script = f"\n{tag('script', script)}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_variables()}{_asset('page.css')}</style></head>\n"
        f"<body>{tag('header', header)}\n{tag('main', main)}{script}</body></html>\n"
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _variables() -> str:
    """The colours by name, for a light and for a dark page."""
    light, dark = (
        "".join(f"--{name}:{colors[place]};" for name, colors in ROLES.items())
        + "".join(f"--s{number}:{color};" for number, color in enumerate(series, 1))
        for place, series in enumerate((LIGHT, DARK))
    )
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}@media print{{:root{{{light}}}}}\n"
