"""Losses within the group of passages that a row brings: rerankers, distillation, rows without in-batch negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...errors import ArgumentError
from ...networks.packing import Packed
from .distributed import LossValue, Pool, full_precision, of_global_batch


@dataclass(frozen=True, eq=False)
class LossBatch:
    """What losses read of a batch: the rows of this process, a part of a global batch.

    Row i has `groups[i]` passages, its positive first; the passages of all rows lie end to end. A process may have no
    rows (n = m = 0): it still takes part in what all processes do together.

    Attributes:
        groups: Passages of each row, at least 1.
        query_keys: [n] int64, equal for equal texts, and comparable with `passage_keys`.
        passage_keys: [m] int64, equal for equal texts.
        positive_keys: For each row, the int64 keys of all its known positives, whether drawn or not.
        teacher: [m] float32, what a teacher says of each passage, None without; a row with NaN among its scores has
            no teacher.
        scores: [n] float32, labels of scored pairs, None for other rows.
        in_batch: Whether passages of other rows are negatives; the same on all processes.
        size: Rows of the global batch, over all processes.
    """

    groups: tuple[int, ...]
    query_keys: Tensor
    passage_keys: Tensor
    positive_keys: list[Tensor]
    teacher: Tensor | None
    scores: Tensor | None
    in_batch: bool
    size: int


@dataclass(frozen=True, eq=False)
class TextBatch(LossBatch):
    """A `LossBatch` with its texts.

    Attributes:
        queries: n token sequences.
        passages: m token sequences, row by row: the positive, then negatives.
    """

    queries: Packed
    passages: Packed


@dataclass(frozen=True)
class KnownPositives:
    """Texts that are not negatives of a query, whichever row of the global batch says so, on all processes.

    These are the positives of all rows with this query, drawn or not, and the query itself.

    Attributes:
        queries: [k] int64 keys of queries, ascending.
        texts: [k] int64 keys of texts, ascending for each query; no pair comes twice.
    """

    queries: Tensor
    texts: Tensor

    @classmethod
    def of(cls, batch: LossBatch) -> KnownPositives:
        """The known positives of a global batch; every process takes part."""
        asked, passages = batch.query_keys, batch.passage_keys
        sizes = torch.tensor(batch.groups, dtype=torch.long, device=passages.device)
        counts = torch.tensor([len(keys) for keys in batch.positive_keys], dtype=torch.long, device=passages.device)
        queries = torch.cat([asked.repeat_interleave(counts), asked, asked])
        # The positive that was drawn and the query itself are not negatives either, whatever the data says.
        listed = [keys.to(passages.device) for keys in batch.positive_keys]
        texts = torch.cat([*listed, passages[sizes.cumsum(0) - sizes], asked])
        own = torch.stack([queries, texts], 1)
        pairs = Pool((len(own),), own.device, across=True).rows(own, 0).unique(dim=0)
        return cls(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())

    def of_queries(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """[n] keys of queries -> [n], [n]: where the texts of each begin and end in `texts`."""
        return torch.searchsorted(self.queries, keys), torch.searchsorted(self.queries, keys, right=True)

    def hold(self, queries: Tensor, texts: Tensor) -> Tensor:
        """Whether each text is known for its query; keys of equal shapes."""
        return torch.isin(_of_pairs(queries, texts), _of_pairs(self.queries, self.texts))


def _of_pairs(queries: Tensor, texts: Tensor) -> Tensor:
    """One key for a pair of keys: they are random, so a multiple of one and the other are as good as random, too."""
    return queries * 0x9E3779B97F4A7C1 + texts


class Groups:
    """Values of passages as a table of one line per row, whatever the sizes of the groups.

    Attributes:
        valid: [n, g] which places of the table hold a passage; g is the largest group.
        index: [n, g] its number; the first of the row where there is none.
    """

    def __init__(self, groups: tuple[int, ...], device: torch.device) -> None:
        sizes = torch.tensor(groups, dtype=torch.long, device=device)
        place = torch.arange(max(groups, default=1), device=device)
        first = (sizes.cumsum(0) - sizes)[:, None]
        self.valid = place < sizes[:, None]
        self.index = torch.where(self.valid, first + place, first)

    def table(self, values: Tensor, fill: float) -> Tensor:
        """[m] -> [n, g]."""
        return values[self.index].masked_fill(~self.valid, fill)

    def teacher(self, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Target of the teacher: softmax of its scores over the group.

        Returns:
            [n, g], the whole weight on the positive in rows that have no teacher; [n] bool, which rows have one.
        """
        positive = torch.zeros(self.valid.shape, device=self.valid.device)
        positive[:, 0] = 1
        if scores is None:
            return positive, torch.zeros_like(self.valid[:, 0])
        taught = ~self.table(scores, 0.0).isnan().any(1)
        weights = self.table(scores, -torch.inf).softmax(1)
        return torch.where(taught[:, None], weights, positive.to(weights)), taught

    def known_positives(self, batch: LossBatch) -> Tensor:
        """[n, g] bool: which places but the first hold what is not a negative all the same (see `KnownPositives`).

        Every process takes part.
        """
        known = KnownPositives.of(batch)
        texts = batch.passage_keys[self.index]
        found = known.hold(batch.query_keys[:, None].expand_as(texts), texts) & self.valid
        found[:, 0] = False
        return found

    def cross_entropy(self, table: Tensor) -> Tensor:
        """[n]: of the first place of each line against the line."""
        return table.logsumexp(1) - table[:, 0]

    def divergence(self, table: Tensor, scores: Tensor | None, rows: slice = slice(None)) -> Tensor:
        """[b]: cross entropy of the lines of some rows with what the teacher wants, 0 in rows without teacher.

        Args:
            table: [b, g].
            scores: [m] of the teacher, for all rows.
            rows: Which they are; by default all.
        """
        weights, taught = self.teacher(scores)
        logs = table.log_softmax(1).masked_fill(~self.valid[rows], 0.0)
        return -(weights[rows].to(table.dtype) * logs).sum(1) * taught[rows]


