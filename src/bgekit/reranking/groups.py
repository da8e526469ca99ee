"""Queries with passages in files: read, scored, and written best first."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ..encoding.records import ID_FIELDS, TEXT_FIELDS, TITLE_FIELDS, Record, read_rows, titled
from ..encoding.rows import listing, shown
from ..errors import DataError
from .pairs import best_first

if TYPE_CHECKING:
    from .reranker import FlagReranker

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
        texts: The passages.
        items: For each passage what else is known of it, such as its id.
        rest: Further fields of the line.
    """

    query: str
    texts: Sequence[str]
    items: Sequence[Mapping[str, Any]]
    rest: Mapping[str, Any] = field(default_factory=dict)


def read_groups(file: str | os.PathLike[str]) -> Iterator[Group]:
    """The queries of a file of JSON lines, each with its passages (texts, or objects with `text`).

    Args:
        file: The file, gzipped or not; `-` for standard input.

    Raises:
        DataError: a line cannot be used; it names file and line.
    """
    for line, row in read_rows(file, format="jsonl"):
        yield _group(row, f"{os.fspath(file)}, line {line}")


def groups_of(queries: Iterable[str], records: Iterable[Record]) -> Iterator[Group]:
    """Every query with all the records as its passages."""
    listed = list(records)
    texts, items = [record.text for record in listed], [{"id": record.id} for record in listed]
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
        What was given, with `results`: rank (from 1), index (from 0, among the passages given), id, score, text, and
        `retrieval_score`, the score that a passage came with.
    """
    for block in _blocks(groups):
        pairs = [(group.query, text) for group in block for text in group.texts]
        scores = iter(reranker.compute_score(pairs, **options))
        for group in block:
            own = list(itertools.islice(scores, len(group.texts)))
            hits = best_first(own, group.texts)[:top_k]
            results = [
                {"rank": rank, "index": hit.index, "score": hit.score, **group.items[hit.index], "text": hit.text}
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


def _group(row: Mapping[str, Any], place: str) -> Group:
    query = row.get("query")
    if not isinstance(query, str):
        raise DataError(f"{place}: query must be a string, not {shown(query)}; expected is {_EXAMPLE}")
    name = next((name for name in PASSAGE_FIELDS if name in row), None)
    if name is None:
        raise DataError(
            f"{place}: there is no field {', '.join(PASSAGE_FIELDS)}; it has {listing(list(row))}. Expected is "
            f"{_EXAMPLE}; to rank all texts of a file for one query, name it with -q"
        )
    if not isinstance(row[name], list):
        raise DataError(f"{place}: {name} must be a list, not {shown(row[name])}; expected is {_EXAMPLE}")
    texts, items = [], []
    for number, passage in enumerate(row[name]):
        text, item = _passage(passage, f"{place}: {name}[{number}]")
        texts.append(text)
        items.append(item)
    rest = {key: value for key, value in row.items() if key not in ("query", name)}
    return Group(query, texts, items, rest)


def _passage(passage: Any, place: str) -> tuple[str, dict[str, Any]]:
    if isinstance(passage, str):
        return passage, {}
    if not isinstance(passage, dict):
        raise DataError(f"{place} must be a string or an object with text, not {shown(passage)}")
    name = next((name for name in TEXT_FIELDS if name in passage), TEXT_FIELDS[0])
    text = passage.get(name)
    if not isinstance(text, str):
        hint = " (the index keeps no texts: encode with --store-texts)" if name in passage and text is None else ""
        raise DataError(f"{place}: {name} must be a string, not {shown(text)}{hint}")
    title = passage.get(TITLE_FIELDS[0])
    item = {key: value for key, value in passage.items() if key not in (name, "rank", "index", "score", *ID_FIELDS)}
    identity = next((passage[key] for key in ID_FIELDS if passage.get(key) is not None), None)
    item = ({} if identity is None else {"id": identity}) | item
    if "score" in passage:
        item.setdefault("retrieval_score", passage["score"])
    return titled(title, text) if isinstance(title, str) else text, item
