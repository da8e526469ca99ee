"""What a loss returns, and how the share of one process is scaled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .distributed import sum_over_processes, world_size


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
