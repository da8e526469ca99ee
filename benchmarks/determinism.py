"""What docs/determinism.md and docs/performance.md state of products and attention on this CPU.

python benchmarks/determinism.py rows        # numbers of rows whose bits are those of 32, or of 256, in one thread
python benchmarks/determinism.py attention   # torch's kernel by length: ms for 2,048 tokens, one thread
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from bgekit.networks.cpu_products import FEW, MANY, row_check, threads_of

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("rows", "attention"))
    with threads_of(1):
        {"rows": rows, "attention": attention}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
