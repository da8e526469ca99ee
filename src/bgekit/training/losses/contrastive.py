"""The contrastive loss of queries and passages, with the memory of a block of their pairs.

What is not a negative of a row does not count: known positives, and (`FalseNegatives`) passages that score like one.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import ArgumentError
from ...inference.similarity import share_of
from .distributed import LossValue, Pool, full_precision, of_global_batch
from .listwise import CONTRAST, Groups, KnownPositives, LossBatch, contrast, contrast_metrics

#: Computes the rows of a slice: (rows [b, d], all columns [m, d], slice) -> (sum of their losses, statistics [k]).
Block: TypeAlias = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]
#: The same where rows and columns are several tensors, of which a row may have several rows each.
RaggedBlock: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor], slice], tuple[Tensor, Tensor]]
#: Similarities held at once: 16 MiB in float32, and a few times that while a block is differentiated.
ENTRIES: Final = 1 << 22


def blockwise(
    rows: Tensor, columns: Tensor, block: Block, *, statistics: int, entries: int = ENTRIES
) -> tuple[Tensor, Tensor]:
    """Sum of `block` over slices of the rows; each is differentiated and dropped before the next one begins.

    The gradient is computed with the value, so that similarities are computed once. Differentiable once.

    Args:
        rows: [n, d], n may be 0.
        columns: [m, d].
        block: The loss of some rows; written with differentiable operations, of its two tensors alone.
        statistics: How many statistics the block returns.
        entries: Similarities in a block, at least one row.

    Returns:
        The sum of losses (a scalar), and the sum of statistics ([statistics], without gradient).
    """
    size = max(1, entries // max(1, len(columns)))
    slices = [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]

    def ragged(some: Sequence[Tensor], every: Sequence[Tensor], part: slice) -> tuple[Tensor, Tensor]:
        return block(some[0], every[0], part)

    return ragged_blockwise([rows], [columns], ragged, [(part, (part,)) for part in slices], statistics=statistics)


def ragged_blockwise(
    rows: Sequence[Tensor],
    columns: Sequence[Tensor],
    block: RaggedBlock,
    parts: Sequence[tuple[slice, tuple[slice, ...]]],
    *,
    statistics: int,
) -> tuple[Tensor, Tensor]:
    """`blockwise` where what is known of a row is in several tensors, such as the vectors of its tokens.

    Args:
        rows: Tensors of the same type.
        columns: Likewise.
        block: The loss of some rows, of these tensors alone.
        parts: For each block the slice of its rows, and that of each tensor of `rows`.
        statistics: How many statistics the block returns.

    Returns:
        The sum of losses (a scalar), and the sum of statistics ([statistics], without gradient).
    """
    wanted = torch.is_grad_enabled()
    return _Blockwise.apply(block, parts, statistics, len(rows), wanted, *rows, *columns)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: RaggedBlock,
        parts: Sequence[tuple[slice, tuple[slice, ...]]],
        statistics: int,
        count: int,
        wanted: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows, columns = tensors[:count], tensors[count:]
        total, counted = tensors[0].new_zeros(()), tensors[0].new_zeros(statistics)
        needed = [wanted and need for need in ctx.needs_input_grad[-len(tensors) :]]
        if not any(needed):
            for part, slices in parts:
                value, numbers = block([each[cut] for each, cut in zip(rows, slices, strict=True)], columns, part)
                total, counted = total + value, counted + numbers
            return total, counted
        gradients = [torch.zeros_like(each) if need else None for each, need in zip(tensors, needed, strict=True)]
        with torch.enable_grad():
            every = [each.detach().requires_grad_(need) for each, need in zip(columns, needed[count:], strict=True)]
            for part, slices in parts:
                some = [
                    each[cut].detach().requires_grad_(need)
                    for each, cut, need in zip(rows, slices, needed[:count], strict=True)
                ]
                value, numbers = block(some, every, part)
                places = [gradient if gradient is None else gradient[cut]
                          for gradient, cut in zip(gradients[:count], slices, strict=True)]  # fmt: skip
                places += gradients[count:]
                sought = [each for each, need in zip([*some, *every], needed, strict=True) if need]
                # A block whose loss is constant has no graph, and one may leave out a tensor.
                found = torch.autograd.grad(value, sought, allow_unused=True) if value.requires_grad else ()
                for place, gradient in zip((each for each in places if each is not None), found, strict=False):
                    if gradient is not None:
                        place += gradient
                total, counted = total + value.detach(), counted + numbers.detach()
        ctx.needed = needed
        ctx.save_for_backward(*(each for each in gradients if each is not None))
        ctx.mark_non_differentiable(counted)
        return total, counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        return (None,) * 5 + tuple(next(saved) * gradient if need else None for need in ctx.needed)


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


def excluded(ranges: Sequence[Ranges], rows: slice, columns: int, targets: Tensor) -> Tensor:
    """[b, columns] bool: the pairs of a slice of rows, except for their own targets ([b])."""
    mask = torch.zeros(rows.stop - rows.start, columns, dtype=torch.bool, device=targets.device)
    for part in ranges:
        part.mark(mask, rows)
    return mask.scatter_(1, targets[:, None], False)


#: Distillation: cross entropy with the teacher within groups beside the contrastive loss, or the loss of BGE-M3's
#: training, in which each passage of the group is a target in turn, weighted by the teacher.
Distillation = Literal["kl_div", "m3_kd_loss"]
#: Statistics of a block: those of `contrast`, pairs excluded, pairs compared.
STATISTICS: Final = CONTRAST + 2


@dataclass(frozen=True)
class Contrastive:
    """Cross entropy of the positive among the candidates of a row, -log softmax(similarity / temperature).

    Candidates are all passages of the batch, or those of the own row when the batch (or `in_batch`) says so. What is
    known to be a positive of the row, by the keys of texts, is none of its negatives.

    With a teacher: `kl_div` adds the cross entropy of the softmax within the group with that of the teacher's
    scores. `m3_kd_loss` is, with t the teacher's softmax over a group of passages 1..g,
    sum over i of t_i * (-log softmax(similarity_i)), the softmax over all candidates but passages 1..i-1 of the group.
    Rows without teacher have the plain loss.

    Attributes:
        temperature: Similarities are divided by it.
        both_ways: Average with the same loss of passages that look for their query; in-batch only.
        across: Passages of all processes are candidates, not only those of the own one.
        in_batch: False for the own group alone, whatever the batch says.
        false_negatives: Which negatives do not count, either, because they score as positives do. Not applied to a
            group whose teacher says what its passages are.
        distillation: How a teacher is used, None not to.
        distillation_weight: Weight of the term that `kl_div` adds.
        entries: Similarities held at once.

    Example:
        >>> from bgekit.training.losses import Contrastive
        >>> Contrastive(temperature=0.02).temperature
        0.02
    """

    temperature: float = 0.02
    both_ways: bool = False
    across: bool = True
    in_batch: bool = True
    false_negatives: FalseNegatives = field(default_factory=FalseNegatives)
    distillation: Distillation | None = None
    distillation_weight: float = 1.0
    entries: int = ENTRIES

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ArgumentError(f"the temperature must be above 0, not {self.temperature}")
        if self.distillation not in (None, "kl_div", "m3_kd_loss"):
            raise ArgumentError(f"distillation is kl_div or m3_kd_loss, not {self.distillation!r}")

    def __call__(self, queries: Tensor, passages: Tensor, batch: LossBatch) -> LossValue:
        """The loss of the vectors of this process: queries [n, d] and passages [m, d]."""
        with full_precision(queries, passages) as (queries, passages):
            compared = self.compared(batch)
            total, sums = compared.total(queries, passages)
            if self.distillation == "kl_div":
                table = compared.groups.table(own_scores(queries, passages, batch), -torch.inf) / self.temperature
                total = total + self.distillation_weight * compared.groups.divergence(table, batch.teacher).sum()
            return of_global_batch(total, batch.size, sums, contrastive_metrics)

    def compared(self, batch: LossBatch) -> Compared:
        """What the rows of a batch are compared with; every process takes part."""
        in_batch = self.in_batch and batch.in_batch
        return (_InBatch if in_batch else _OwnGroups)(self, batch, across=self.across and in_batch)


def own_scores(queries: Tensor, passages: Tensor, batch: LossBatch) -> Tensor:
    """[m]: the similarity of each passage and the query of its row."""
    sizes = torch.tensor(batch.groups, dtype=torch.long, device=queries.device)
    return (queries.repeat_interleave(sizes, 0, output_size=len(passages)) * passages).sum(1)


class Compared(abc.ABC):
    """The rows of one process, with what each is compared with: its candidates, columns of a table of scores.

    Attributes:
        pool: Rows are sort 0 of it, passages 1.
        known: What is not a negative of which query.
        first: [n] the first passage of each row among those of this process.
        targets: [n] passage of the pool that is the positive of each row.
        ranges: Passages of the pool that are not negatives of the rows.
        groups: The passages of each row.
        weights: [n, g] what the teacher says of them.
        judged: [n, g] bool, passages whose worth the teacher knows.
        m3: Whether the loss is that of BGE-M3.
    """

    def __init__(self, loss: Contrastive, batch: LossBatch, *, across: bool) -> None:
        self.loss, self.batch = loss, batch
        device = batch.passage_keys.device
        self.sizes = torch.tensor(batch.groups, dtype=torch.long, device=device)
        self.pool = Pool((len(self.sizes), len(batch.passage_keys)), device, across=across)
        self.first = self.sizes.cumsum(0) - self.sizes
        self.targets = self.first + self.pool.offset(1)
        self.known = KnownPositives.of(batch)
        self.ranges = self._no_negatives()
        self.groups = Groups(tuple(batch.groups), device)
        self.weights, taught = self.groups.teacher(batch.teacher if loss.distillation else None)
        self.judged = taught[:, None] & self.groups.valid
        self.m3 = loss.distillation == "m3_kd_loss"

    def _no_negatives(self) -> list[Ranges]:
        """Passages of the pool that are not negatives of the rows: known positives, their own or of equal queries."""
        keys = self.pool.rows(self.batch.passage_keys, 1)
        owners, known = members(*self.known.of_queries(self.batch.query_keys))
        found = [Ranges.by_key(owners, self.known.texts[known], torch.arange(len(keys), device=keys.device), keys)]
        least, teacher = self.loss.false_negatives.teacher, self.batch.teacher
        if least is not None and teacher is not None:
            suspects = (teacher >= least).nonzero().squeeze(1)
            rows = torch.arange(len(self.sizes), device=keys.device)
            owners = rows.repeat_interleave(self.sizes)[suspects]
            found.append(Ranges.pairs(owners, suspects + self.pool.offset(1)))
        return found

    @abc.abstractmethod
    def total(self, queries: Tensor, passages: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over all rows, from the vectors of this process: of the loss, and of statistics."""

    @abc.abstractmethod
    def candidates(self, similarity: Tensor, rows: slice) -> Tensor:
        """[b, m] similarities of some rows and all passages of the pool -> [b, c], those of their candidates."""

    @abc.abstractmethod
    def outside(self, table: Tensor, rows: slice) -> Tensor:
        """[b, c] bool: which candidates of some rows do not count.

        Args:
            table: [b, c] scores of the candidates, by which false negatives are told.
            rows: The rows.
        """

    @abc.abstractmethod
    def counted(self, outside: Tensor, rows: slice) -> Tensor:
        """[b, c] bool: which candidates of some rows count, the positive included; the others of `outside`."""

    @abc.abstractmethod
    def surprise(self, table: Tensor, outside: Tensor, rows: slice) -> Tensor:
        """Sum of the loss over some rows: of their positives, or of what a teacher says (`m3_kd_loss`).

        Args:
            table: [b, c] scores of the candidates.
            outside: [b, c] bool, which of them do not count.
            rows: The rows.
        """

    @abc.abstractmethod
    def statistics(self, table: Tensor, outside: Tensor, rows: slice) -> Tensor:
        """[STATISTICS] sums over some rows of what `contrastive_metrics` reads; arguments as of `surprise`."""

    @abc.abstractmethod
    def own(self, table: Tensor, rows: slice) -> Tensor:
        """[b, c] scores of the candidates -> [b, g], those of the passages of the row itself; -inf for no passage."""


