"""Text of documents: Markdown, HTML, PDF and Word files, their headings, anchors and blocks."""

from __future__ import annotations

import datetime
import gzip
import re

import pytest

from bgekit.data.markup import Document, parts, read_document, sections
from bgekit.errors import DataError
from office_files import docx, pdf

GUIDE = """\
Before any heading.

# Guide

About *this* guide.

## Install `it`

### Linux

Run the command.

- one
  - nested

### Linux

| system | command |
|---|---|
| Debian | apt |
| Fedora | dnf |

```sh
# no heading
apt install it
```

## 安装 指南!

用 包管理器 安装。

Setext
------

> # no heading of the document
"""


@pytest.fixture
def read(tmp_path):
    def read(name, content, form=None, encoding=None):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding or "utf-8"))
        return read_document(str(path), form or path.suffix[1:], encoding)

    return read


def outline(document):
    return [(section.title, section.anchor, section.line) for section in sections(document)]


# --- Markdown


def test_sections(read):
    document = read("a.md", GUIDE)
    assert outline(document) == [
        ("", "", 1),
        ("Guide", "guide", 3),
        ("Guide > Install it > Linux", "linux", 9),
        ("Guide > Install it > Linux", "linux-1", 16),
        ("Guide > 安装 指南!", "安装-指南", 28),
        ("Guide > Setext", "setext", 32),
    ]
    texts = [section.text for section in sections(document)]
    assert texts[:2] == ["Before any heading.", "About *this* guide."]
    assert texts[2] == "Run the command.\n\n- one\n  - nested"
    assert texts[5] == "> # no heading of the document"


def test_blocks_lie_end_to_end(read):
    for section in sections(read("a.md", GUIDE)):
        left = section.text
        for block in section.blocks:
            left = left.replace(section.text[block.start : block.end], "", 1)
        assert not left.strip()


def test_rows_know_their_header(read):
    table, code = sections(read("a.md", GUIDE))[3].blocks
    assert code.kind == "code"
    rows = [row for part in table.parts for row in part.parts]
    assert [(row.kind, row.header) for row in rows] == [
        ("row", ""), ("row", "| system | command |\n|---|---|"), ("row", "| system | command |\n|---|---|"),
    ]  # fmt: skip


def test_without_headings_as_titles_they_stay_in_the_text(read):
    document = read("a.md", GUIDE)
    found = sections(Document(document.text, marked=True, headings=False))
    assert {section.title for section in found} == {""}
    assert found[1].text.startswith("# Guide\n")


def test_headings_with_nothing_below_them(read):
    assert outline(read("a.md", "# A\n## B\n## C\n\ntext\n# D\n")) == [
        ("A > B", "b", 2), ("A > C", "c", 3), ("D", "d", 6),
    ]  # fmt: skip
    assert sections(read("b.md", "\n \n")) == sections(read("c.md", "")) == []


@pytest.mark.parametrize(
    ("headings", "anchors"),
    [
        (["What's new?", "C++ & Rust", "snake_case", "`--option`"], ["whats-new", "c--rust", "snake_case", "--option"]),
        (["Same", "Same", "Same-1", "Same"], ["same", "same-1", "same-1-1", "same-2"]),
        (["हिन्दी", "Ünïcode", "!!!"], ["हिन्दी", "ünïcode", "section"]),
    ],
)
def test_anchors(read, headings, anchors):
    text = "\n".join(f"# {heading}\n\nx\n" for heading in headings)
    assert [section.anchor for section in sections(read("a.md", text))] == anchors


def test_front_matter(read):
    document = read("a.md", "---\ntitle: Guide to  It\ntags: [a, b]\ndate: 2024-02-01\n1: x\n---\n\n# First\n\nText.\n")
    assert (document.title, document.first_line) == ("Guide to It", 7)
    assert document.fields == {
        "title": "Guide to  It", "tags": ["a", "b"], "date": datetime.date(2024, 2, 1), "1": "x",
    }  # fmt: skip
    assert outline(document) == [("Guide to It > First", "first", 8)]


def test_a_title_is_not_said_twice(read):
    document = read("a.md", "---\ntitle: guide\n---\n# Guide\n\nText.\n")
    assert outline(document)[0][0] == "Guide"
    assert document.own_title == ""


@pytest.mark.parametrize(
    "text", ["---\nno: [yaml\n---\nx\n", "---\njust text\n---\n", "---\nd: 2024-13-45\n---\n", "---\n"]
)
def test_rules_that_enclose_no_front_matter(read, text):
    document = read("a.md", text)
    assert (document.text, document.fields) == (text, {})


@pytest.mark.parametrize(
    ("front", "words"),
    [
        ("a: 1\ntitle: Roof: slate\n", ", line 3: .*mapping values are not allowed"),
        ("d: 2024-13-45\n", ": .*month must be"),
    ],
)
def test_front_matter_that_is_broken_is_named(read, caplog, front, words):
    assert read("a.md", f"---\n{front}---\nx\n").fields == {}
    (message,) = caplog.messages
    assert re.search(rf"a\.md{words}.*in quotes", message) and "is not YAML and is read as text" in message
    caplog.clear()
    assert read("b.md", "---\njust text\n---\n").fields == {} and not caplog.messages


def test_line_ends_and_marks_of_other_systems(read):
    for text in ("\ufeff# A\r\n\r\ntext\r\n", "# A\r\rtext\r"):
        document = read("a.md", text)
        assert outline(document) == [("A", "a", 1)]
        assert sections(document)[0].text == "text"


