"""Pairs that are known to be relevant, or not: those that keep negatives out, and those that become training rows.

Beyond its own row, positives of other rows and judgements say which passages a query has. Labelled pairs, as of
natural-language inference, become rows themselves, with positives and negatives of each first sentence: BGE was trained
so on nli-zh, ocnli and cmnli, where pairs of label 0 are negatives.
"""

from __future__ import annotations

import array
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ..data.columns import BadLines, Line, files_written, read_file
from ..data.encodings import repair
from ..data.formats import USUAL, Dialect, Quoting, listing, shown
from ..data.records import Record
from ..data.splits import DataFile
from ..data.training_rows import InputRow, copy_key
from ..errors import ArgumentError, DataError
from ..evaluation.readers.collections import read_judgements, read_queries
from .negatives import TextStore

logger = logging.getLogger(__name__)
#: Fields of a row that may hold the id of its query.
QUERY_IDS: Final = ("query_id", "query-id", "qid", "_id", "id")
POSITIVE_LABELS: Final = ("1", "entailment")
NEGATIVE_LABELS: Final = ("0", "contradiction")
_FIRST: Final = ("sentence1", "premise", "text1")
_SECOND: Final = ("sentence2", "hypothesis", "text2")
_LABEL: Final = ("label", "gold_label")
PAIR_EXAMPLE: Final = '{"sentence1": "a man sleeps", "sentence2": "someone is awake", "label": 0}'


class Relevant:
    """Passages by query; queries and passages are equal if they differ in case and white space only.

    16 bytes of memory per passage.

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
            files: Files in forms that `bge eval` reads: a header `query-id, corpus-id, score`, TREC's, or JSON lines.
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
            known = there & keys if store.first(text) is not None else set()
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


@dataclass
class PairCounts:
    """Counts of pairs that became rows, and of those that did not.

    Attributes:
        pairs: All of them.
        other_labels: Pairs of a label that is neither a positive's nor a negative's, by label.
        conflicts: Second sentences that are positive and negative for one first sentence: they stay positive.
        copies: Pairs of equal sentences, and pairs that occur again.
        rows: Rows written.
        without_positives: First sentences without a positive; they become no row.
        negatives: Negatives written.
    """

    pairs: int = 0
    other_labels: dict[str, int] = field(default_factory=dict)
    conflicts: int = 0
    copies: int = 0
    rows: int = 0
    without_positives: int = 0
    negatives: int = 0


@dataclass
class _Group:
    query: str
    positives: dict[int, str] = field(default_factory=dict)
    negatives: dict[int, str] = field(default_factory=dict)


def rows_of_pairs(
    file: str, counts: PairCounts, *, positive_labels: Sequence[str] = POSITIVE_LABELS,
    negative_labels: Sequence[str] = NEGATIVE_LABELS, encoding: str | None = None, quoting: Quoting = "auto",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The training rows that labelled pairs make, in the order of the first sentences; all are in memory.

    Sentences are equal if they differ in case and white space only, labels if they differ in case only.

    Args:
        file: Rows `{"sentence1", "sentence2", "label"}`.
        counts: Counts of pairs by what becomes of them, added to.
        positive_labels: Labels of positives.
        negative_labels: Labels of negatives; all others are left out.
        encoding: As in `read_records`.
        quoting: As in `read_records`.

    Raises:
        DataError: lines cannot be used (it names file and lines), or no pair has a label of positives.
        ArgumentError: a label is on both sides.
    """
    positive_labels, negative_labels = [*map(_even, positive_labels)], [*map(_even, negative_labels)]
    both = set(positive_labels) & set(negative_labels)
    if both:
        raise ArgumentError(f"the label {', '.join(sorted(both))} cannot stand for both positives and negatives")
    groups: dict[int, _Group] = {}
    bad = BadLines()
    for _, (first, second, label) in bad.usable(read_file(file, Dialect(encoding, quoting), bad=bad), _pair):
        counts.pairs += 1
        if label not in positive_labels and label not in negative_labels:
            counts.other_labels[label] = counts.other_labels.get(label, 0) + 1
            continue
        key, other = copy_key(first), copy_key(second)
        group = groups.setdefault(key, _Group(first))
        side = group.positives if label in positive_labels else group.negatives
        if other == key or other in side:
            counts.copies += 1
        side.setdefault(other, second)
        if other == key:
            del side[other]
    expected = f"each line is a pair with a label, such as {PAIR_EXAMPLE}"
    bad.check("line", "cannot be used", f"\nWhat is expected: {expected}. Nothing was written.")
    if not any(group.positives for group in groups.values()):
        found = listing(sorted(counts.other_labels)) if counts.pairs else "none, as there are no pairs"
        raise DataError(
            f"{file} has no pair with the label of a positive ({', '.join(positive_labels)}), so no row would be "
            f"written. Other labels in it: {found}. Name yours with --positive-label and --negative-label."
        )
    for group in groups.values():
        negatives = [text for key, text in group.negatives.items() if key not in group.positives]
        counts.conflicts += len(group.negatives) - len(negatives)
        if not group.positives:
            counts.without_positives += 1
            continue
        counts.rows += 1
        counts.negatives += len(negatives)
        yield {"query": group.query, "pos": list(group.positives.values()), "neg": negatives}


def _pair(line: Line) -> tuple[str, str, str]:
    """The two sentences and the label of a line."""
    return _sentence(line, _FIRST), _sentence(line, _SECOND), _label(line)


def _sentence(line: Line, names: Sequence[str]) -> str:
    value = line.value(*names)
    if not isinstance(value, str) or not value.strip():
        raise line.error(f"{names[0]} must be a string that is not blank, not {shown(value)}")
    return repair(value)[0]


def _label(line: Line) -> str:
    value = line.value(*_LABEL)
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (whole or isinstance(value, int | str)):
        raise line.error(f"label must be a whole number or a name, not {shown(value)}")
    return _even(value)


def _even(label: object) -> str:
    """A label as it is compared: 1, 1.0 (as tables have it where a label is missing) and "1" are the same."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", str(label).strip().casefold())
