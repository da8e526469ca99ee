"""Rows of training data in the BGE form, checked, and what a row becomes when it is drawn.

A line is `{"query": str, "pos": [str], "neg": [str], "pos_scores": [float], "neg_scores": [float], "prompt": str,
"type": str, "batch_size": int, "score": float}`; all but `query` and `pos` may be left out or null, and further
fields are ignored. `score` makes a scored pair of a line: its query and its only `pos` have that similarity. Such a
line may also be `{"sentence1": str, "sentence2": str, "score": float}`, as data of semantic similarity mostly is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ..encoding.rows import BadRow, listing, shown
from ..encoding.tokenization import repair
from ..errors import SHOWN, ArgumentError, DataError, in_lines

#: UTF-8 bytes of all texts of a row. More is no training example but a file in a wrong form, and would stop a step.
LONGEST_ROW: Final = 8 << 20

EXAMPLE_LINE: Final = '{"query": "capital of France", "pos": ["Paris is ..."], "neg": ["Rome is ...", "Lyon is ..."]}'

#: Types with rules of their own (FlagEmbedding 1.4): one negative; as many passages as there are classes;
#: the query's instruction before passages, too.
ONE_NEGATIVE: Final = "only_1neg"
CLASSES: Final = "symmetric_class"
PROMPTED_PASSAGES: Final = frozenset({"symmetric_sts", "symmetric_clustering"})


@dataclass(frozen=True)
class Row:
    """A line of training data.

    Attributes:
        query: Never blank.
        positives: At least one, never blank.
        negatives: Any number.
        pos_scores: A teacher's score of each positive.
        neg_scores: A teacher's score of each negative.
        prompt: Instruction of this row's query, "" for none, None for the model's own.
        type: One of FlagEmbedding's types, such as `only_1neg` or `symmetric_sts`.
        score: Similarity of query and positive, for a scored pair.
        batch_size: Rows of a batch of its dataset, where the data says so.
        dataset: Number of its dataset.
        index: Number of the row over all data, the same in every run on the same files.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    pos_scores: tuple[float, ...] | None = None
    neg_scores: tuple[float, ...] | None = None
    prompt: str | None = None
    type: str | None = None
    score: float | None = None
    batch_size: int | None = None
    dataset: int = 0
    index: int = 0

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher has scored all passages."""
        return self.pos_scores is not None and (self.neg_scores is not None or not self.negatives)

    @property
    def digest(self) -> int:
        """64 bits of a hash of what is trained on: equal rows have equal digests."""
        parts = [self.query, self.prompt or "", repr(self.score), *self.positives, "", *self.negatives]
        return hash64("\0".join(parts).encode())


@dataclass(frozen=True)
class Example:
    """A row as one visit to it trains on it.

    Attributes:
        row: The row.
        positive: Which of its positives was drawn.
        passages: The positive first, then negatives.
        teacher: A teacher's score of each passage, None without.
    """

    row: Row
    positive: int
    passages: tuple[str, ...]
    teacher: tuple[float, ...] | None = None


def text_key(text: str) -> int:
    """A signed 64-bit hash of a text, the same for texts that differ in case and white space only.

    Whether two texts are the same to a model is another question, which its tokenizer answers: see `Collator.keys`.
    """
    return hash64(" ".join(text.casefold().split()).encode())


def hash64(content: bytes) -> int:
    """A signed 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def row_of(fields: Mapping[str, Any]) -> Row:
    """The row that a line's fields make.

    Raises:
        BadRow: they make none; it says why.
    """
    if "sentence1" in fields and "query" not in fields:
        return _scored_pair(fields)
    query = _text("query", _required(fields, "query"))
    positives = _texts("pos", _required(fields, "pos"))
    if not positives:
        raise BadRow("pos is empty: a row needs at least one positive passage")
    negatives = _texts("neg", [] if fields.get("neg") is None else fields["neg"])
    _check_size(query, *positives, *negatives)
    score = None if fields.get("score") is None else _number("score", fields["score"])
    if score is not None and (len(positives) != 1 or negatives):
        raise BadRow(
            f"a scored pair (a line with `score`) has one pos and no neg, not {len(positives)} and {len(negatives)}"
        )
    return Row(
        query=query,
        positives=positives,
        negatives=negatives,
        pos_scores=_scores(fields, "pos", len(positives)),
        neg_scores=_scores(fields, "neg", len(negatives)),
        prompt=_optional_text(fields, "prompt"),
        type=_optional_text(fields, "type"),
        score=score,
        batch_size=_batch_size(fields),
    )


def _scored_pair(fields: Mapping[str, Any]) -> Row:
    """Two sentences of one kind, both with the row's prompt, or both with none."""
    first, second = (_text(name, _required(fields, name)) for name in ("sentence1", "sentence2"))
    _check_size(first, second)
    prompt = _optional_text(fields, "prompt") or ""
    score = _number("score", _required(fields, "score"))
    return Row(first, (second,), prompt=prompt, type=_optional_text(fields, "type") or "symmetric_sts", score=score)


def _check_size(*texts: str) -> None:
    size = sum(len(text.encode()) for text in texts)
    if size > LONGEST_ROW:
        raise BadRow(f"its texts have {size:,} bytes, more than {LONGEST_ROW:,}: is this one document a line?")


