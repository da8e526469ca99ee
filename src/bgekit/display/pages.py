"""HTML pages and Markdown from Jinja2 templates, and the plots on them, in the same colours.

A template is a file beside the module that fills it: `*.html.jinja` or `*.md.jinja`. It holds markup only; what is
shown, and in which words and digits, is decided by the module. Every value is escaped. A plot has one colour and one
marker for each model, and is an SVG whose colours the page can change.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from ..errors import ArgumentError, import_extra
from ..files.atomic import atomic_file
from .terminal import printable

if TYPE_CHECKING:
    from jinja2 import Environment

#: Colours of models on a light and on a dark page. Found by a search that made the least difference of any two as
#: large as possible for normal sight and for the three kinds of colour blindness (matrices of Machado et al. 2009,
#: distance in Oklab), at a contrast of 3 or more to the page.
LIGHT: Final = ("#0a66b0", "#d17f05", "#6f2a53", "#3b9b9b", "#1c1c9c", "#776003", "#02023c", "#3c0d02")
DARK: Final = ("#5aa9e6", "#bd7b20", "#da2f96", "#18f020", "#876afb", "#fdfdc3", "#dccbf6", "#fc8888")
#: Matplotlib's names of markers, and the same shapes in a box of 16 x 16 for the page's own text.
MARKERS: Final = {
    "o": "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "s": "M3.5 3.5h9v9h-9z",
    "^": "M8 2.5L13.5 13h-11z",
    "D": "M8 2L14 8L8 14L2 8z",
    "v": "M8 13.5L2.5 3h11z",
    "P": "M6 2.5h4V6h3.5v4H10v3.5H6V10H2.5V6H6z",
    "X": "M5 2.5l3 3l3-3l2.5 2.5l-3 3l3 3l-2.5 2.5l-3-3l-3 3l-2.5-2.5l3-3l-3-3z",
    "p": "M8 2.5L13.5 6.5L11.4 13H4.6L2.5 6.5z",
}
#: What is not of a model: name of the page's variable -> its colour on a light page and on a dark one. Plots are
#: drawn in the colours of the light page.
ROLES: Final = {
    "ink": ("#1d2025", "#e7e9ec"),
    "muted": ("#5d646e", "#9aa3af"),
    "grid": ("#e2e5e9", "#2c3037"),
    "surface": ("#fefefe", "#15171b"),
}
INK, MUTED, GRID, SURFACE = (ROLES[name][0] for name in ("ink", "muted", "grid", "surface"))


def render(template: str, **values: Any) -> str:
    """The text of a template with its values filled in.

    A value is a text of a document, of data or of a file: it loses control characters and turned directions, and shows
    itself instead of acting as markup, as HTML or as Markdown does. Markup are results of macros, values with
    `__html__` (`Svg`), and what a template marks as `safe`; `cell` escapes what would end a cell of a
    Markdown table, and nothing else.

    Args:
        template: Path below the package, such as "recipes/recipe_report.md.jinja".
        values: The template's variables; one that is missing is an error.
    """
    return _environment(template.endswith(".html.jinja")).get_template(template).render(values)


def render_page(
    template: str, title: str, *, script: bool = False, code: str = "", css: str = "", **values: Any
) -> str:  # fmt: skip
    """A page from a template that extends display/page.html.jinja: one file, with colours for light and dark.

    Args:
        template: Path below the package.
        title: The title in the browser's tab and at the top.
        script: Whether tables can be sorted and links unfold their target (page.js).
        code: A page's own script instead, which may ask the server that the page is from, and no other.
        css: A page's own style, after that of all pages.
        values: The template's variables.
    """
    from markupsafe import Markup

    # Nothing is loaded, and no script runs but our own: a text that slipped through escaping could do nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if code:
        policy += "; connect-src 'self'"
    elif script:
        code = _asset("page.js")
    if code:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    light, dark = (
        "".join(f"--{name}:{colors[place]};" for name, colors in ROLES.items())
        + "".join(f"--s{number}:{color};" for number, color in enumerate(series, 1))
        for place, series in enumerate((LIGHT, DARK))
    )
    style = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}@media print{{:root{{{light}}}}}\n"
    return render(
        template, title=title, policy=Markup(policy), style=Markup(style + _asset("page.css") + css),
        script=Markup(code), **values,
    )  # fmt: skip


#: Columns up to which a table does not take the whole width of a page.
_NARROW: Final = 3


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        head: Head of each column.
        rows: Cells, texts or links (`link`); the first one of a row is its head.
        numbers: Places of columns of numbers.
        sortable: A click on a column's head sorts by it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    sortable: bool = False

    @property
    def cls(self) -> str:
        """Its class in the style sheet."""
        # Two columns at the ends of a wide page are hard to read across.
        return " ".join([*(["sortable"] if self.sortable else []), *(["narrow"] if len(self.head) <= _NARROW else [])])


@dataclass(frozen=True)
class Section:
    """A part of a report: its text, then facts, plots, a table and code, where there are any.

    Attributes:
        title: The heading.
        text: Below it.
        facts: Names and values.
        plots: Each with its caption.
        table: Table of numbers or texts.
        code: Text that is shown as it is typed, such as a command.
        folded: Readers unfold it; it belongs to the section above.
        about: Beside the heading of a folded one.
    """

    title: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()
    plots: Sequence[tuple[Svg, str]] = ()
    table: Table | None = None
    code: str = ""
    folded: bool = False
    about: str = ""


def render_report(
    title: str, *, about: str, findings: Sequence[tuple[str, bool]], sections: Sequence[Section],
    notes: Sequence[str] = (), notes_are: str = "Notes",
) -> str:  # fmt: skip
    """A page that says what was found, then on what that rests.

    Args:
        title: The heading.
        about: One line below it.
        findings: Sentences, and whether each is sure or only seen.
        sections: Sections in order.
        notes: What a reader should know.
        notes_are: Heading of the notes.
    """
    return render_page(
        "display/report.html.jinja", title, script=True, about=about, findings=findings, sections=sections,
        notes=notes, notes_are=notes_are,
    )  # fmt: skip


def link(text: str, to: str, before: str = "") -> str:
    """A link for a cell of a table.

    Args:
        text: What is clicked on.
        to: A file beside the page.
        before: What stands before it in the cell.
    """
    from markupsafe import Markup

    return Markup('{} <a href="{}">{}</a>').format(printable(before), quote(to), printable(text)).strip()


def as_fact(value: object) -> str:
    """A value of settings as a reader sees it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _environment(is_html: bool) -> Environment:
    """Jinja2 with our escaping: of HTML its own, after control characters are gone; of Markdown ours."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        if hasattr(value, "__html__"):
            return value
        return printable(str(value)) if is_html else Markup(escape(str(value)))

    made = Environment(
        loader=PackageLoader("bgekit", ""), autoescape=True, finalize=shown, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters["cell"] = lambda value: Markup(str(value).replace("|", "\\|"))
    return made


_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def escape(text: str) -> str:
    """A text that markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", printable(text).replace("&", "&amp;"))


