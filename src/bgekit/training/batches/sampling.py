"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.training_rows import CLASSES, ONE_NEGATIVE, Row
from ...errors import ArgumentError


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
