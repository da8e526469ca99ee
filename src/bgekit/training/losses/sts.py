"""Losses for pairs with a similarity score (semantic textual similarity)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...errors import DataError
from ..loop.options import ScoredLoss
from .distributed import LossValue, Pool, full_precision, of_global_batch
from .listwise import LossBatch


@dataclass(frozen=True)
class CoSent:
    """log(1 + sum of exp(scale * (cos_j - cos_i)) over all pairs i, j of the global batch with score_i > score_j).

    https://kexue.fm/archives/8847. Computed in O(n log n): over pairs sorted by their score the inner sums are
    cumulative ones.

    Attributes:
        scale: Cosines are multiplied by it.

    Example:
        >>> from bgekit.training.losses import CoSent
        >>> CoSent().scale
        20.0
    """

    scale: float = 20.0

    def __call__(self, queries: Tensor, passages: Tensor, batch: LossBatch) -> LossValue:
        """The loss of the vectors of this process: one passage for each query."""
        with full_precision(queries, passages) as (queries, passages):
            own, labels = _pairs(queries, passages, batch)
            pool = Pool((len(own),), own.device, across=True)
            # Every process computes the whole loss; `Pool.rows` adds up the gradients of all, averaging divides again.
            cosines, labels = pool.rows(own, 0), pool.rows(labels.to(own), 0)
            labels, order = labels.sort(stable=True)
            scaled = cosines[order] * self.scale
            lower = torch.searchsorted(labels, labels)  # how many have a lower score
            some = lower > 0
            terms = scaled.logcumsumexp(0)[lower[some] - 1] - scaled[some]
            loss = torch.cat([scaled.new_zeros(1), terms]).logsumexp(0)
            metrics = {"loss": loss.detach(), "positive": cosines.detach().mean()}
            # Attached to the vectors even where no score is lower than another.
            return LossValue(loss + 0 * cosines.sum(), metrics)


@dataclass(frozen=True)
class ScoredMse:
    """Mean squared error of the cosine of a pair against its score, which should be of -1..1 (`check_cosines`).

    Example:
        >>> from bgekit.training.losses import ScoredMse
        >>> loss = ScoredMse()
    """

    def __call__(self, queries: Tensor, passages: Tensor, batch: LossBatch) -> LossValue:
        """The loss of the vectors of this process: one passage for each query."""
        with full_precision(queries, passages) as (queries, passages):
            cosines, labels = _pairs(queries, passages, batch)
            errors = (cosines - labels.to(cosines)).square()
            return of_global_batch(errors.sum(), batch.size, cosines.detach().sum()[None], _mean)


#: A loss for rows with a `score`, by its name in `--scored-loss`.
SCORED_LOSSES: Final[Mapping[ScoredLoss, Callable[[], CoSent | ScoredMse]]] = {"cosent": CoSent, "mse": ScoredMse}


def _mean(sums: Tensor, size: int) -> dict[str, Tensor]:
    return {"positive": sums[0] / max(size, 1)}


def _pairs(queries: Tensor, passages: Tensor, batch: LossBatch) -> tuple[Tensor, Tensor]:
    if batch.scores is None:
        raise DataError('this loss needs rows with a score, such as {"query": "a", "pos": ["b"], "score": 0.8}')
    if len(passages) != len(queries):
        raise DataError(f"rows with a score have one passage each, not {len(passages)} for {len(queries)} queries")
    return cosine_similarity(queries, passages, dim=-1), batch.scores
