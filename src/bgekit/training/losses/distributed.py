"""Vectors gathered from all processes, with gradients that do not depend on how many processes there are.

Data-parallel training averages the gradients of its W processes (DistributedDataParallel, DeepSpeed). Losses here
are means over the global batch, so the share of one process is

    W / (rows of the global batch) * (sum over its own rows),

and vectors of other processes get the sum of what all processes say about them (the backward of `Pool.rows`). The
average over processes is then exactly the gradient of one process that holds the whole batch. Without the factor W it
would be 1/W of it.

Every process takes part in every call, with zero rows if it has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


def world_size() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def by_first(work: Callable[[], Result]) -> Result:
    """Result of a function on the first process, which alone runs it; every process gets it.

    Raises:
        Exception: what it raised there, on every process: those that wait must learn that there will be no result.
    """
    if world_size() == 1:
        return work()
    box: list[Any] = [None]
    if rank() == 0:
        try:
            box = [work()]
        except Exception as error:
            box = [error]
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    result: Result = box[0]
    return result


class Pool:
    """Rows that count for each other: those of all processes, or those of this one alone.

    Args:
        counts: How many rows of each sort this process has, such as (queries, passages).
        device: Where the rows are.
        across: Whether the rows of other processes belong to the pool; the same on all of them.
    """

    def __init__(self, counts: Sequence[int], device: torch.device, *, across: bool) -> None:
        self.counts, self.place = [tuple(counts)], 0
        if across and world_size() > 1:
            own = torch.tensor([counts], dtype=torch.long, device=device)
            self.counts, self.place = [tuple(row) for row in _gather(own, (1,) * world_size()).tolist()], rank()

    def offset(self, sort: int) -> int:
        """Rows of a sort that come before those of this process."""
        return sum(counts[sort] for counts in self.counts[: self.place])

    def rows(self, rows: Tensor, sort: int) -> Tensor:
        """All rows of a sort, one process after the other; differentiable for floating point.

        The gradient that reaches `rows` is the sum of the gradients that all processes have for them.
        """
        if len(self.counts) == 1:
            return rows
        counts = tuple(each[sort] for each in self.counts)
        return _Gather.apply(rows, counts) if rows.is_floating_point() else _gather(rows, counts)


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of detached values of all processes, the same on each."""
    total = values.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def _gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
    # Backends want equal shapes: rows are padded to the longest share.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded)
    return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """`_gather`, whose backward is the sum over processes of the gradient of the own slice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        start = sum(counts[: rank()])
        ctx.own = slice(start, start + counts[rank()])
        return _gather(rows, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return sum_over_processes(gradients[0])[ctx.own], None


@dataclass(frozen=True)
class LossValue:
    """The loss of a global batch, seen from one process.

    Attributes:
        loss: Scalar to differentiate: the average of its gradient over processes is that of the global batch. Its
            value may differ between processes; their average is the loss of the global batch.
        metrics: Detached scalars of the global batch, equal on all processes; `loss` is among them.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


@contextlib.contextmanager
def full_precision(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in float32 or better, and no autocast: similarities over a temperature need all their bits."""
    half = (torch.float16, torch.bfloat16)
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield tuple(tensor.float() if tensor.dtype in half else tensor for tensor in tensors)


def of_global_batch(
    total: Tensor, size: int, sums: Tensor, metrics: Callable[[Tensor, int], dict[str, Tensor]]
) -> LossValue:
    """The mean of a loss over the rows of the global batch, from the sum over those of this process.

    Args:
        total: Sum of the loss over the rows of this process.
        size: Rows of the global batch.
        sums: [k] sums of statistics over the rows of this process.
        metrics: Makes metrics of the sums over all processes and the size.
    """
    rows = max(size, 1)
    summed = sum_over_processes(torch.cat([total.detach()[None], sums.to(total.dtype)]))
    return LossValue(total * (world_size() / rows), {"loss": summed[0] / rows, **metrics(summed[1:], size)})
