"""Which number format is chosen where."""

from __future__ import annotations

import pytest
import torch

from bgekit.errors import ArgumentError
from bgekit.networks import precision
from bgekit.networks.precision import choose_precision, half_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("fp32", "float32"),
        ("bf16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        (torch.float32, "float32"),
        (torch.bfloat16, "bfloat16"),
        ("int8", "int8"),
    ],
)
def test_names_of_formats(given: str | torch.dtype, name: str) -> None:
    for use_fp16 in (True, False):  # dtype decides alone
        assert choose_precision(CPU, dtype=given, use_fp16=use_fp16) == name


@pytest.mark.parametrize("wrong", ["float8", "fast", torch.int32])
def test_an_unknown_format_is_refused_with_the_known_ones(wrong: str | torch.dtype) -> None:
    with pytest.raises(ArgumentError, match="float32, bfloat16, float16, int8"):
        choose_precision(CPU, dtype=wrong, use_fp16=True)


def test_formats_that_a_device_does_not_do() -> None:
    for name in ("float16", "fp16", "half", torch.float16):
        with pytest.raises(ArgumentError, match="bfloat16"):
            choose_precision(CPU, dtype=name, use_fp16=True)
    with pytest.raises(ArgumentError, match="CPU only"):
        choose_precision(CUDA, dtype="int8", use_fp16=True)


@pytest.mark.parametrize(("fast", "name"), [(True, "bfloat16"), (False, "float32")])
def test_half_precision_on_a_cpu_is_what_it_computes_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool, name: str
) -> None:
    monkeypatch.setattr(precision, "cpu_has_fast_bfloat16", lambda: fast)
    assert half_precision(CPU) == name
    assert choose_precision(CPU, dtype=None, use_fp16=True) == name
    assert choose_precision(CPU, dtype=None, use_fp16=False) == "float32"


def test_half_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert half_precision(CUDA, "bert") == "float16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert half_precision(CUDA, "t5") == "bfloat16"  # its activations overflow float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert half_precision(CUDA, "t5") == "float32"
