"""A loss over all pairs of rows and columns, with the memory of a block of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Computes the rows of a slice: (rows [b, d], all columns [m, d], slice) -> (sum of their losses, statistics [k]).
Block: TypeAlias = Callable[[Tensor, Tensor, slice], tuple[Tensor, Tensor]]

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
    differentiate = torch.is_grad_enabled() and (rows.requires_grad or columns.requires_grad)
    return _Blockwise.apply(rows, columns, block, slices, statistics, differentiate)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        block: Block,
        slices: list[slice],
        statistics: int,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        total, counted = rows.new_zeros(()), rows.new_zeros(statistics)
        if not differentiate:
            for part in slices:
                value, numbers = block(rows[part], columns, part)
                total, counted = total + value, counted + numbers
            return total, counted
        row_gradient, column_gradient = torch.empty_like(rows), torch.zeros_like(columns)
        with torch.enable_grad():
            every = columns.detach().requires_grad_()
            for part in slices:
                some = rows[part].detach().requires_grad_()
                value, numbers = block(some, every, part)
                row_gradient[part], of_columns = torch.autograd.grad(value, (some, every))
                column_gradient += of_columns
                total, counted = total + value.detach(), counted + numbers.detach()
        ctx.save_for_backward(row_gradient, column_gradient)
        ctx.mark_non_differentiable(counted)
        return total, counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        of_rows, of_columns = ctx.saved_tensors
        return of_rows * gradient, of_columns * gradient, None, None, None, None