#: How many sums `contrast` returns.
CONTRAST: Final = 6


def contrast(positive: Tensor, negatives: Tensor, counted: Tensor) -> Tensor:
    """Sums over rows of what tells whether positives stand out.

    Args:
        positive: [b] similarity or score of the positives.
        negatives: [b, c] those of the candidates.
        counted: [b, c] bool, which candidates are negatives.

    Returns:
        [6]: positives; rows with negatives; of those alone the hits (above all negatives), positives, means of
        negatives, hardest negatives.
    """
    with torch.no_grad():
        if counted.shape[1] == 0:
            return torch.cat([positive.sum()[None], positive.new_zeros(CONTRAST - 1)])
        count = counted.sum(1)
        some = count > 0
        mean = negatives.masked_fill(~counted, 0.0).sum(1)[some] / count[some]
        hardest = negatives.masked_fill(~counted, -torch.inf).amax(1)[some]
        compared = positive[some]
        sums = [positive.sum(), some.sum(), (compared > hardest).sum(), compared.sum(), mean.sum(), hardest.sum()]
        return torch.stack([value.to(positive.dtype) for value in sums])


def contrast_metrics(sums: Tensor, size: int) -> dict[str, Tensor]:
    """Means of the sums of `contrast` over the global batch of `size` rows; `idle` is the share without negatives."""
    positive, rows, hits, compared, negative, hardest = sums
    # A row that is alone in its batch is not a fault of the data.
    idle = 1 - rows / size if size > 1 else torch.zeros_like(rows)
    rows = rows.clamp(min=1)
    return {
        "accuracy": hits / rows,
        "positive": positive / max(size, 1),
        "negative": negative / rows,
        "hardest": hardest / rows,
        "gap": (compared - negative) / rows,
        "idle": idle,
    }


@dataclass(frozen=True)
class GroupLoss:
    """Loss of a reranker: cross entropy of the positive within its group, and of what a teacher says.

    What is known to be a positive of the row, by the keys of texts, is none of its negatives, unless a teacher says
    what the passages of the group are.

    Attributes:
        temperature: Scores are divided by it.
        distillation: Weight of the cross entropy with the teacher's softmax, 0 for none.
        labels: Weight of the cross entropy with the positive.

    Example:
        >>> from bgekit.training.losses import GroupLoss
        >>> GroupLoss(distillation=1.0, labels=0.5).temperature
        1.0
    """

    temperature: float = 1.0
    distillation: float = 0.0
    labels: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ArgumentError(f"the temperature must be above 0, not {self.temperature}")

    def __call__(self, scores: Tensor, batch: LossBatch) -> LossValue:
        """The loss of the scores [m] of the pairs of this process."""
        with full_precision(scores) as (scores,):
            groups = Groups(batch.groups, scores.device)
            table = groups.table(scores, -torch.inf)
            _, taught = groups.teacher(batch.teacher if self.distillation else None)
            outside = groups.known_positives(batch) & ~taught[:, None]
            rows = self.labels * groups.cross_entropy(table.masked_fill(outside, -torch.inf) / self.temperature)
            if self.distillation:
                rows = rows + self.distillation * groups.divergence(table / self.temperature, batch.teacher)
            sums = contrast(table[:, 0], table[:, 1:], (groups.valid & ~outside)[:, 1:])
            return of_global_batch(rows.sum(), batch.size, sums, contrast_metrics)
