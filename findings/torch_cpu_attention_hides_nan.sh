#!/usr/bin/env bash
# torch 2.13.0: `scaled_dot_product_attention` on a CPU, for keys that are not numbers.
#
# By the definition of softmax a NaN in a row of scores makes all weights of that row NaN, and so its result. torch's
# CPU kernel does that from 16 keys on. For 1 to 15 keys whose scores are all NaN it returns zeros, in float32 and
# bfloat16: a damaged weight gives finite vectors for short texts (most queries), and NaN for long ones alone.
#
# Seen on 2026-11-29:
#
#   float32: zeros for 1 to 15 keys, NaN for 16 to 64 keys
#   bfloat16: zeros for 1 to 15 keys, NaN for 16 to 64 keys
#   torch 2.13.0+cpu hides NaN in attention over fewer than 16 keys: still so
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --no-compile "torch==2.13.0" "numpy==2.4.6"
cd "$work"

"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention

so = True
for dtype in (torch.float32, torch.bfloat16):
    zeros, nans = [], []
    for length in range(1, 65):
        query, key, value = torch.ones(3, 1, 2, length, 32, dtype=dtype)
        key = torch.full_like(key, float("nan"))
        result = scaled_dot_product_attention(query, key, value)
        exact = torch.softmax(query.float() @ key.float().transpose(2, 3), -1) @ value.float()
        assert exact.isnan().all()
        if result.isnan().all():
            nans.append(length)
        elif (result == 0).all():
            zeros.append(length)
    name = str(dtype).removeprefix("torch.")
    print(f"{name}: zeros for {zeros[0]} to {zeros[-1]} keys, NaN for {nans[0]} to {nans[-1]} keys")
    so = so and zeros == list(range(1, 16)) and nans == list(range(16, 65))
verdict = "still so" if so else "it has changed"
print(f"torch {torch.__version__} hides NaN in attention over fewer than 16 keys: {verdict}")
sys.exit(0 if so else 1)
PYTHON
