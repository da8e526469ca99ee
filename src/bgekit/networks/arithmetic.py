"""The arithmetic of a machine: which bits its processor and torch give, so that vectors of two runs can be told apart.

On one machine, with one torch, the bits of a vector depend on its text alone (BERT family, CPU). Another kind of
processor sums and rounds otherwise: cosines of 0.9999 between the same texts, and scores that tie or change places.
What decides is not the name of the processor but what it computes, so that is what is compared: a digest of the
results of fixed products, norms and attention in the number format of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from .cpu_inference import Norm, kernels
from .cpu_products import ACTIVATIONS, FEW, MANY, Int8Linear, Linear, has_bfloat16, has_fast_int8, threads_of

#: Columns of x and of the result of each product, and what follows it.
_PRODUCTS: Final = ((384, 384, "gelu"), (1536, 384, None), (768, 768, None))
#: Capabilities of a CPU that decide which kernels run, as people know them.
_FLAGS: Final = ("amx_tile", "avx512_bf16", "avx512_vnni", "avx512", "avx2")


def arithmetic_of(precision: str, devices: Sequence[torch.device]) -> dict[str, str]:
    """How a model computes on some devices: `class`, equal where bits are, and `torch` and `cpu` for people.

    Args:
        precision: `float32`, `bfloat16`, `float16` or `int8`.
        devices: Where it computes.
    """
    kinds = sorted({_cpu_class(precision) if device.type == "cpu" else _name(device) for device in devices})
    return {"class": " + ".join(kinds), "torch": torch.__version__, "cpu": " ".join(_flags())}


def _name(device: torch.device) -> str:
    """Device of another kind; what it computes depends on its batches, too."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _flags() -> list[str]:
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return [flag for flag in _FLAGS if found.get(flag) or found.get(f"{flag}_f")]


@cache
def _cpu_class(precision: str) -> str:
    """Digest of what this CPU computes: 16 hexadecimal digits."""
    digest = hashlib.sha256(precision.encode())
    with threads_of(1), torch.inference_mode():
        for result in _results(precision):
            digest.update(result.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _results(precision: str) -> list[Tensor]:
    """Results of what an encoder computes, of numbers that are the same everywhere."""
    if not torch.backends.mkldnn.is_available():
        x = _numbers(16, 384)
        return [x @ _numbers(384, 384), ACTIVATIONS["gelu"][2](x), x.softmax(-1)]
    bf16 = has_bfloat16()
    dtype = torch.bfloat16 if precision in ("bfloat16", "int8") and bf16 else torch.float32
    results = []
    for inputs, outputs, activation in _PRODUCTS:
        x, weight, bias = _numbers(MANY, inputs), _numbers(outputs, inputs), _numbers(1, outputs)[0]
        if precision == "int8" and has_fast_int8():
            results.append(Int8Linear(weight, bias, activation=activation)(x[:8]))
        else:
            results.append(Linear(weight, bias, dtype, activation).multiply(x.to(dtype), None)[:8])
    norm = nn.LayerNorm(384)
    results.append(Norm(norm)(_numbers(16, 384)))
    for length, like in ((9, FEW), (70, MANY)):
        attention = kernels().attention_in(dtype, like)
        results.append(attention([length], length, 12, dtype)(_numbers(length, 1152).to(dtype), None))
    return results


def _numbers(rows: int, columns: int) -> Tensor:
    """[rows, columns] float32 between -1 and 1, by whole numbers and one division: the same on every machine."""
    whole = torch.arange(rows * columns, dtype=torch.int64)
    return ((whole * whole * 31 + whole * 7919) % 2003 - 1001).view(rows, columns).float() / 1001
