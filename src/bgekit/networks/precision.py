"""Precision: the number format that a device computes fast in."""

from __future__ import annotations

import logging
from typing import Final

import torch

from ..errors import ArgumentError

logger = logging.getLogger(__name__)
PRECISIONS: Final = ("float32", "bfloat16", "float16", "int8")
_ALIASES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
#: Model types whose activations overflow float16 (T5 was trained in bfloat16; see also FlagEmbedding #702).
_NEED_WIDE_RANGE: Final = frozenset({"t5", "mt5", "umt5", "gemma", "gemma2", "gemma3_text", "qwen3", "qwen2"})


def cpu_has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones (AMX or AVX512-BF16).

    Measured rates, bfloat16 over float32: 7 with AMX, 2.2 with AVX512-BF16, below 1 with neither.
    """
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def half_precision(device: torch.device, model_type: str = "") -> str:
    """The fastest 16-bit format of a device, `float32` where none is faster."""
    if device.type == "cpu":
        return "bfloat16" if cpu_has_fast_bfloat16() else "float32"
    if device.type == "cuda" and model_type in _NEED_WIDE_RANGE:
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "float32" if model_type in _NEED_WIDE_RANGE else "float16"


def choose_precision(
    device: torch.device, *, dtype: str | torch.dtype | None, use_fp16: bool, use_bf16: bool = False,
    model_type: str = "",
) -> str:  # fmt: skip
    """The format to compute in: `dtype`, else bfloat16 if `use_bf16`, else the fastest 16-bit one if `use_fp16`.

    float32 where none of them is asked for.

    Raises:
        ArgumentError: `dtype` is no known format, or the device cannot compute in it.
    """
    if dtype is None and use_bf16:
        dtype = "bfloat16"
    if dtype is None:
        return half_precision(device, model_type) if use_fp16 else "float32"
    name = str(dtype).removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in PRECISIONS:
        raise ArgumentError(f"dtype {dtype!r} is not one of {', '.join(PRECISIONS)}")
    if name == "int8" and device.type != "cpu":
        raise ArgumentError(f"dtype='int8' runs on the CPU only, not on {device}")
    if name == "float16" and device.type == "cpu":
        raise ArgumentError("float16 is slow and coarse on CPUs: use dtype='bfloat16', or use_fp16=True to choose")
    return name
