"""Documents as text: Markdown with front matter, HTML, PDF and Word files, their sections and what is not cut apart.

Whatever is marked up becomes Markdown. Headings, tables and fences are found by markdown-it, which knows the lines that
each takes; the text itself stays as it was written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ..errors import DataError, import_extra
from ..files.yaml_tables import read_yaml
from .encodings import Lines
from .formats import Stream, open_stream

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

logger = logging.getLogger(__name__)

#: Stands between the headings that lead to a section.
PATH: Final = " > "
#: Version of how files become text: an index that was made with another one is made again.
VERSION: Final = 1
_FRONT_MATTER: Final = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_BLANK_LINES: Final = re.compile(r"\n(?:[ \t]*\n)+")
#: What surrounds a page's text, is not shown, or is not text.
_NO_TEXT: Final = (
    "script", "style", "nav", "noscript", "template", "iframe", "svg", "math", "button", "select", "dialog",
)  # fmt: skip
_ROLES: Final = ("navigation", "search")
#: A table with one of these in it arranges a page; it does not hold data.
_OF_PAGES: Final = ("table", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "pre", "blockquote")
#: What pages put behind a heading, to link to it.
_MARKS: Final = ("¶", "#", "§", "\U0001f517")
#: Encodings that browsers read as the larger ones they are a part of.
_AS_BROWSERS: Final = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin-1": "cp1252"}
_CONTAINERS: Final = ("bullet_list", "ordered_list", "list_item", "blockquote", "table", "thead", "tbody")
_KINDS: Final = {"fence": "code", "code_block": "code", "tr": "row"}


@dataclass(frozen=True)
class Document:
    """Text of one file, or of a part of it.

    Attributes:
        text: The text, without front matter.
        title: Title that the file states outside its text; of a part the headings that lead to it.
        marked: Whether the text is Markdown, whose headings, tables and fences count.
        fields: Front matter.
        first_line: Line of the file that the text begins in, from 1; 0 where lines of the text are none of the file.
        headings: Whether headings become titles; else they stay in the text.
    """

    text: str
    title: str = ""
    marked: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    first_line: int = 0
    headings: bool = True

    @property
    def whole(self) -> str:
        """The text, without white space around it; "" where there is none."""
        return self.text.strip()

    @property
    def own_title(self) -> str:
        """The title, unless the text begins with it."""
        first = self.whole.partition("\n")[0].strip("# \t")
        return "" if first.casefold() == self.title.casefold() else self.title


@dataclass(frozen=True)
class Block:
    """A part of a text that is cut within only where it is too long: a paragraph, a list, a table, a fence.

    Attributes:
        start: Its first character.
        end: The character behind its last one.
        kind: `row` (of a table, never cut within), `code`, or `text`.
        parts: Blocks that it consists of, such as a list's items.
        header: The lines above the first row of a table, for its other rows.
    """

    start: int
    end: int
    kind: str = "text"
    parts: tuple[Block, ...] = ()
    header: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and the text below it, up to the next heading.

    Attributes:
        title: The headings that lead here, with this one, the document's title first; "" above the first heading.
        anchor: The name by which GitHub links to it; "" above the first heading.
        text: The text, without the heading.
        line: Line of the file where it begins, 1 where that is not known.
        blocks: What the text consists of, without gaps.
    """

    title: str
    anchor: str
    text: str
    line: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Part:
    """A part of a document that is one record.

    Attributes:
        suffix: What comes behind the document's id: "" for the whole document or what stands above its headings.
        document: Its text.
        line: Where it begins, as `Section.line`.
    """

    suffix: str
    document: Document
    line: int