def _required(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise BadRow(f"no field {name}; it has {listing(list(fields))}")
    return fields[name]


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} must be a string, not {shown(value)}")
    if not value or value.isspace():
        raise BadRow(f"{name} is {'blank' if value else 'an empty string'}")
    # A lone surrogate is no Unicode: neither Arrow nor a tokenizer takes it.
    return repair(value)[0]


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise BadRow(f"{name} must be a list of strings, not {shown(value)}")
    return tuple(_text(f"{name}[{position}]", text) for position, text in enumerate(value))


def _optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return None if value is None else repair(value)[0]
    raise BadRow(f"{name} must be a string, not {shown(value)}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{name} must be a number, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(f"{name} must be a finite number, not {value!r:.60}")
    return number


def _scores(fields: Mapping[str, Any], name: str, count: int) -> tuple[float, ...] | None:
    values = fields.get(f"{name}_scores")
    if values is None:
        return None
    if not isinstance(values, list):
        raise BadRow(f"{name}_scores must be a list of numbers, not {shown(values)}")
    if len(values) != count:
        raise BadRow(f"{name}_scores has {len(values)} numbers for {count} texts in {name}")
    return tuple(_number(f"{name}_scores[{position}]", value) for position, value in enumerate(values))


def _batch_size(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("batch_size")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise BadRow(f"batch_size must be a whole number of at least 1, not {shown(value)}")
    return value


@dataclass
class Problems:
    """Lines that cannot be trained on: the first ten in full, all counted."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, file: str, line: int, reason: object) -> None:
        """Note a line of a file; line 0 stands for the file as a whole."""
        self.count += 1
        if len(self.shown) < SHOWN:
            place = f"{file}, line {line}" if line else file
            self.shown.append(f"{place}: {reason}" if line or file not in str(reason) else str(reason))

    def listed(self) -> str:
        """Them for the end of a message, in a line each."""
        return in_lines(self.shown, self.count)

    def check(self) -> None:
        """Raise if there are any.

        Raises:
            DataError: the lines, what is expected, and an example.
        """
        if not self.count:
            return
        raise DataError(
            f"{self.count:,} {'problems' if self.count > 1 else 'problem'} in the training data:{self.listed()}\n"
            f"Each line is a JSON object such as {EXAMPLE_LINE}; nothing was trained."
        )


@dataclass(frozen=True)
class Sampling:
    """How a row becomes an example.

    Attributes:
        group_size: Passages of an example: a positive and `group_size - 1` negatives.
        repeat: Repeat the negatives of a row that has too few (as FlagEmbedding does); else such a row has fewer.
        shuffle_ratio: Share of the positives of over 100 characters whose three parts are put in another order.
        teacher: Hand on a teacher's scores.
        seed: Of all draws.
    """

    group_size: int = 8
    repeat: bool = True
    shuffle_ratio: float = 0.0
    teacher: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ArgumentError(f"train_group_size must be at least 1, not {self.group_size}")
        if not 0 <= self.shuffle_ratio <= 1:
            raise ArgumentError(f"shuffle_ratio must be from 0 to 1, not {self.shuffle_ratio}")
        if self.seed < 0:
            raise ArgumentError(f"seed must not be negative, but it is {self.seed}")

    def negatives_of(self, row: Row) -> int:
        """How many negatives an example of a row has."""
        if row.score is not None or not row.negatives:
            return 0
        if row.type == ONE_NEGATIVE:
            return 1
        wanted = self.group_size - 1
        return wanted if self.repeat and row.type != CLASSES else min(wanted, len(row.negatives))

    def draw(self, row: Row, visit: int) -> Example:
        """The example of a row at a visit; it depends on the seed, the row's index and the visit alone.

        Args:
            row: The row.
            visit: How often the row was visited before: the epoch, where each row comes once an epoch.
        """
        generator = np.random.default_rng([self.seed, visit, row.index])
        positive = int(generator.integers(len(row.positives)))
        negatives = _without_replacement(generator, len(row.negatives), self.negatives_of(row))
        text = row.positives[positive]
        if self.shuffle_ratio and generator.random() < self.shuffle_ratio:
            text = _shuffled(generator, text)
        teacher = None
        if self.teacher and row.score is None and row.has_teacher and row.pos_scores is not None:
            teacher = (row.pos_scores[positive], *((row.neg_scores or ())[negative] for negative in negatives))
        return Example(row, positive, (text, *(row.negatives[negative] for negative in negatives)), teacher)


def _without_replacement(generator: np.random.Generator, size: int, count: int) -> list[int]:
    """`count` of `size` positions, each as often as any other or once more."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += generator.permutation(size)[: count - len(drawn)].tolist()
    return drawn


def _shuffled(generator: np.random.Generator, text: str) -> str:
    """Three parts of a text of over 100 characters in another order."""
    if len(text) <= 100:
        return text
    size = len(text) // 3 + 1
    parts: Sequence[str] = [text[start : start + size] for start in range(0, len(text), size)]
    return " ".join(parts[part] for part in generator.permutation(len(parts)))