#: Matplotlib's settings of all plots; a label is not a formula, whatever it contains.
STYLE: Final = {
    "font.size": 12, "text.parse_math": False, "text.color": INK, "figure.facecolor": SURFACE,
    "axes.facecolor": "none", "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.labelsize": 12,
    "axes.linewidth": 1, "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True,
    "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 1, "lines.linewidth": 1.8, "lines.markersize": 6,
    "xtick.color": GRID, "xtick.labelcolor": MUTED, "xtick.labelsize": 11, "ytick.color": GRID,
    "ytick.labelcolor": MUTED, "ytick.labelsize": 11, "legend.frameon": False, "legend.fontsize": 11,
    "svg.fonttype": "none", "svg.hashsalt": "bgekit", "path.simplify": True,
}  # fmt: skip
#: Fonts with Chinese characters that systems carry, for formats in which the font cannot be left to the viewer.
_FONTS: Final = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans GB", "SimHei", "Arial Unicode MS",
)  # fmt: skip
_VARIABLES: Final = {light: f"var(--{name}, {light})" for name, (light, _) in ROLES.items()} | {
    light: f"var(--s{place}, {light})" for place, light in enumerate(LIGHT, 1)
}


@dataclass(frozen=True)
class Look:
    """Colour and marker of a model, the same in every plot.

    Attributes:
        place: 1 for the first colour.
        marker: Matplotlib's name.
    """

    place: int
    marker: str

    @property
    def color(self) -> str:
        """The colour on a light page."""
        return LIGHT[self.place - 1]

    @property
    def outline(self) -> str:
        """The marker as a path of SVG in a box of 16 x 16."""
        return MARKERS[self.marker]


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for each model; from the ninth on, colours come again with other markers."""
    names = list(MARKERS)
    return {
        label: Look(place % len(LIGHT) + 1, names[(place + place // len(LIGHT)) % len(names)])
        for place, label in enumerate(labels)
    }


class Svg(str):
    """The text of an SVG, and the matplotlib figure that it was made from."""

    figure: Any

    def __new__(cls, text: str, figure: Any) -> Svg:
        """The text with its figure."""
        made = super().__new__(cls, text)
        made.figure = figure
        return made

    def __html__(self) -> str:
        """Itself: templates take it as markup."""
        return self


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib with `STYLE`, and with fonts of this machine for Chinese texts."""
    matplotlib: Any = import_extra("matplotlib", "eval")
    manager: Any = import_extra("matplotlib.font_manager", "eval").fontManager
    there = {font.name for font in manager.ttflist}
    settings = STYLE | {"font.family": ["DejaVu Sans", *(name for name in _FONTS if name in there)]}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser has the fonts of Chinese texts even where this machine has none.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many units (1/72 inch; SVG user units)."""
    # No pyplot: it would keep the figure for ever and choose a window system.
    return import_extra("matplotlib.figure", "eval").Figure(figsize=(width / 72, height / 72), dpi=72)


def to_svg(figure: Any, *, name: str, title: str, standalone: bool = False) -> Svg:
    """A figure as SVG that keeps text as text.

    Args:
        figure: Figure of matplotlib, drawn within `drawing()`.
        name: Unique on the page; ids are made from it.
        title: What the plot shows, for those who cannot see it.
        standalone: For a file of its own; otherwise for a page of HTML.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Matplotlib makes the ids that it refers to from this salt: no two plots of a page share one.
    with import_extra("matplotlib", "eval").rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=not standalone)
    body = buffer.getvalue().partition("<svg")[2].partition(">")[2].strip()
    # A style for all elements of a page is none of a plot's business; these are the defaults anyway or close to it.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    # Texts hold no "<" or ">", which are escaped there: what lies between them is a tag.
    body = re.sub(r"<[^<>]*>", lambda tag: _themed(tag[0]), body)
    width, height = (f"{72 * inches:g}" for inches in figure.get_size_inches())
    root = f'viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(printable(title))}"'
    if standalone:
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        root = f'{spaces} width="{width}" height="{height}" {root}'
    return Svg(f"<svg {root}>{body}", figure)


