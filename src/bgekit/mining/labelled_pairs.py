"""Labelled pairs, as of natural-language inference, as training rows: positives and negatives of each first sentence.

BGE was trained so on nli-zh, ocnli and cmnli: pairs of label 0 are negatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..data.columns import BadLines, Line, read_file
from ..data.encodings import repair
from ..data.formats import Dialect, Quoting, listing, shown
from ..data.training_rows import copy_key
from ..errors import ArgumentError, DataError

POSITIVE_LABELS: Final = ("1", "entailment")
NEGATIVE_LABELS: Final = ("0", "contradiction")
_FIRST: Final = ("sentence1", "premise", "text1")
_SECOND: Final = ("sentence2", "hypothesis", "text2")
_LABEL: Final = ("label", "gold_label")
EXAMPLE: Final = '{"sentence1": "a man sleeps", "sentence2": "someone is awake", "label": 0}'


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
        raise ArgumentError(f"the label {', '.join(sorted(both))} cannot be that of positives and of negatives")
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
    expected = f"each line is a pair with a label, such as {EXAMPLE}"
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
