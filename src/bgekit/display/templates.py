"""HTML pages and Markdown from Jinja2 templates, in which every value is escaped.

A template is a file beside the module that fills it: `*.html.jinja` or `*.md.jinja`. It holds markup only; what is
shown, and in which words and digits, is decided by the module.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from .plots import DARK, LIGHT, ROLES
from .text import escape, printable

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """The text of a template with its values filled in.

    A value is a text of a document, of data or of a file: it loses control characters and turned directions, and shows
    itself instead of acting as markup, as HTML or as Markdown does. Markup are results of macros, values with
    `__html__` (`display.plots.Svg`), and what a template marks as `safe`; `cell` escapes what would end a cell of a
    Markdown table, and nothing else.

    Args:
        template: Path below the package, such as "recipes/recipe_report.md.jinja".
        values: The template's variables; one that is missing is an error.
    """
    return _environment(template.endswith(".html.jinja")).get_template(template).render(values)


def render_page(template: str, title: str, *, script: bool = False, **values: Any) -> str:
    """A page from a template that extends display/page.html.jinja: one file, with colours for light and dark.

    Args:
        template: Path below the package.
        title: The title in the browser's tab and at the top.
        script: Whether tables can be sorted and links unfold their target (page.js).
        values: The template's variables.
    """
    from markupsafe import Markup

    # Nothing is loaded, and no script runs but our own: a text that slipped through escaping could do nothing.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    code = _asset("page.js") if script else ""
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    light, dark = (
        "".join(f"--{name}:{colors[place]};" for name, colors in ROLES.items())
        + "".join(f"--s{number}:{color};" for number, color in enumerate(series, 1))
        for place, series in enumerate((LIGHT, DARK))
    )
    style = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}@media print{{:root{{{light}}}}}\n"
    return render(
        template, title=title, policy=Markup(policy), style=Markup(style + _asset("page.css")), script=Markup(code),
        **values,
    )  # fmt: skip


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
