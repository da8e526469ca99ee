"""Which passages are no negatives of a row: its known positives, and what scores as if it were one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ArgumentError
from .distributed import Pool
from .groups import GroupBatch


class LossBatch(GroupBatch, Protocol):
    """What losses on vectors need to know of the rows of this process."""

    @property
    def query_keys(self) -> Tensor:
        """[n] int64, equal for equal texts, and comparable with `passage_keys`."""
        ...

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
        ratio: When its similarity is above this share of that of the positive, such as 0.95.
        teacher: When the teacher gives it at least this score.
    """

    margin: float | None = None
    ratio: float | None = None
    teacher: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and self.ratio <= 0:
            raise ArgumentError(f"the ratio of false negatives must be above 0, such as 0.95, not {self.ratio}")

    def by_similarity(self, similarity: Tensor, positive: Tensor) -> Tensor | None:
        """Which of the similarities are too near to those of the positives, or None if that is not asked.

        Args:
            similarity: [b, m].
            positive: [b, 1].
        """
        found = None
        if self.margin is not None:
            found = similarity > positive - self.margin
        if self.ratio is not None:
            above = similarity > positive * self.ratio
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
        low, counts = self.low[first:last], self.high[first:last] - self.low[first:last]
        total = int(counts.sum())
        row = (self.rows[first:last] - rows.start).repeat_interleave(counts, output_size=total)
        before = (counts.cumsum(0) - counts).repeat_interleave(counts, output_size=total)
        within = torch.arange(total, device=row.device) - before
        mask[row, self.columns[low.repeat_interleave(counts, output_size=total) + within]] = True


class Structure:
    """Which columns belong to which rows, for the rows of one process against a pool of passages or queries.

    Attributes:
        pool: Rows are sort 0 of it, passages 1, known positives 2.
        targets: [n] column of the positive of each row.
        first: [n] the first passage of each row among those of this process.
    """

    def __init__(self, batch: LossBatch, *, across: bool) -> None:
        keys = batch.passage_keys
        device = keys.device
        self.batch = batch
        self.groups = torch.tensor(batch.groups, dtype=torch.long, device=device)
        known = torch.tensor([len(some) for some in batch.positive_keys], dtype=torch.long, device=device)
        some = [part.to(device) for part in batch.positive_keys]
        rows = torch.arange(len(self.groups), device=device)
        self.pool = Pool((len(rows), len(keys), sum(map(len, some)) + 2 * len(rows)), device, across=across)
        self.first = self.groups.cumsum(0) - self.groups
        self.targets = self.first + self.pool.offset(1)
        # The positive that was drawn and the query itself are no negatives either, whatever the data says.
        self._known = torch.cat([*some, keys[self.first], batch.query_keys])
        order = torch.cat([rows.repeat_interleave(known), rows, rows]).argsort(stable=True)
        self._known = self._known[order]
        self._known_rows = torch.cat([rows.repeat_interleave(known), rows, rows])[order]

    def of_passages(self, false_negatives: FalseNegatives) -> list[Ranges]:
        """Passages of the pool that are no negatives of the rows: known positives, their own or of equal queries."""
        batch, pool = self.batch, self.pool
        rows = torch.arange(len(self.groups), device=self.groups.device)
        passage_keys, query_keys = pool.rows(batch.passage_keys, 1), pool.rows(batch.query_keys, 0)
        columns = torch.arange(len(passage_keys), device=rows.device)
        found = [
            Ranges.by_key(self._known_rows, self._known, columns, passage_keys),
            Ranges.by_key(rows, batch.query_keys, pool.rows(self.targets, 0), query_keys),
        ]
        if false_negatives.teacher is not None and batch.teacher is not None:
            suspects = (batch.teacher >= false_negatives.teacher).nonzero().squeeze(1)
            owners = rows.repeat_interleave(self.groups)[suspects]
            found.append(Ranges.pairs(owners, suspects + pool.offset(1)))
        return found

    def of_queries(self) -> list[Ranges]:
        """Queries of the pool that are no negatives of the rows' positives: those that have it as a positive, too."""
        batch, pool = self.batch, self.pool
        rows = torch.arange(len(self.groups), device=self.groups.device)
        query_keys = pool.rows(batch.query_keys, 0)
        own = batch.passage_keys[self.first]
        owners = pool.rows(self._known_rows + pool.offset(0), 2)
        return [
            Ranges.by_key(rows, own, owners, pool.rows(self._known, 2)),
            Ranges.by_key(rows, batch.query_keys, torch.arange(len(query_keys), device=rows.device), query_keys),
        ]


def excluded(ranges: Sequence[Ranges], rows: slice, columns: int, targets: Tensor) -> Tensor:
    """[b, columns] bool: the pairs of a slice of rows, except for their own targets ([b])."""
    mask = torch.zeros(rows.stop - rows.start, columns, dtype=torch.bool, device=targets.device)
    for part in ranges:
        part.mark(mask, rows)
    return mask.scatter_(1, targets[:, None], False)