def read_document(file: str, form: str, encoding: str | None = None) -> Document:
    """The text of a file.

    Args:
        file: The file, gzipped or not, `-` for standard input.
        form: `md`, `html`, `pdf` or `docx`.
        encoding: Encoding of Markdown and HTML; by default UTF-8, or what an HTML file states.

    Raises:
        DataError: it cannot be read, or is damaged, or has no text though it has pages.
        MissingExtraError: it needs the extra `documents`, which is not installed.
    """
    try:
        with contextlib.ExitStack() as stack:
            stream, _, _ = open_stream(file, stack)
            return _READERS[form](file, stream, encoding)
    except (EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged or cut off: {error}") from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def _markdown(file: str, stream: Stream, encoding: str | None) -> Document:
    text = _decoded(file, stream, encoding)
    fields, body = _front_matter(file, text)
    title = fields.get("title")
    return Document(
        body, "" if title is None else " ".join(str(title).split()), marked=True, fields=fields,
        first_line=1 + text.count("\n", 0, len(text) - len(body)),
    )  # fmt: skip


def _front_matter(file: str, text: str) -> tuple[dict[str, Any], str]:
    """Fields of the YAML that a text begins with, and the rest of it; what looks like YAML and is not, is named."""
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    import yaml  # type: ignore[import-untyped]

    try:
        fields = read_yaml(match[1])
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01.
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 2}" if mark else ""
        logger.warning(
            "%s%s: the front matter is not YAML and is read as text: %s (a value with a colon stands in quotes)",
            file, line, getattr(error, "problem", None) or error,
        )  # fmt: skip
        fields = None
    if not isinstance(fields, dict):  # Text between two rules.
        return {}, text
    return {str(key): value for key, value in fields.items()}, text[match.end() :]


def _html(file: str, stream: Stream, encoding: str | None) -> Document:
    data = stream.read()
    text = _decoded(file, _stream(data), encoding or _stated_encoding(data))
    with _damage(file, "HTML"):
        soup = _parsed(text)
        # A heading says it better: titles often have the name of the site in them.
        title = "" if soup.find("h1") else _title(soup)
        return Document(_as_markdown(soup), title, marked=True)


def _stated_encoding(data: bytes) -> str | None:
    """What an HTML file says it is written in; None if it says nothing, or is UTF-8 all the same."""
    from bs4.dammit import EncodingDetector

    with contextlib.suppress(UnicodeDecodeError):
        data.decode("utf-8")
        return None
    stated = EncodingDetector.find_declared_encoding(data, is_html=True)
    with contextlib.suppress(LookupError, TypeError):
        "".encode(stated)  # type: ignore[arg-type]
        return _AS_BROWSERS.get(str(stated).lower(), stated)
    return None


def _docx(file: str, stream: Stream, encoding: str | None) -> Document:
    mammoth = import_extra("mammoth", "documents")
    with _damage(file, "a Word file"):
        # Pictures as nothing: in text they are long rows of letters. A paragraph of the style Title is the title.
        html = mammoth.convert_to_html(
            io.BytesIO(stream.read()), convert_image=lambda image: [],
            style_map="p[style-name='Title'] => title:fresh",
        ).value  # fmt: skip
        soup = _parsed(f"<body>{html}</body>")
        title = _title(soup)
        return Document(_as_markdown(soup), title, marked=True)


def _pdf(file: str, stream: Stream, encoding: str | None) -> Document:
    pypdf = import_extra("pypdf", "documents")
    with _damage(file, "PDF"):
        pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(stream.read())).pages]
    text = "\n\n".join(pages)
    if not text.strip():
        count = "its page is a picture" if len(pages) == 1 else f"its {len(pages):,} pages are pictures"
        raise DataError(f"{file} has no text: most likely {count}")
    return Document(text)


#: A reader of each format; all take file, stream and encoding.
_READERS: Final[dict[str, Callable[[str, Stream, str | None], Document]]] = {
    "md": _markdown, "html": _html, "pdf": _pdf, "docx": _docx,
}  # fmt: skip
DOCUMENTS: Final = tuple(_READERS)


@contextlib.contextmanager
def _damage(file: str, what: str) -> Iterator[None]:
    """Whatever a library raises over a damaged file as one error; what it says of a file that it can read is kept back.

    Their own errors are of many kinds: of zip files, of XML, missing keys, a recursion too deep.
    """
    told = logging.getLogger("pypdf")
    level = told.level
    told.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} cannot be read as {what}: {reason:.200}") from error
    finally:
        told.setLevel(level)


