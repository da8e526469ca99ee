"""What docs/determinism.md and docs/performance.md state of products and attention on this CPU.

python benchmarks/determinism.py rows        # numbers of rows whose bits are those of 32, or of 256, in one thread
python benchmarks/determinism.py attention   # torch's kernel by length: ms for 2,048 tokens, one thread
python benchmarks/determinism.py one-text    # what bounds one text: its products, and its attention, with two threads
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from bgekit.networks.cpu_attention import OwnAttention, ShortAttention
from bgekit.networks.cpu_products import FEW, MANY, Linear, round_up, row_check, threads_of

#: Columns of x and of the result, of bge-small, base and large.
SHAPES = (
    (384, 1152, None), (384, 384, None), (384, 1536, "gelu"), (1536, 384, None), (768, 2304, None), (768, 768, None),
    (768, 3072, "gelu"), (3072, 768, None), (1024, 3072, None), (1024, 1024, None), (1024, 4096, "gelu"),
    (4096, 1024, None),
)  # fmt: skip
ROWS = (*range(1, 9), *range(16, 65, 8), *range(80, 257, 16), *range(288, 769, 32), 1024, 1280, 1536, 2048, 3072, 4096)
LENGTHS = (16, 31, 32, 60, 64, 100, 112, 127, 128, 200, 256, 300, 512)


def rows() -> None:
    """Numbers of rows that agree, by shape and threads."""
    for inputs, outputs, activation in SHAPES:
        check = row_check(inputs, outputs, torch.bfloat16, activation)
        for like in (FEW, MANY):
            for threads in (1, 2):
                agree = [count for count in ROWS if check._holds(count, threads, False, like)]
                found = "all" if len(agree) == len(ROWS) else agree
                print(f"{inputs} x {outputs}, as {like} rows, {threads} threads: {found}", flush=True)
        with threads_of(1):
            print(f"  blocks of columns for 2,048 rows as {FEW}: {check.width(2048, False) or 'none'}", flush=True)


def attention() -> None:
    """Milliseconds for 2,048 tokens of each length, 12 heads; the best of 30."""
    for width in (32, 64):
        found = []
        for length in LENGTHS:
            states = torch.randn(length, 3, 12, width).bfloat16()[None].permute(2, 0, 3, 1, 4)
            best = float("inf")
            for _ in range(30):
                start = time.perf_counter()
                scaled_dot_product_attention(*states.unbind())
                best = min(best, time.perf_counter() - start)
            found.append(f"{length}: {best * 1e3 * 2048 / length:.1f}")
        print(f"head width {width}: " + ", ".join(found))


def one_text() -> None:
    """Medians of one text's products, in all 12 layers, and of its attention in one layer."""
    with threads_of(2), torch.inference_mode():
        for name, hidden, heads in (("bge-small", 384, 12), ("bge-base", 768, 12)):
            wide = 4 * hidden
            # Copies of the four weights of a layer until they are larger than the cache.
            layers = [
                [
                    Linear(torch.randn(outputs, inputs), torch.randn(outputs), torch.bfloat16)
                    for inputs, outputs in ((hidden, 3 * hidden), (hidden, hidden), (hidden, wide), (wide, hidden))
                ]
                for _ in range(200_000_000 // (24 * hidden**2))
            ]
            for rows in (12, 16, 112):
                short, long = torch.randn(rows, hidden).bfloat16(), torch.randn(rows, wide).bfloat16()
                took = _median(partial(_multiply, layers, short, long), 9) / len(layers) * 12
                speed = 12 * 24 * hidden**2 * rows / took / 1e9
                print(f"{name}, {rows} rows: products {took * 1e3:.1f} ms, {speed:.0f} GFLOP/s")
            for tokens in (11, 100):
                rows = round_up(tokens)
                states = torch.randn(rows, 3 * hidden).bfloat16()
                took_by = []
                for kind in (ShortAttention, OwnAttention):
                    attention = kind([tokens], rows, heads, torch.bfloat16)
                    took_by.append(_median(partial(attention, states, None), 200) * 1e6)
                print(f"{name}, {tokens} tokens: torch's attention {took_by[0]:.0f} us, own {took_by[1]:.0f} us")


def _multiply(layers: list[list[Linear]], short: torch.Tensor, long: torch.Tensor) -> None:
    """All products of some layers, of rows [n, hidden] and [n, intermediate]."""
    for *narrow, last in layers:
        for layer in narrow:
            layer.multiply(short, None)
        last.multiply(long, None)


def _median(call: Callable[[], object], times: int) -> float:
    """Seconds."""
    took = []
    for _ in range(times + 3):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("rows", "attention", "one-text"))
    with threads_of(1):
        {"rows": rows, "attention": attention, "one-text": one_text}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
