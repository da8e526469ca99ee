from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

import bgekit
from bgekit.display import pages
from bgekit.display.pages import Section, Svg, Table, render, render_page, render_report

EVIL = '<b>|*x*\x1b[31m\u202e\ud800"'


@pytest.fixture
def fill(monkeypatch):
    """`fill(name, text, **values)`: a template of this text, filled in."""

    def fill(name, text, **values):
        environment = pages._environment(name.endswith(".html.jinja"))
        monkeypatch.setattr(environment, "loader", jinja2.DictLoader({name: text}))
        return render(name, **values)

    return fill


def test_every_value_is_escaped_and_cleaned(fill):
    assert fill("a.html.jinja", "{{ x }}", x=EVIL) == "&lt;b&gt;|*x* [31m &#34;"
    assert fill("b.md.jinja", "{{ x }}", x=EVIL) == r'\<b\>\|\*x\* \[31m "'


@pytest.mark.parametrize(("name", "escaped"), [("c.html.jinja", "&lt;i&gt;"), ("c.md.jinja", r"\<i\>")])
def test_macros_escape_once(fill, name, escaped):
    text = "{% macro m(x) %}<p>{{ x }}</p>{% endmacro %}{{ m(x) }}{{ m(m(x)) }}"
    assert fill(name, text, x="<i>") == f"<p>{escaped}</p><p><p>{escaped}</p></p>"


def test_what_is_markup_already_stays(fill):
    assert fill("d.html.jinja", "{{ x }}", x=Svg("<svg/>", None)) == "<svg/>"
    assert fill("d.md.jinja", "{{ x|cell }} {{ x|safe }}", x="`a|b`_") == r"`a\|b`_ `a|b`_"


def test_a_missing_value_is_an_error(fill):
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        fill("e.html.jinja", "{{ missing }}")


def test_a_page_without_a_script_lets_none_run():
    values = {"about": "", "findings": (), "notes": ["<b>"], "notes_are": "<a>", "sections": ()}
    page = render_page("display/report.html.jinja", "<Title>", **values)
    assert "script-src" not in page and "<script" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert page.count("&lt;Title&gt;") == 2 and "&lt;b&gt;" in page


def test_a_report_says_what_was_found_before_its_sections_and_escapes_all_of_it():
    table = Table(("a", "<b>"), [("<c>", "1")], numbers=(1,), sortable=True)
    sections = [Section("One", "text", facts=[("<name>", "value")]), Section("<Two>", table=table, folded=True)]
    page = render_report("T", about="<about>", findings=[("<sure>", True), ("seen", False)], sections=sections)
    assert page.index("&lt;sure&gt;") < page.index('<li class="open">seen') < page.index("<h2>One</h2>")
    assert page.count("<details") == 1 and 'class="sortable narrow"' in page
    assert '<th scope="col" class="n">&lt;b&gt;' in page
    for raw in ("<about>", "<name>", "<c>", "<Two>"):
        assert raw not in page


def test_every_template_can_be_read():
    root = Path(bgekit.__file__).parent
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.jinja")]
    assert len(names) >= 10
    for name in names:
        pages._environment(name.endswith(".html.jinja")).get_template(name)
        assert re.fullmatch(r".*\.(html|md)\.jinja", name), name