def _decoded(file: str, stream: Stream, encoding: str | None) -> str:
    """All text of a stream, with newlines as line ends.

    Raises:
        DataError: it is in another encoding.
    """
    lines = Lines(file, stream, encoding)
    text = "".join(lines)
    if problem := lines.problem(text):
        raise DataError(f"{file}: {problem}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _stream(data: bytes) -> Stream:
    return io.BufferedReader(io.BytesIO(data))  # type: ignore[type-var]


def _parsed(html: str) -> BeautifulSoup:
    # lxml ends list items, cells and paragraphs that are left open, as browsers do; Python's own parser nests them.
    from bs4 import BeautifulSoup

    return BeautifulSoup(html.encode("utf-8", "replace"), "lxml", from_encoding="utf-8")


def _title(soup: BeautifulSoup) -> str:
    title = soup.find("title")
    return "" if title is None else " ".join(title.get_text().split())


def _as_markdown(soup: BeautifulSoup) -> str:
    """The text of a page as Markdown: of its main part, if it says which that is."""
    from markdownify import MarkdownConverter

    page: Tag = soup.find("main") or soup.find(role="main") or soup.body or soup  # type: ignore[assignment]
    for tag in page.find_all([*_NO_TEXT, "title"]) + page.find_all(role=[*_ROLES]):
        tag.decompose()
    for link in page.find_all("a"):
        if link.get_text(strip=True) in _MARKS:
            link.decompose()
    for image in page.find_all("img"):
        image.replace_with(str(image.get("alt") or ""))
    for table in page.find_all("table"):
        if table.find([*_OF_PAGES]):
            cells = table.find_all(["caption", "thead", "tbody", "tfoot", "tr", "th", "td"])
            for tag in [table, *(cell for cell in cells if cell.find_parent("table") is table)]:
                tag.name = "div"
    converter = MarkdownConverter(
        heading_style="atx", bullets="-", strip=["a"], escape_asterisks=False, escape_underscores=False,
        table_infer_header=True,
    )  # fmt: skip
    text: str = converter.convert_soup(page)
    return _BLANK_LINES.sub("\n\n", text.replace("\xa0", " ")).strip("\n")


def sections(document: Document) -> list[Section]:
    """The sections of a document, those left out that have headings below them and no text of their own."""
    text = document.text
    if not document.marked:
        start, end = _trimmed(text, 0, len(text))
        blocks = tuple(_paragraphs(text, start, end))
        return [Section(document.title, "", text[start:end], 1, blocks)] if start < end else []
    offsets = [0, *(match.end() for match in re.finditer("\n", text)), len(text)]
    nodes = _tree(text).children
    places = [place for place, node in enumerate(nodes) if node.type == "heading"]
    levels = [int(nodes[place].tag[1:]) for place in places]
    found, above, anchors = [], list[tuple[int, str]](), _Anchors()
    # What stands above the first heading is a section, too.
    for number, place in enumerate([-1, *places]):
        after = [*places, len(nodes)][number]
        line, begin = 0, 0
        title, anchor = document.title if document.headings else "", ""
        if place >= 0:
            level, (line, behind) = levels[number - 1], _lines(nodes[place])
            name = _plain(nodes[place].children[0].content)
            above = [*((upper, each) for upper, each in above if upper < level), (level, name)]
            anchor = anchors.of(name)
            title = _path(document.title, [each for _, each in above]) if document.headings else ""
            begin = offsets[behind] if document.headings else offsets[line]
        last = offsets[_lines(nodes[after])[0]] if after < len(nodes) else len(text)
        start, end = _trimmed(text, begin, last)
        if start == end and (place < 0 or (number < len(levels) and levels[number] > levels[number - 1])):
            continue
        inside = nodes[place + 1 : after] if document.headings else nodes[max(place, 0) : after]
        blocks = tuple(_tiles(text, inside, offsets, start, end, shift=start))
        where = document.first_line + line if document.first_line else 1
        found.append(Section(title, anchor, text[start:end], where, blocks))
    return found


def parts(document: Document, unit: str) -> Iterator[Part]:
    """The `paragraph`s or `section`s of a document, or the one `file`; none where there is no text."""
    if unit == "file":
        if document.whole or document.title:
            yield Part("", document, 1)
        return
    number = 0
    for section in sections(document):
        line = section.line if document.first_line else 0
        inside = replace(document, text=section.text, title=section.title, first_line=line)
        if unit == "section":
            yield Part(f"#{section.anchor}" if section.anchor else "", inside, section.line)
            continue
        for block in section.blocks:
            yield Part(f"#{number}", replace(inside, text=section.text[block.start : block.end]), section.line)
            number += 1


def _path(title: str, headings: list[str]) -> str:
    if headings and headings[0].casefold() == title.casefold():
        title = ""
    return PATH.join(filter(None, [title, *headings]))


class _Anchors:
    """Anchors of the headings of one document, as GitHub makes them: repeated ones get a number."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, heading: str) -> str:
        """The anchor of the next heading."""
        kept = (each for each in heading.lower() if each in "- _" or unicodedata.category(each)[0] in "LMN")
        name = "".join(kept).strip().replace(" ", "-") or "section"
        anchor = name
        while anchor in self._seen:
            anchor = f"{name}-{self._seen[name]}"
            self._seen[name] += 1
        self._seen[anchor] += 1
        return anchor


@lru_cache(1)
def _parsers() -> tuple[MarkdownIt, MarkdownIt]:
    """One parser that finds blocks alone, and one of what stands in a line."""
    from markdown_it import MarkdownIt

    blocks = MarkdownIt("commonmark").enable("table")
    blocks.core.ruler.enableOnly(["normalize", "block"])
    return blocks, MarkdownIt("commonmark")


def _tree(text: str) -> SyntaxTreeNode:
    from markdown_it.tree import SyntaxTreeNode

    return SyntaxTreeNode(_parsers()[0].parse(text))


def _plain(markdown: str) -> str:
    """A line of Markdown without its marks."""
    tokens = _parsers()[1].parseInline(markdown)[0].children or []
    texts = (" " if token.type.endswith("break") else token.content for token in tokens if token.type != "html_inline")
    return " ".join("".join(texts).split())


def _lines(node: SyntaxTreeNode) -> tuple[int, int]:
    """The first line of a block, from 0, and the one behind its last."""
    return node.map or (0, 0)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The same part of a text without blank lines around it; the first line stays indented."""
    part = text[start:end]
    if part.isspace() or not part:
        return start, start
    lead = len(part) - len(part.lstrip())
    return start + part.rfind("\n", 0, lead) + 1, start + len(part.rstrip())


def _paragraphs(text: str, start: int, end: int) -> Iterator[Block]:
    """Blocks of plain text: what blank lines part."""
    first = start
    for gap in [*_BLANK_LINES.finditer(text, start, end), None]:
        yield Block(first - start, (gap.start() if gap else end) - start)
        first = gap.end() if gap else end


def _tiles(
    text: str, nodes: list[SyntaxTreeNode], offsets: list[int], start: int, end: int, *, shift: int, header: str = ""
) -> Iterator[Block]:
    """Blocks that lie end to end over a part of a text: what no node holds (definitions of links) goes to the last one.

    Args:
        text: The whole text.
        nodes: Those of the part.
        offsets: Offsets of the lines of the text.
        start: Start of the part.
        end: End of the part.
        shift: Where what the blocks' places count from begins.
        header: Header of the table that they are rows of.
    """
    begins: list[tuple[int, SyntaxTreeNode | None]] = [(offsets[_lines(node)[0]], node) for node in nodes]
    if not begins or begins[0][0] > start:
        begins.insert(0, (start, None))
    ends = [*(begin for begin, _ in begins[1:]), end]
    for (begin, node), behind in zip(begins, ends, strict=True):
        first, last = _trimmed(text, begin, behind)
        if first == last:
            continue
        type_ = "" if node is None else node.type
        kind, parts = _KINDS.get(type_, "text"), tuple[Block, ...]()
        if node is not None and type_ in _CONTAINERS:
            above = "" if type_ == "thead" else header
            if type_ == "table" and len(node.children) > 1:
                above = text[first : offsets[_lines(node.children[1])[0]]].rstrip()
            parts = tuple(_tiles(text, node.children, offsets, first, last, shift=shift, header=above))
        yield Block(first - shift, last - shift, kind, parts, header if kind == "row" else "")
