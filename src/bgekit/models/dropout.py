"""Dropout on the CPU whose masks cost little time and no memory.

torch draws a CPU mask number by number in one thread, 6 ns each, which makes dropout a third of a training step, and
keeps the mask for the backward pass. Here a call draws one seed from torch's generator, so that whatever fixes or
restores that generator fixes the masks; the mask itself comes from a fast generator, and is drawn again from the seed
on the way back.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Values that 8 bits have.
_STEPS: Final = 1 << 8


def draw_seed() -> int:
    """A seed from torch's CPU generator."""
    return int(torch.randint(torch.iinfo(torch.int64).max, ()))


class Keep:
    """Masks in a fixed order: 1 for what stays, 0 for what is dropped.

    A value has 8 random bits, so a mask drops with a multiple of 1/256: the one below or above the probability, drawn
    for each mask, so that over masks every value is dropped with the probability itself.

    Attributes:
        scale: What remains is multiplied by it, so that expected values stay as they are.
    """

    def __init__(self, probability: float, seed: int) -> None:
        """`probability` of dropping, below 1; equal seeds give equal masks for equal sizes."""
        self.scale = 1 / (1 - probability)
        self._dropped = probability * _STEPS
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def draw(self, out: Tensor) -> Tensor:
        """The next mask, written into a contiguous tensor of any type."""
        dropped = math.floor(self._dropped + self._generator.random())
        words = self._generator.integers(1 << 64, size=-(-out.numel() // 8), dtype=np.uint64)
        if dropped == _STEPS:
            return out.zero_()
        bits = torch.from_numpy(words.view(np.uint8))[: out.numel()]
        return torch.ge(bits.view(out.shape), dropped, out=out)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with these masks on the CPU, and as it is elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape."""
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu":
            return super().forward(input)
        result: Tensor = _Dropped.apply(input, self.p, draw_seed())
        return result


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float, seed: int) -> Tensor:
        ctx.drawn = probability, seed
        return _drop(values, Keep(probability, seed))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _drop(gradient, Keep(*ctx.drawn)), None, None


def _drop(values: Tensor, keep: Keep) -> Tensor:
    mask = torch.empty(values.shape, dtype=values.dtype)
    return keep.draw(mask).mul_(keep.scale).mul_(values)


def use_quick_dropout(model: nn.Module) -> None:
    """Replace the plain dropout modules in a network, in place."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p).train(child.training))
