"""The signature of a loss on vectors (`Loss`), and the Matryoshka loss on their leading dimensions.

A loss is a callable on the vectors of this process and what is known of its rows (`LossBatch`):
`loss(queries [n, d], passages [m, d], batch) -> LossValue`; a loss of rerankers takes scores:
`loss(scores [m], batch)`. Every loss is that of the global batch: averaged over any number of processes, its
gradient is the one that a single process with the whole batch has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import normalize

from ...errors import ArgumentError
from .distributed import LossValue, full_precision
from .listwise import LossBatch


class Loss(Protocol):
    """A loss on vectors."""

    def __call__(self, queries: Tensor, passages: Tensor, batch: LossBatch) -> LossValue:
        """The loss of the vectors of this process."""
        ...


@dataclass(frozen=True)
class Matryoshka:
    """A loss on the leading dimensions of vectors, a weighted mean over several numbers of them (arXiv:2205.13147).

    Attributes:
        loss: What is computed for each.
        dims: Numbers of dimensions, the whole vector if it is among them.
        weights: Weights of each; equal by default.
        normalized: Whether the cut vectors get length 1 again.

    Example:
        >>> from bgekit.training.losses import Contrastive, Matryoshka
        >>> Matryoshka(Contrastive(temperature=0.02), dims=[384, 192, 96]).normalized
        True
    """

    loss: Loss
    dims: Sequence[int]
    weights: Sequence[float] | None = None
    normalized: bool = True

    def __post_init__(self) -> None:
        if not self.dims or min(self.dims) < 1:
            raise ArgumentError(f"Matryoshka needs numbers of dimensions of at least 1, not {list(self.dims)}")
        if self.weights is not None and len(self.weights) != len(self.dims):
            raise ArgumentError(f"{len(self.weights)} weights for {len(self.dims)} numbers of dimensions")
        if self.weights is not None and sum(self.weights) <= 0:
            raise ArgumentError(f"the weights must sum to more than 0, not {list(self.weights)}")

    def __call__(self, queries: Tensor, passages: Tensor, batch: LossBatch) -> LossValue:
        """The loss of the vectors of this process; metrics are those of the most dimensions."""
        whole = queries.shape[1]
        if max(self.dims) > whole:
            raise ArgumentError(f"vectors have {whole} dimensions: {max(self.dims)} of them cannot be trained")
        given = self.weights or [1.0] * len(self.dims)
        weights = [weight / sum(given) for weight in given]
        with full_precision(queries, passages) as (queries, passages):
            values = [self.loss(self._cut(queries, dim), self._cut(passages, dim), batch) for dim in self.dims]
        largest = max(range(len(values)), key=lambda i: self.dims[i])
        loss, reported = weights[0] * values[0].loss, weights[0] * values[0].metrics["loss"]
        for weight, value in zip(weights[1:], values[1:], strict=True):
            loss, reported = loss + weight * value.loss, reported + weight * value.metrics["loss"]
        return LossValue(loss, {**values[largest].metrics, "loss": reported})

    def _cut(self, vectors: Tensor, dim: int) -> Tensor:
        cut = vectors[:, :dim]
        return normalize(cut, dim=-1) if self.normalized else cut
