"""Pooling: token vectors -> one vector for each text."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..models.card import Pooling
from .packing import Packed

Select = Literal["all", "first", "last"]


def rows_needed(pooling: Pooling) -> Select:
    """The token vectors that a pooling reads: a network may leave out the others in its last layer."""
    selections: dict[str, Select] = {"cls": "first", "last_token": "last"}
    return selections.get(pooling, "all")


def select_rows(hidden: Tensor, batch: Packed, select: Select) -> Tensor:
    """[T, h] -> the rows that `select` names: all, or [n, h] of each sequence's first or last token."""
    if select == "first":
        return hidden[batch.starts]
    if select == "last":
        return hidden[batch.starts + batch.lengths_tensor - 1]
    return hidden


def pool(hidden: Tensor, batch: Packed, pooling: Pooling) -> Tensor:
    """One vector for each sequence, accumulated in float32.

    Args:
        hidden: The rows that `rows_needed(pooling)` names: [n, h] for cls and last_token, else [T, h].
        batch: The packed sequences.
        pooling: `weighted_mean` weights token i (from 1) by i (SGPT, arXiv:2202.08904, eq. 2);
            the others are what their names say.

    Returns:
        [n, h] float32.
    """
    hidden = hidden.float()
    if rows_needed(pooling) != "all":
        return hidden
    positions = batch.positions
    counted = torch.ones_like(positions, dtype=torch.bool)
    if batch.skip is not None:
        skip = torch.tensor(batch.skip, device=hidden.device)
        # A text of nothing but prompt would have no token left: its last one, the separator, always counts.
        skip = torch.minimum(skip, batch.lengths_tensor - 1)
        counted = positions >= skip.repeat_interleave(batch.lengths_tensor)
    if pooling == "max":
        hidden = hidden.masked_fill(~counted[:, None], -torch.inf)
        return torch.segment_reduce(hidden, "max", lengths=batch.lengths_tensor, unsafe=True)
    weights = counted.float() * (positions + 1 if pooling == "weighted_mean" else 1.0)
    total = torch.segment_reduce(hidden * weights[:, None], "sum", lengths=batch.lengths_tensor, unsafe=True)
    return total / torch.segment_reduce(weights, "sum", lengths=batch.lengths_tensor, unsafe=True)[:, None]
