"""Attention of the fused encoder: a softmax of two passes that finds out whether it needed the third."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

#: Attention scores computed at once: they are read three times, so they should stay in the cache.
_SCORES: Final = 1 << 20

#: Between these, a softmax denominator taken without subtracting the row's maximum has lost nothing.
_SMALLEST, _LARGEST = 1e-25, 1e25


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor) -> None:
    """softmax(query key^T) value of each head, with scores in units of log2.

    Args:
        query: [n, heads, q, d].
        key: [n, heads, L, d].
        value: [n, heads, L, d].
        mask: [n or 1, L] 1 for tokens and 0 for padding, None without padding.
        out: [n, q or less, heads, d], written with the results of the first queries.
    """
    n, heads, length, width = key.shape
    queries = query.reshape(n * heads, -1, width)
    # Softmax does not see a constant added to a row of scores, so the keys' mean may go: what is left is
    # smaller, hence finer in bfloat16, and exp2 needs no pass to find and subtract the row's maximum.
    keys = torch.sub(key, key.mean(2, keepdim=True), out=key.new_empty(key.shape)).view(n * heads, length, width)
    if mask is None:
        values, ones = value.reshape(keys.shape), None
    else:
        # Padding adds nothing to either sum once its values and its share of the denominator are zero.
        share = mask[:, None, :, None]
        values = torch.mul(value, share, out=value.new_empty(value.shape)).view(keys.shape)
        ones = share.expand(n, heads, length, 1).reshape(n * heads, length, 1)
    sums, totals = torch.empty_like(queries), queries.new_empty(n * heads, queries.shape[1], 1)
    for part in _powers_of_two(n * heads, max(1, _SCORES // (length * queries.shape[1]))):
        weights = torch.bmm(queries[part], keys[part].transpose(1, 2)).exp2_()
        torch.bmm(weights, values[part], out=sums[part])
        if ones is None:
            torch.sum(weights, -1, keepdim=True, out=totals[part])
        else:
            torch.bmm(weights, ones[part], out=totals[part])
    smallest, largest = torch.aminmax(totals)
    if smallest > _SMALLEST and largest < _LARGEST:
        results = sums.view(query.shape).transpose(1, 2)[:, : out.shape[1]]
        torch.div(results, totals.view(n, heads, -1, 1).transpose(1, 2)[:, : out.shape[1]], out=out)
    else:  # Scores of hundreds, which trained encoders do not have; NaN comes here too, and stays NaN.
        valid = None if mask is None else mask[:, None, None, :].bool()
        exact = scaled_dot_product_attention(query, key, value, attn_mask=valid, scale=math.log(2))
        out.copy_(exact.transpose(1, 2)[:, : out.shape[1]])


def _powers_of_two(count: int, most: int) -> Iterator[slice]:
    """Cut `count` into the largest powers of two up to `most`, so that few shapes occur (see `fused._round_up`)."""
    start = 0
    while start < count:
        stop = start + (1 << (min(count - start, most).bit_length() - 1))
        yield slice(start, stop)
        start = stop
