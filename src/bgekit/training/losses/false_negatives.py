"""False negatives: passages that do not count as negatives of a row, known positives and those that score like one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...inference.similarity import share_of
from .distributed import Pool
from .listwise import GroupBatch, KnownPositives


class LossBatch(GroupBatch, Protocol):
    """Fields of a batch that losses on vectors read, for the rows of this process."""

    @property
    def in_batch(self) -> bool:
        """Whether passages of other rows are negatives; the same on all processes."""
        ...

    @property
    def scores(self) -> Tensor | None:
        """[n] labels of scored pairs."""
        ...


@dataclass(frozen=True)
class FalseNegatives:
    """When a negative is taken for an unlabelled positive, and does not count.

    Attributes:
        margin: When its similarity is above that of the positive minus this.
        ratio: When its similarity is above this share (`share_of`) of that of the positive, such as 0.95.
        teacher: When the teacher gives it at least this score.
    """

    margin: float | None = None
    ratio: float | None = None
    teacher: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio < math.inf:
            raise ArgumentError(f"the ratio of false negatives must be above 0, such as 0.95, not {self.ratio}")
        if self.margin is not None and not math.isfinite(self.margin):
            raise ArgumentError(f"the margin of false negatives must be a finite number, not {self.margin}")

    def by_similarity(self, similarity: Tensor, positive: Tensor) -> Tensor | None:
        """Mask of similarities too near to those of the positives, or None if that is not asked.

        Args:
            similarity: [b, m].
            positive: [b, 1].
        """
        found = None
        if self.margin is not None:
            found = similarity > positive - self.margin
        if self.ratio is not None:
            above = similarity > share_of(positive, self.ratio)
            found = above if found is None else found | above
        return found


@dataclass(frozen=True)
class Ranges:
    """Pairs (row, column), held as ranges of an ordering of the columns: equal texts are one range.

    Attributes:
        rows: [r] int64, ascending.
        low: [r] where the range of each begins in `columns`.
        high: [r] where it ends.
        columns: Column numbers in the order of their keys.
    """

    rows: Tensor
    low: Tensor
    high: Tensor
    columns: Tensor

    @classmethod
    def by_key(cls, rows: Tensor, keys: Tensor, columns: Tensor, column_keys: Tensor) -> Ranges:
        """Each row with the columns that have its key.

        Args:
            rows: [r] ascending; a row with several keys stands here as often.
            keys: [r].
            columns: [c].
            column_keys: [c].
        """
        ordered, order = column_keys.sort(stable=True)
        low, high = torch.searchsorted(ordered, keys), torch.searchsorted(ordered, keys, right=True)
        some = high > low
        return cls(rows[some], low[some], high[some], columns[order])

    @classmethod
    def pairs(cls, rows: Tensor, columns: Tensor) -> Ranges:
        """Single pairs; rows ascending."""
        place = torch.arange(len(rows), device=rows.device)
        return cls(rows, place, place + 1, columns)

    def mark(self, mask: Tensor, rows: slice) -> None:
        """Set the pairs of a slice of rows in its mask [stop - start, columns]."""
        bounds = torch.tensor([rows.start, rows.stop], device=self.rows.device)
        first, last = torch.searchsorted(self.rows, bounds).tolist()
        owner, place = members(self.low[first:last], self.high[first:last])
        mask[(self.rows[first:last] - rows.start)[owner], self.columns[place]] = True


def members(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The members of ranges low..high, one after the other: the number of the range of each, and its place."""
    counts = high - low
    total = int(counts.sum())
    owner = torch.arange(len(low), device=low.device).repeat_interleave(counts, output_size=total)
    within = torch.arange(total, device=low.device) - (counts.cumsum(0) - counts)[owner]
    return owner, low[owner] + within


class Structure:
    """Columns that belong to each row, for the rows of one process against a pool of passages or queries.

    Attributes:
        pool: Rows are sort 0 of it, passages 1.
        known: What is no negative of which query.
        targets: [n] column of the positive of each row.
        first: [n] the first passage of each row among those of this process.
    """

    def __init__(self, batch: LossBatch, *, across: bool) -> None:
        keys = batch.passage_keys
        device = keys.device
        self.batch = batch
        self.groups = torch.tensor(batch.groups, dtype=torch.long, device=device)
        self.pool = Pool((len(self.groups), len(keys)), device, across=across)
        self.first = self.groups.cumsum(0) - self.groups
        self.targets = self.first + self.pool.offset(1)
        self.known = KnownPositives.of(batch)

    def of_passages(self, false_negatives: FalseNegatives) -> list[Ranges]:
        """Passages of the pool that are no negatives of the rows: known positives, their own or of equal queries."""
        batch, pool = self.batch, self.pool
        passage_keys = pool.rows(batch.passage_keys, 1)
        rows = torch.arange(len(self.groups), device=passage_keys.device)
        columns = torch.arange(len(passage_keys), device=rows.device)
        owners, known = members(*self.known.of_queries(batch.query_keys))
        found = [Ranges.by_key(owners, self.known.texts[known], columns, passage_keys)]
        if false_negatives.teacher is not None and batch.teacher is not None:
            suspects = (batch.teacher >= false_negatives.teacher).nonzero().squeeze(1)
            owners = rows.repeat_interleave(self.groups)[suspects]
            found.append(Ranges.pairs(owners, suspects + pool.offset(1)))
        return found

    def of_queries(self) -> list[Ranges]:
        """Queries of the pool that are no negatives of the rows' positives: those that have it as a positive, too.

        These are the row's own query and its copies as well.
        """
        batch = self.batch
        query_keys = self.pool.rows(batch.query_keys, 0)
        rows = torch.arange(len(self.groups), device=query_keys.device)
        asking, known = members(*self.known.of_queries(query_keys))
        return [Ranges.by_key(rows, batch.passage_keys[self.first], asking, self.known.texts[known])]


def excluded(ranges: Sequence[Ranges], rows: slice, columns: int, targets: Tensor) -> Tensor:
    """[b, columns] bool: the pairs of a slice of rows, except for their own targets ([b])."""
    mask = torch.zeros(rows.stop - rows.start, columns, dtype=torch.bool, device=targets.device)
    for part in ranges:
        part.mark(mask, rows)
    return mask.scatter_(1, targets[:, None], False)
