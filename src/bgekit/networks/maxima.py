"""Maxima over the tokens of texts of any lengths, as multi-vector scores need them; differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .packing import Packed


@dataclass(frozen=True, eq=False)
class Rectangles:
    """The vectors of m texts as a few rectangles of texts of nearly equal length, for maxima over those of a text.

    The last vector of a text stands in for those that it lacks, which leaves every maximum as it is.

    Attributes:
        index: [R] int64, the vector of each place, rectangle by rectangle.
        shapes: Texts and vectors of each rectangle.
        order: [m] int64, where each text stands among those of the rectangles.
    """

    index: Tensor
    shapes: tuple[tuple[int, int], ...]
    order: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> Rectangles:
        """Rectangles of texts with these numbers of vectors, at least 1 each, that lie end to end."""
        groups = Packed(torch.empty(sum(counts), dtype=torch.long, device=device), tuple(counts)).groups
        none = torch.empty(0, dtype=torch.long, device=device)
        starts = torch.tensor([0, *counts], device=device).cumsum(0)[:-1]
        texts = torch.searchsorted(starts, torch.cat([none, *(group.index[:, 0] for group in groups)]))
        index = torch.cat([none, *(group.index.flatten() for group in groups)])
        shapes = tuple((len(group.index), group.index.shape[1]) for group in groups)
        return cls(index, shapes, texts.argsort())

    def maxima(self, scores: Tensor) -> Tensor:
        """[t, R] scores of something and each place -> [t, m], the largest of each text."""
        parts = scores.split([texts * vectors for texts, vectors in self.shapes], 1)
        largest = [part.unflatten(1, shape).max(2).values for part, shape in zip(parts, self.shapes, strict=True)]
        return torch.cat([scores[:, :0], *largest], 1)[:, self.order]


def mean_of_maxima(queries: Tensor, counts: Tensor, places: Tensor, passages: Rectangles) -> Tensor:
    """[n, m]: the mean over a query's vectors of each one's largest product with a vector of a passage.

    Memory is one number for each pair of a query's vector and a place.

    Args:
        queries: [t, c] vectors of all queries, end to end.
        counts: [n] int64, how many each query has, at least 1.
        places: [R, c] vectors of the passages: those of `passages.index`.
        passages: Where they are.
    """
    largest = passages.maxima(queries @ places.T)
    owner = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(queries))
    sums = largest.new_zeros(len(counts), largest.shape[1]).index_add(0, owner, largest)
    return sums / counts[:, None]
