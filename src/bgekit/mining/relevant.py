"""Known relevant passages of a query beyond its own row: positives of other rows, and judgements."""

from __future__ import annotations

import array
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ..data.columns import files_written
from ..data.formats import USUAL, Dialect, listing
from ..data.records import Record
from ..data.splits import DataFile
from ..data.training_rows import InputRow, copy_key
from ..errors import DataError
from ..evaluation.readers.collections import read_judgements, read_queries
from .text_store import TextStore

logger = logging.getLogger(__name__)
#: Fields of a row that may hold the id of its query.
QUERY_IDS: Final = ("query_id", "query-id", "qid", "_id", "id")


class Relevant:
    """Passages by query; queries and passages are equal if they differ in case and white space only.

    16 bytes of memory a passage.

    Attributes:
        digest: sha256 (hex) of all of it.
    """

    def __init__(self, queries: Iterable[int], passages: Iterable[int]) -> None:
        """Pairs of a query and a passage, as keys of `copy_key`, in any order."""
        pairs = np.array([array.array("q", queries), array.array("q", passages)], dtype=np.int64)
        self._queries, self._passages = pairs[:, np.lexsort(pairs[::-1])]
        self.digest = hashlib.sha256(self._queries.tobytes() + self._passages.tobytes()).hexdigest()

    @classmethod
    def of_rows(cls, rows: Iterable[InputRow]) -> Relevant:
        """The positives of training data."""
        queries, passages = array.array("q"), array.array("q")
        for each in rows:
            key = copy_key(each.row.query)
            for text in each.row.positives:
                queries.append(key)
                passages.append(copy_key(text))
        return cls(queries, passages)

    def to(self, query: str) -> list[int]:
        """Keys of the passages that are relevant to a query, each once."""
        key = copy_key(query)
        first, last = (np.searchsorted(self._queries, key, side=side) for side in ("left", "right"))  # type: ignore[call-overload]
        return list(dict.fromkeys(self._passages[first:last].tolist()))


@dataclass
class Judgements:
    """Relevant passages by files of judgements, as ids, which become texts as the input is read.

    Ids of queries are those of a file of queries, or fields of the rows, or the texts themselves; ids of passages are
    those of the candidates, or the texts themselves.

    Attributes:
        files: The files.
        pairs: Ids of a query and of a passage that is relevant to it.
    """

    files: Sequence[str]
    pairs: list[tuple[str, str]]
    _queries: dict[str, set[int]] = field(default_factory=dict)
    _passages: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Sequence[str], queries: str | None, dialect: Dialect = USUAL) -> Judgements:
        """The judgements of some files.

        Args:
            files: Of the forms that `bge eval` reads: a header `query-id, corpus-id, score`, TREC's, or JSON lines.
            queries: A file of the queries' texts by id.
            dialect: How they are written.

        Raises:
            DataError: a file cannot be read; it names file and line.
        """
        with files_written(dialect):
            judged = [each for file in files for each in read_judgements(DataFile((file,)))]
            texts = {} if queries is None else read_queries(DataFile((queries,)))
        known = cls(files, [(each.query, each.document) for each in judged if each.relevance > 0])
        for name, _ in known.pairs:
            if name in texts:
                known._queries.setdefault(name, set()).add(copy_key(texts[name]))
        return known

    def passing(self, records: Iterable[Record]) -> Iterator[Record]:
        """The candidates as they are; those that are judged are noted."""
        wanted = {passage for _, passage in self.pairs}
        for record in records:
            if record.id in wanted:
                self._passages.setdefault(record.id, copy_key(record.text))
            yield record

    def relevant(self, rows: Iterable[InputRow], store: TextStore) -> Relevant:
        """The judgements by text.

        Raises:
            DataError: none of them is of a query of the rows and of a passage of the candidates.
        """
        wanted = {query for query, _ in self.pairs}
        there: set[int] = set()
        for each in rows:
            key = copy_key(each.row.query)
            there.add(key)
            # The first that a row has is that of its query: an `id` beside a `query_id` is the row's own.
            name = next((name for name in QUERY_IDS if name in each.fields), None)
            if name is not None and (own := str(each.fields[name])) in wanted:
                self._queries.setdefault(own, set()).add(key)
        found: list[tuple[int, int]] = []
        missing = 0
        for query, passage in self.pairs:
            keys = self._queries.get(query, set()) | {copy_key(query)}
            text = self._passages.get(passage, copy_key(passage))
            known = there & keys if store.has(text) else set()
            missing += not known
            found += [(key, text) for key in known]
        if not found:
            raise DataError(self._nothing())
        if missing:
            logger.warning(
                "%d of %d judgements of relevant passages are of other queries or passages than those given",
                missing, len(self.pairs),
            )  # fmt: skip
        return Relevant([query for query, _ in found], [passage for _, passage in found])

    def _nothing(self) -> str:
        ids = [listing([pair[side] for pair in self.pairs[:3]]) for side in (0, 1)]
        return (
            f"no judgement in {', '.join(self.files)} is of a query of the input and a passage of the candidates. Its "
            f"queries are such as {ids[0]}: rows need a field query_id, or give --queries, a file of their texts by "
            f"id. Its passages are such as {ids[1]}: texts of --candidate-pool need these ids in _id or id, or in "
            "--id-field."
        )


def distinct_negatives(each: InputRow, relevant: Iterable[int]) -> list[str]:
    """The negatives that a row has, without copies of its query, of what is relevant to it, and of one another."""
    seen = {copy_key(each.row.query), *relevant}
    return [text for text in each.row.negatives if (key := copy_key(text)) not in seen and not seen.add(key)]  # type: ignore[func-returns-value]
