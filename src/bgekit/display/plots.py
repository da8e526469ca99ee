"""How plots look: one colour and one marker for each model, and SVG whose colours the page can change."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from ..errors import ArgumentError, import_extra
from ..files.atomic import atomic_file
from .text import printable

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
    """How a model is drawn, in every plot.

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


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's settings for our plots; a label is no formula, whatever it contains."""
    matplotlib: Any = import_extra("matplotlib", "eval")
    manager: Any = import_extra("matplotlib.font_manager", "eval").fontManager
    there = {font.name for font in manager.ttflist}
    settings = {
        "font.family": ["DejaVu Sans", *(name for name in _FONTS if name in there)],
        "font.size": 12, "text.parse_math": False, "text.color": INK, "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID, "axes.facecolor": "none", "figure.facecolor": SURFACE, "axes.linewidth": 1,
        "axes.spines.top": False, "axes.spines.right": False, "axes.labelsize": 12, "axes.unicode_minus": True,
        "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
        "xtick.labelsize": 11, "ytick.labelsize": 11, "grid.color": GRID, "grid.linewidth": 1, "axes.axisbelow": True,
        "lines.linewidth": 1.8, "lines.markersize": 6, "legend.frameon": False, "legend.fontsize": 11,
        "svg.fonttype": "none", "svg.hashsalt": "bgekit", "path.simplify": True,
    }  # fmt: skip
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
        figure: Of matplotlib, drawn within `drawing()`.
        name: Unique on the page: all ids begin with it.
        title: What the plot shows, for those who cannot see it.
        standalone: For a file of its own; otherwise for a page of HTML.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=not standalone)
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    # A style for all elements of a page is none of a plot's business; these are the defaults anyway or close to it.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    body = text[text.index("<svg") :]
    root, _, body = body.partition(">")
    box = re.search(r'viewBox="([^"]*)"', root)
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', body))
    # Texts hold no "<" or ">", which are escaped there: what lies between them is a tag.
    body = re.sub(r"<[^<>]*>", lambda tag: _tag(tag[0], name, used), body)
    body = re.sub(r"\n\s*", "\n", re.sub(r"<defs>\s*</defs>", "", body))
    attributes = f'viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(printable(title))}"'
    if standalone:
        size = f'width="{figure.get_figwidth() * 72:g}" height="{figure.get_figheight() * 72:g}"'
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return Svg(f"<svg {spaces} {size} {attributes}>{body}", figure)
    return Svg(f"<svg {attributes}>{body.strip()}", figure)


def _tag(tag: str, name: str, used: set[str]) -> str:
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", tag)
    tag = re.sub(r"(url\(#|href=\"#)", rf"\1{name}-", tag)
    tag = re.sub(r"(?<=fill: |roke: )#[0-9a-f]{6}", lambda found: _VARIABLES.get(found[0], found[0]), tag)
    # Hundredths of a unit are seen by nobody, and they are half of a page's bytes.
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    # "font-family" in newer releases of matplotlib, "font: 12px ..." in older ones.
    tag = re.sub(r'font-family: [^;"]*', "font-family: system-ui, sans-serif", tag)
    return re.sub(r'font: ([^;"]*?\d+(?:\.\d+)?px) [^;"]*', r"font: \1 system-ui, sans-serif", tag)


def save_plot(plot: str | Any, path: str | Path) -> None:
    """Write a plot to a file that is complete or not there.

    Args:
        plot: What a function of `plots` returned, or a figure of matplotlib.
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
