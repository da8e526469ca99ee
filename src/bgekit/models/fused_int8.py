"""Layers of the fused encoder in 8 bits: twice the matrix rate of bfloat16 on CPUs with VNNI.

Weights are quantised once, every output channel with a scale of its own. Activations are quantised as they
come, every token to the range of its own values: a text's vector does not depend on what else is in the
batch, and nothing needs data to calibrate with. Norms, residuals and GELU are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

if TYPE_CHECKING:
    from .fused import Norm

#: Rows that are worked on at a time: their float32 results stay in the core's cache.
_BLOCK: Final = 256

#: Neighbouring float32 of this size are 1 apart: adding it rounds, and leaves a whole number in the lowest byte.
_WHOLE: Final = 1.5 * (1 << 23)

_ONES: Final = torch.ones(_BLOCK, 1)

#: `config.hidden_act` -> the function.
ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": relu,
}


def has_fast_int8() -> bool:
    """Whether this CPU multiplies 8-bit integers faster than anything else, without saturating between steps."""
    return torch.cpu._is_vnni_supported()


class _Rows:
    """Quantised activations: row r is `step[r] * whole[r] + offset[r, 0]`, with whole in 0..255."""

    def __init__(self, x: Tensor) -> None:
        """Quantise [at most _BLOCK, n] float32, each row to its own range."""
        high, low = x.amax(1, keepdim=True).clamp_(min=0), x.amin(1, keepdim=True).clamp_(max=0)
        # 254 steps leave one for the rounding of the zero point.
        self.step = high.sub_(low).div_(254).clamp_(min=1e-30)
        inverse = self.step.reciprocal()
        zero = low.mul_(inverse).round_()
        # The lowest byte of the sum is what is wanted; a conversion from float32 would take three times as long.
        self.whole = (x * inverse).add_(_WHOLE - zero).view(torch.int32).to(torch.uint8)
        self.offset = torch.cat([zero.mul_(self.step), _ONES[: len(x)]], 1)


class Int8Linear:
    """A linear layer with 8-bit weights."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        weight = weight.detach().float()
        self.scale = (weight.abs().amax(1) / 127).clamp_(min=1e-30)
        whole = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
        self.zero = torch.zeros(len(whole), dtype=torch.long)
        # A row's product is step * (whole W) + offset * (sum of W's columns) + bias: here the last two.
        self.rest = torch.stack([self.scale * whole.sum(1), bias.detach().float()])

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, out] float32 for [at most _BLOCK rows, in] float32."""
        rows = _Rows(x)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows.whole, 1.0, 0, self.weight, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y.mul_(rows.step).addmm_(rows.offset, self.rest)


class Int8Projection:
    """Linear layers of the same input as one, with results for attention in `dtype`."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.linear, self.dtype = Int8Linear(weight, bias), dtype

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, out] for [rows, in] float32."""
        result = x.new_empty(len(x), len(self.linear.scale), dtype=self.dtype)
        for start in range(0, len(x), _BLOCK):
            result[start : start + _BLOCK] = self.linear(x[start : start + _BLOCK])
        return result


class Int8Layer:
    """One transformer layer but for its attention: see `fused._Layer`."""

    def __init__(self, layer: Any, qkv: Int8Projection, norms: tuple[Norm, Norm], activation: str) -> None:
        def pack(linear: nn.Linear) -> Int8Linear:
            return Int8Linear(linear.weight, linear.bias)

        self.qkv = qkv
        self.output, self.output_norm = pack(layer.attention.output.dense), norms[0]
        self.up, self.activation = pack(layer.intermediate.dense), ACTIVATIONS[activation]
        self.down, self.down_norm = pack(layer.output.dense), norms[1]

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """The layer's output, [rows, hidden] float32, for its input and the heads' results."""
        result = torch.empty_like(x)
        for start in range(0, len(x), _BLOCK):
            rows = slice(start, start + _BLOCK)
            y = self.output_norm(self.output(context[rows].float()).add_(x[rows]))
            result[rows] = self.down_norm(self.down(self.activation(self.up(y))).add_(y))
        return result
