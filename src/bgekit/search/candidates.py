"""Queries with passages in files: read, scored, and written best first."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

from ..data.columns import IDS, TITLES, BadLines, Line, OnError, read_file
from ..data.formats import TEXT_FIELDS, Dialect, listing, shown
from ..data.records import Record, titled
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
    bad, fields = BadLines(on_error), _Fields(text_field, title_field, id_field)
    for _, group in bad.usable(read_file(file, Dialect(encoding), format="jsonl", bad=bad), fields.group):
        yield group


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
    """Names of the fields of a passage's text, title and id; None for the usual ones."""

    text: str | None
    title: str | None
    id: str | None

    def group(self, line: Line) -> Group:
        """The query and the passages of a line.

        Raises:
            BadRow: it has none; the error says why.
        """
        row = line.fields
        query = line.string("query", row.get("query"), f"; expected is {_EXAMPLE}")
        name = next((name for name in PASSAGE_FIELDS if name in row), None)
        if name is None:
            raise line.error(
                f"there is no field {', '.join(PASSAGE_FIELDS)}; it has {listing(list(row))}. Expected is {_EXAMPLE}; "
                "to rank all texts of a file for one query, name it with -q"
            )
        if not isinstance(row[name], list):
            raise line.error(f"{name} must be a list, not {shown(row[name])}; expected is {_EXAMPLE}")
        pairs = [self._passage(line, passage, f"{name}[{number}]") for number, passage in enumerate(row[name])]
        rest = {key: value for key, value in row.items() if key not in ("query", name)}
        return Group(query, [text for text, _ in pairs], [item for _, item in pairs], rest)

    def _passage(self, line: Line, passage: Any, place: str) -> tuple[str, dict[str, Any]]:
        """The text to be scored, and the passage to be printed, by the usual names of fields: it can be input again."""
        if isinstance(passage, str):
            return passage, {TEXT_FIELDS[0]: passage}
        if not isinstance(passage, dict):
            raise line.error(f"{place} must be a string or an object with text, not {shown(passage)}")
        names = (self.text,) if self.text else TEXT_FIELDS
        text_name = next((name for name in names if name in passage), None)
        if text_name is None:
            raise line.error(
                f"{place} has no field {' or '.join(names)}; it has {listing(list(passage))}. Name the field with "
                "--text-field"
            )
        hint = " (the index keeps no texts: encode with --store-texts)" if passage[text_name] is None else ""
        text = line.string(f"{place}: {text_name}", passage[text_name], hint)
        title_name = TITLES[0] if self.title is None else self.title
        title = passage.get(title_name) if title_name else None
        if title is not None:
            title = line.string(f"{place}: {title_name}", title)
        if self.id and self.id not in passage:
            raise line.error(f"{place} has no field {self.id}; it has {listing(list(passage))}")
        ids = (self.id,) if self.id else IDS
        identity = next((passage[key] for key in ids if passage.get(key) is not None), None)
        own = (text_name, None if title is None else title_name, "rank", "index", "score", self.id, *IDS)
        item = {key: value for key, value in passage.items() if key not in own}
        item = ({} if identity is None else {"id": identity}) | item
        if "score" in passage:
            item.setdefault("retrieval_score", passage["score"])
        if title is not None:
            item[TITLES[0]] = title
        return titled(title or "", text), item | {TEXT_FIELDS[0]: text}