def test_encodings(read, tmp_path):
    text = "# 标题\n\n用中文写的文本，很长，足以猜出它的编码是什么。\n"
    assert sections(read("a.md", text, encoding="gb18030"))[0].title == "标题"
    with pytest.raises(DataError, match=r"b\.md, line 1: not valid UTF-8.*--encoding gb18030 reads it"):
        read("b.md", text.encode("gb18030"))
    assert read("c.md", gzip.compress(text.encode()), "md").text == text
    with pytest.raises(DataError, match=r"d\.md is damaged or cut off"):
        read("d.md", gzip.compress(text.encode())[:-20], "md")


def test_parts(read):
    document = read("a.md", GUIDE)
    assert [part.suffix for part in parts(document, "file")] == [""]
    assert [part.suffix for part in parts(document, "section")][:4] == ["", "#guide", "#linux", "#linux-1"]
    found = list(parts(document, "paragraph"))
    assert [part.suffix for part in found] == [f"#{number}" for number in range(len(found))]
    assert (found[3].document.title, found[3].document.text) == ("Guide > Install it > Linux", "- one\n  - nested")


def test_paragraphs_of_plain_text():
    document = Document("One,\nstill one.\n\n  \nTwo.\n\n\n")
    assert [part.document.text for part in parts(document, "paragraph")] == ["One,\nstill one.", "Two."]
    assert [part.suffix for part in parts(document, "section")] == [""]


# --- HTML


def test_html(read):
    document = read(
        "a.html",
        """<!doctype html><html><head><title>Page &amp; site</title><style>p {}</style></head><body>
        <nav><a href="/">Home</a></nav><script>var x = "<p>no text</p>"</script>
        <h1>Guide<a class="headerlink" href="#g">¶</a></h1><p>snake_case &lt;tag&gt; <a href="x">a link</a>&nbsp;中文
        <ul><li>one<ul><li>nested<li>more</ul><li>two</ul>
        <table><tr><th>a<th>b<tr><td>1<td>2<br>3</table>
        <pre><code># no heading


  indented</code></pre>
        <h2>Sub <em>em</em></h2>unclosed <b>bold <i>x</b></i> <img src="data:image/png;base64,AAAA" alt="a picture">
        """,
    )
    assert document.title == ""  # Its first heading says what it is.
    assert outline(document) == [("Guide", "guide", 1), ("Guide > Sub em", "sub-em", 1)]
    first, second = (section.text for section in sections(document))
    assert first.startswith("snake_case <tag> a link 中文\n")
    assert "- one\n  - nested\n  - more\n- two" in first
    assert "| a | b |\n| --- | --- |\n| 1 | 2 3 |" in first
    assert "```\n# no heading\n\n  indented\n```" in first
    assert second == "unclosed **bold *x*** a picture"
    assert not any(word in document.text for word in ("Home", "no text", "¶", "base64", "href"))


def test_the_main_part_of_a_page(read):
    html = "<title>T</title><body><header>Site</header><main><p>The text.</p></main><footer>Imprint</footer>"
    document = read("a.html", html)
    assert (document.title, document.text) == ("T", "The text.")
    assert read("b.html", '<div role="navigation">x</div><div role="main">y</div>').text == "y"


def test_tables_that_arrange_a_page(read):
    html = "<table><tr><td><h2>Head</h2><p>Text.</p><table><tr><td>1</td></tr></table></td></tr></table>"
    assert outline(read("a.html", html)) == [("Head", "head", 1)]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("", ""),
        ("only text", "only text"),
        ("<p>", ""),
        ("<p>a<p>b", "a\n\nb"),
        ("</div><b>x", "**x**"),
        ("<!-- c -->x", "x"),
    ],
)
def test_broken_html(read, html, text):
    assert read("a.html", html).text == text


def test_html_says_its_encoding(read):
    html = '<meta charset="gb2312"><p>中文镕</p>'
    assert read("a.html", html.encode("gb18030")).text == "中文镕"
    assert read("b.html", html).text == "中文镕"  # It is UTF-8, whatever it says.
    assert read("c.html", "<p>中文</p>", encoding="big5").text == "中文"
    xhtml = (
        '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><body><p>Ü</p></body></html>'
    )
    assert read("d.html", xhtml).text == "Ü"


# --- PDF and Word


def test_pdf(read):
    document = read("a.pdf", pdf("First page.\nSecond line.", "Last page."))
    assert document.text.split() == "First page. Second line. Last page.".split()
    assert not document.marked


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as PDF"),
        (b"%PDF-1.4 nothing", "cannot be read as PDF"),
        (pdf(""), "its page is a picture"),
    ],
)
def test_bad_pdf(read, content, message, caplog, recwarn):
    with pytest.raises(DataError, match=rf"a\.pdf .*{message}"):
        read("a.pdf", content)
    assert not caplog.records and not list(recwarn)


def test_docx(read):
    table = [["system", "command"], ["Debian", "apt"]]
    document = read("a.docx", docx(("Title", "Handbook"), ("heading 1", "安装"), ("Normal", "Run it & see."), table))
    assert document.title == "Handbook"
    assert outline(document) == [("Handbook > 安装", "安装", 1)]
    text = sections(document)[0].text
    assert text.startswith("Run it & see.") and "| Debian | apt |" in text


def test_bad_docx(read):
    with pytest.raises(DataError, match=r"a\.docx cannot be read as a Word file"):
        read("a.docx", b"PK\x03\x04 nothing")