class _InBatch(Compared):
    """Rows whose candidates are all passages of the pool."""

    def total(self, queries: Tensor, passages: Tensor) -> tuple[Tensor, Tensor]:
        """See `Compared`; blockwise."""
        everything, entries = self.pool.rows(passages, 1), self.loss.entries
        total, sums = blockwise(queries, everything, self._block, statistics=STATISTICS, entries=entries)
        if not self.loss.both_ways:
            return total, sums
        positives, asking = passages[self.first], self.pool.rows(queries, 0)
        backwards, _ = blockwise(positives, asking, self._backwards(), statistics=0, entries=entries)
        return (total + backwards) / 2, sums

    def candidates(self, similarity: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        return similarity

    def outside(self, table: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        outside, own = self._masked(table, self.ranges, rows, self.targets[rows]), self._own(rows)
        # A column of the group that a teacher has judged is never outside.
        return outside.scatter(1, own, outside.gather(1, own) & ~self.judged[rows])

    def surprise(self, table: Tensor, outside: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        logits = (table / self.loss.temperature).masked_fill(outside, -torch.inf)
        if not self.m3:
            return _surprise(logits, self.targets[rows])
        own, nothing = self._own(rows), _nothing(logits.dtype)
        counted = self.groups.valid[rows] & ~outside.gather(1, own)
        members = torch.zeros_like(outside).scatter_(1, own, True)
        rest = logits.masked_fill(members | outside, nothing).logsumexp(1)
        return _in_turn(logits.gather(1, own), rest, counted, self.weights[rows].to(logits.dtype))

    def statistics(self, table: Tensor, outside: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        compared, target = table.detach(), self.targets[rows][:, None]
        negatives = (~outside).scatter_(1, target, False)
        pairs = [outside.sum(), outside.new_tensor(outside.numel() - len(target), dtype=torch.long)]
        return torch.cat([
            contrast(compared.gather(1, target)[:, 0], compared, negatives), torch.stack(pairs).to(table.dtype)
        ])  # fmt: skip

    def counted(self, outside: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        return ~outside

    def own(self, table: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        return table.gather(1, self._own(rows)).masked_fill(~self.groups.valid[rows], -torch.inf)

    def _own(self, rows: slice) -> Tensor:
        return self.groups.index[rows] + self.pool.offset(1)

    def _block(self, queries: Tensor, passages: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        similarity = queries @ passages.T
        outside = self.outside(similarity, rows)
        return self.surprise(similarity, outside, rows), self.statistics(similarity, outside, rows)

    def _backwards(self) -> Block:
        """The block of positives that look for their query among the queries of the pool.

        No negatives are those queries that have the passage as a positive, too: the row's own and its copies as well.
        """
        keys, offset = self.pool.rows(self.batch.query_keys, 0), self.pool.offset(0)
        rows = torch.arange(len(self.sizes), device=keys.device)
        asking, known = members(*self.known.of_queries(keys))
        ranges = [Ranges.by_key(rows, self.batch.passage_keys[self.first], asking, self.known.texts[known])]

        def block(passages: Tensor, queries: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            target = torch.arange(rows.start, rows.stop, device=queries.device) + offset
            similarity = passages @ queries.T
            outside = self._masked(similarity, ranges, rows, target)
            logits = (similarity / self.loss.temperature).masked_fill(outside, -torch.inf)
            return _surprise(logits, target), similarity.new_zeros(0)

        return block

    def _masked(self, similarity: Tensor, ranges: Sequence[Ranges], rows: slice, target: Tensor) -> Tensor:
        """[b, m] bool: which similarities of some rows and all columns do not count; those of the targets [b] do."""
        outside = excluded(ranges, rows, similarity.shape[1], target)
        compared = similarity.detach()
        near = self.loss.false_negatives.by_similarity(compared, compared.gather(1, target[:, None]))
        return outside if near is None else (outside | near).scatter_(1, target[:, None], False)


class _OwnGroups(Compared):
    """Rows whose candidates are their own passages alone."""

    def total(self, queries: Tensor, passages: Tensor) -> tuple[Tensor, Tensor]:
        """See `Compared`."""
        table, rows = self.groups.table(own_scores(queries, passages, self.batch), -torch.inf), slice(0, len(queries))
        outside = self.outside(table, rows)
        return self.surprise(table, outside, rows), self.statistics(table, outside, rows)

    def candidates(self, similarity: Tensor, rows: slice) -> Tensor:
        """See `Compared`; where there is no passage, the first one's stands."""
        return similarity.gather(1, self.groups.index[rows])

    def outside(self, table: Tensor, rows: slice) -> Tensor:
        """See `Compared`; a place without a passage is not outside."""
        outside, compared = self._excluded[rows], table.detach()
        near = self.loss.false_negatives.by_similarity(compared, compared[:, :1])
        if near is not None:
            outside = outside | (near & self.groups.valid[rows])
        outside = outside & ~self.judged[rows]
        outside[:, 0] = False
        return outside

    def surprise(self, table: Tensor, outside: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        counted = self.counted(outside, rows)
        logits = (table / self.loss.temperature).masked_fill(~counted, -torch.inf)
        if not self.m3:
            return self.groups.cross_entropy(logits).sum()
        nothing = torch.full_like(logits[:, 0], _nothing(logits.dtype))
        return _in_turn(logits, nothing, counted, self.weights[rows].to(logits.dtype))

    def statistics(self, table: Tensor, outside: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        table, pairs = table.detach(), torch.stack([outside.sum(), self.groups.valid[rows][:, 1:].sum()])
        counted = self.counted(outside, rows)
        return torch.cat([contrast(table[:, 0], table[:, 1:], counted[:, 1:]), pairs.to(table.dtype)])

    def own(self, table: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        return table.masked_fill(~self.groups.valid[rows], -torch.inf)

    def counted(self, outside: Tensor, rows: slice) -> Tensor:
        """See `Compared`."""
        return self.groups.valid[rows] & ~outside

    @cached_property
    def _excluded(self) -> Tensor:
        """[n, g]: places of the groups that are not negatives by their keys."""
        found, passages = torch.zeros_like(self.groups.valid), len(self.batch.passage_keys)
        size = max(1, self.loss.entries // max(1, passages))
        for start in range(0, len(found), size):
            rows = slice(start, min(start + size, len(found)))
            mask = excluded(self.ranges, rows, passages, self.targets[rows])
            found[rows] = mask.gather(1, self.groups.index[rows])
        return found & self.groups.valid


def _surprise(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over rows of the cross entropy of their targets [b] among the logits [b, m]."""
    return (logits.logsumexp(1) - logits.gather(1, target[:, None])[:, 0]).sum()


def _nothing(dtype: torch.dtype) -> float:
    """The logit of what is not there; finite, because logaddexp has no gradient between infinities."""
    return torch.finfo(dtype).min / 4


def _in_turn(group: Tensor, rest: Tensor, counted: Tensor, weights: Tensor) -> Tensor:
    """Sum over rows and members of weight * (-log softmax of the member over the rest and the members from it on).

    Args:
        group: [b, g] logits of the members.
        rest: [b] logarithm of the sum of exp over all other candidates.
        counted: [b, g] bool, which members there are.
        weights: [b, g], 0 for those that there are not.
    """
    group = group.masked_fill(~counted, _nothing(group.dtype))
    total, running = group.new_zeros(()), rest
    for i in reversed(range(group.shape[1])):
        running = torch.where(counted[:, i], torch.logaddexp(running, group[:, i]), running)
        surprise = (running - group[:, i]).masked_fill(~counted[:, i], 0.0)
        total = total + (weights[:, i] * surprise).sum()
    return total


def contrastive_metrics(sums: Tensor, size: int) -> dict[str, Tensor]:
    """Means of the statistics of `Compared` over the global batch of `size` rows."""
    return {**contrast_metrics(sums[:CONTRAST], size), "excluded": sums[CONTRAST] / sums[CONTRAST + 1].clamp(min=1)}
