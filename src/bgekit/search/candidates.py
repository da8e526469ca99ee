"""Queries with passages in files: read, scored, and written best first."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

from ..data.formats import BadRow, listing, shown
from ..data.records import (
    ID_FIELDS,
    TEXT_FIELDS,
    TITLE_FIELDS,
    BadLines,
    OnError,
    Record,
    Skipped,
    SkippedLine,
    read_rows,
    titled,
)
from ..errors import ArgumentError
from ..inference.reranker import best_first

if TYPE_CHECKING:
    from ..inference.reranker import FlagReranker

#: Fields that can hold the passages of a line; `results` is what `bge search --json` writes.
PASSAGE_FIELDS: Final = ("passages", "docs", "documents", "results")
#: Pairs scored together.
_BLOCK: Final = 2048
_EXAMPLE: Final = '{"query": "...", "passages": ["...", {"id": "...", "text": "..."}]}'


@dataclass(frozen=True)
class Group:
    """A query and its passages.

    Attributes:
        query: The query.
        texts: The passages as they are scored, each with its title before it.
        items: The passages as they are printed: id, text and title as given, and what else is known of them.
        rest: Further fields of the line.
    """

    query: str
    texts: Sequence[str]
    items: Sequence[Mapping[str, Any]]
    rest: Mapping[str, Any] = field(default_factory=dict)


def read_groups(
    file: str | os.PathLike[str],
    *,
    text_field: str | None = None,
    title_field: str | None = None,
    id_field: str | None = None,
    on_error: OnError = "raise",
    encoding: str | None = None,
) -> Iterator[Group]:
    """The queries of a file of JSON lines, each with its passages (texts, or objects with `text`).

    Args:
        file: The file, gzipped or not; `-` for standard input.
        text_field: Field of a passage's text; by default the first of `text`, `content`, `contents`.
        title_field: Field of its title; by default `title`. "" for no title.
        id_field: Field of its id; by default `_id` or `id`.
        on_error: `raise` on the first line that cannot be used, or `skip` and log such lines.
        encoding: As in `read_records`.

    Raises:
        DataError: a line cannot be used; it names file and line.
    """
    if on_error not in get_args(OnError):
        raise ArgumentError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    name, bad_lines, fields = os.fspath(file), BadLines(on_error, Skipped()), _Fields(text_field, title_field, id_field)

    def leave_out(line: int, reason: BadRow) -> None:
        bad_lines.bad(SkippedLine(name, line, str(reason)))

    for line, row in read_rows(name, format="jsonl", on_bad=leave_out, encoding=encoding):
        try:
            group = fields.group(row)
        except BadRow as reason:
            leave_out(line, reason)
        else:
            bad_lines.good()
            yield group
    bad_lines.end()


def groups_of(queries: Iterable[str], records: Iterable[Record]) -> Iterator[Group]:
    """Every query with all the records as its passages."""
    listed = list(records)
    texts, items = [record.text for record in listed], [{"id": record.id, "text": record.text} for record in listed]
    for query in queries:
        yield Group(query, texts, items)


def rerank_groups(
    reranker: FlagReranker, groups: Iterable[Group], top_k: int | None = None, **options: Any
) -> Iterator[dict[str, Any]]:
    """Each query with its passages best first, in the order of the queries, many scored together.

    Args:
        reranker: The model.
        groups: Queries with passages.
        top_k: Passages wanted of each; by default all.
        options: As `FlagReranker.compute_score`.

    Yields:
        What was given, with `results`: rank (from 1), index (from 0, among the passages given), score, and the
        passage's id, `retrieval_score`, further fields, title and text. `retrieval_score` is that of the first stage:
        the score that the passage came with, unless it came with a `retrieval_score`, too.
    """
    for block in _blocks(groups):
        pairs = [(group.query, text) for group in block for text in group.texts]
        scores = iter(reranker.compute_score(pairs, **options))
        for group in block:
            own = list(itertools.islice(scores, len(group.texts)))
            hits = best_first(own, group.texts)[:top_k]
            results = [
                {"rank": rank, "index": hit.index, "score": hit.score, **group.items[hit.index]}
                for rank, hit in enumerate(hits, 1)
            ]
            yield {**group.rest, "query": group.query, "results": results}


def _blocks(groups: Iterable[Group]) -> Iterator[list[Group]]:
    block: list[Group] = []
    pairs = 0
    for group in groups:
        block.append(group)
        pairs += len(group.texts)
        if pairs >= _BLOCK:
            yield block
            block, pairs = [], 0
    if block:
        yield block


@dataclass(frozen=True)
class _Fields:
    """Which fields of a passage hold its text, title and id; None for the usual ones. What they reject is a BadRow."""

    text: str | None
    title: str | None
    id: str | None

    def group(self, row: Mapping[str, Any]) -> Group:
        query = row.get("query")
        if not isinstance(query, str):
            raise BadRow(f"query must be a string, not {shown(query)}; expected is {_EXAMPLE}")
        name = next((name for name in PASSAGE_FIELDS if name in row), None)
        if name is None:
            raise BadRow(
                f"there is no field {', '.join(PASSAGE_FIELDS)}; it has {listing(list(row))}. Expected is {_EXAMPLE}; "
                "to rank all texts of a file for one query, name it with -q"
            )
        if not isinstance(row[name], list):
            raise BadRow(f"{name} must be a list, not {shown(row[name])}; expected is {_EXAMPLE}")
        texts, items = [], []
        for number, passage in enumerate(row[name]):
            text, item = self._passage(passage, f"{name}[{number}]")
            texts.append(text)
            items.append(item)
        rest = {key: value for key, value in row.items() if key not in ("query", name)}
        return Group(query, texts, items, rest)

    def _passage(self, passage: Any, place: str) -> tuple[str, dict[str, Any]]:
        """The text to be scored, and the passage to be printed, by the usual names of fields: it can be input again."""
        if isinstance(passage, str):
            return passage, {TEXT_FIELDS[0]: passage}
        if not isinstance(passage, dict):
            raise BadRow(f"{place} must be a string or an object with text, not {shown(passage)}")
        text_name, text = self._text(passage, place)
        title_name, title = self._title(passage, place)
        own = (text_name, title_name, "rank", "index", "score", self.id, *ID_FIELDS)
        item = {key: value for key, value in passage.items() if key not in own}
        identity = next((passage[key] for key in self._ids(passage, place) if passage.get(key) is not None), None)
        item = ({} if identity is None else {"id": identity}) | item
        if "score" in passage:
            item.setdefault("retrieval_score", passage["score"])
        if title is not None:
            item[TITLE_FIELDS[0]] = title
        return titled(title or "", text), item | {TEXT_FIELDS[0]: text}

    def _text(self, passage: Mapping[str, Any], place: str) -> tuple[str, str]:
        names = (self.text,) if self.text else TEXT_FIELDS
        name = next((name for name in names if name in passage), None)
        if name is None:
            raise BadRow(
                f"{place} has no field {' or '.join(names)}; it has {listing(list(passage))}. Name the field with "
                "--text-field"
            )
        text = passage[name]
        if not isinstance(text, str):
            hint = " (the index keeps no texts: encode with --store-texts)" if text is None else ""
            raise BadRow(f"{place}: {name} must be a string, not {shown(text)}{hint}")
        return name, text

    def _title(self, passage: Mapping[str, Any], place: str) -> tuple[str | None, str | None]:
        """Name of the field and title; None for what there is not."""
        name = TITLE_FIELDS[0] if self.title is None else self.title
        title = passage.get(name) if name else None
        if title is None:
            return None, None
        if not isinstance(title, str):
            raise BadRow(f"{place}: {name} must be a string, not {shown(title)}")
        return name, title

    def _ids(self, passage: Mapping[str, Any], place: str) -> Sequence[str]:
        if self.id and self.id not in passage:
            raise BadRow(f"{place} has no field {self.id}; it has {listing(list(passage))}")
        return (self.id,) if self.id else ID_FIELDS