def _themed(tag: str) -> str:
    """A tag in the colours and the font of the page that it stands on, and without what pages do not need."""
    for light, variable in _VARIABLES.items():
        tag = tag.replace(light, variable)
    # Whatever release of matplotlib: in "font-family: ..." or after the size in "font: ...".
    tag = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", tag)
    # Nothing refers to groups; hundredths of a unit are seen by nobody, and they are half of a page's bytes.
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)


def save_plot(plot: str | Any, path: str | Path) -> None:
    """Write a plot to a file that is complete or not there.

    Args:
        plot: What `to_svg` returned, or a figure of matplotlib.
        path: Ends in .svg or .png.

    Raises:
        ArgumentError: another ending, or a PNG of a plain string.
        OutputError: the file cannot be written.
    """
    path = Path(path).expanduser()
    form = path.suffix.lower()
    if form not in (".svg", ".png"):
        raise ArgumentError(f"{path}: a plot is saved as .svg or .png; give a name that ends so")
    figure = plot.figure if isinstance(plot, Svg) else None if isinstance(plot, str) else plot
    if form == ".svg" and isinstance(plot, str):
        content = f'<?xml version="1.0" encoding="utf-8"?>\n{plot}\n'.encode()
    elif figure is None:
        raise ArgumentError(f"{path}: an SVG that is a plain string cannot become a PNG; pass the plot or its figure")
    else:
        buffer = io.BytesIO()
        with drawing():
            figure.savefig(buffer, format=form[1:], dpi=160)
        content = buffer.getvalue()
    with atomic_file(path, doing=f"write the plot {path}") as file:
        file.write(content)
