"""Attention and dropout of training on the CPU against torch's own: time, and distance from float64.

    python benchmarks/attention.py

One layer of a small encoder (12 heads of 32), forward and backward, texts of one length with 8,192 tokens in all,
dropout 0.1. Medians of interleaved repetitions. Errors are those of results and of the queries' gradient without
dropout, relative to float64; numbers of mean 0 and a standard deviation stand for queries and keys.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bgekit.networks.cpu_training import Dropout, Layout, attend_by_head

TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
HEADS, WIDTH, TOKENS, DROPOUT, REPETITIONS = 12, 32, 8192, 0.1, 7
SCALE = WIDTH**-0.5


def drawn(length: int, dtype: torch.dtype, spread: float = 1.0, tokens: int = TOKENS) -> list[Tensor]:
    """Query, key, value and a gradient of the result, [T, heads, d]."""
    torch.manual_seed(0)
    count = tokens // length * length
    made = [torch.randn(count, HEADS, WIDTH, dtype=torch.float64) for _ in range(4)]
    made[:2] = [spread * each for each in made[:2]]
    return [*(each.to(dtype).requires_grad_() for each in made[:3]), made[3].to(dtype)]


def ours(query: Tensor, key: Tensor, value: Tensor, length: int, dropout: float) -> Tensor:
    return attend_by_head(query, key, value, Layout.of((length,) * (len(query) // length), HEADS), SCALE, dropout)


def torchs(query: Tensor, key: Tensor, value: Tensor, length: int, dropout: float) -> Tensor:
    q, k, v = (each.unflatten(0, (-1, length)).transpose(1, 2) for each in (query, key, value))
    result = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=SCALE)
    return result.transpose(1, 2).flatten(0, 1)


def seconds(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians of turns, one after another in rotation."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(REPETITIONS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in taken.items()}


def there_and_back(function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor, *options: float) -> None:
    torch.autograd.grad(function(*inputs, *options), inputs, gradient)


def attention_times() -> None:
    print("| type | length | dropout | torch, us a token | bgekit, us a token | times as fast |")
    print("|---|--:|--:|--:|--:|--:|")
    for dtype, length, dropout in itertools.product(TYPES, (32, 128, 256, 512), (DROPOUT, 0.0)):
        *inputs, gradient = drawn(length, dtype)
        taken = seconds({
            name: partial(there_and_back, function, inputs, gradient, length, dropout)
            for name, function in (("torch", torchs), ("bgekit", ours))
        })  # fmt: skip
        micro = {name: 1e6 * each / len(gradient) for name, each in taken.items()}
        print(
            f"| {TYPES[dtype]} | {length} | {dropout} | {micro['torch']:.1f} | {micro['bgekit']:.1f} "
            f"| {micro['torch'] / micro['bgekit']:.2f} |"
        )


def dropout_times() -> None:
    print("\n| dropout of 8,192 x 384, forward and backward | torch, ns a number | bgekit, ns a number |")
    print("|---|--:|--:|")
    for dtype, name in TYPES.items():
        values = torch.randn(TOKENS, 384).to(dtype).requires_grad_()
        layers = {"torch": torch.nn.Dropout(DROPOUT), "bgekit": Dropout(DROPOUT)}
        taken = seconds({
            each: partial(there_and_back, layer, [values], values.detach()) for each, layer in layers.items()
        })  # fmt: skip
        nano = {each: 1e9 * time_taken / values.numel() for each, time_taken in taken.items()}
        print(f"| {name} | {nano['torch']:.1f} | {nano['bgekit']:.1f} |")


def errors() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    print(
        "\n| bfloat16, queries and keys of standard deviation | bgekit | torch, flash | torch, with dropout's kernel |"
    )
    print("|---|--:|--:|--:|")
    length = 128

    def both(function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
        result = function(*inputs, length, 0.0)
        return [result.detach(), torch.autograd.grad(result, inputs, gradient)[0]]

    for spread in (1.0, 2.0, 3.0):
        *inputs, gradient = drawn(length, torch.bfloat16, spread, 1024)
        exact = [each.detach().double().requires_grad_() for each in inputs]
        expected = both(torchs, exact, gradient.double())
        cells = []
        for function, kernel in (
            (ours, SDPBackend.MATH), (torchs, SDPBackend.FLASH_ATTENTION), (torchs, SDPBackend.MATH)
        ):  # fmt: skip
            with sdpa_kernel(kernel):
                found = both(function, inputs, gradient)
            relative = [
                float((one.double() - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)
            ]
            cells.append(" / ".join(f"{each:.4f}" for each in relative))
        print(f"| {spread:g} (result / gradient) | {' | '.join(cells)} |")


if __name__ == "__main__":
    attention_times()
    dropout_times()
    errors()
