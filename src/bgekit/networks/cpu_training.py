"""Attention for training on the CPU: blocks that stay in the cache, dropout that is drawn again, nothing kept of L^2.

torch's attention has a kernel that does this, but not with dropout: then it writes scores, weights, masks and their
gradients to memory as a whole, [n, heads, L, L] each, and keeps most for the backward pass. For texts of 256 tokens
that is more time than all linear layers of a small encoder together, and gigabytes. Here the backward pass computes
the weights of each block once more (as FlashAttention does, arXiv:2205.14135, by blocks of whole heads).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Scores computed at once, or those of one head where a text has more. Three or four buffers of this size are in use.
_SCORES: Final = 1 << 20


@dataclass(frozen=True, eq=False)
class Layout:
    """The order of a packed batch in which each head of each sequence is a block of its own.

    Sequences of equal rounded length lie together: [n, heads, L, d] for each length, one behind another, as rows of d.

    Attributes:
        index: For each row, which row of the packed [T * heads, d] it is; any for padding.
        inverse: [T * heads], the row of each token and head.
        groups: Sequences of one rounded length.
    """

    index: Tensor
    inverse: Tensor
    groups: tuple[_HeadGroup, ...]

    @classmethod
    def of(cls, lengths: tuple[int, ...], heads: int) -> Layout:
        """The layout of sequences of these lengths."""
        counts = torch.tensor(lengths)
        first = counts.cumsum(0) - counts
        rounded = torch.tensor([_rounded(length) for length in lengths])
        head = torch.arange(heads)
        indices, groups, start = [], [], 0
        inverse = torch.empty(sum(lengths), heads, dtype=torch.long)
        for length in rounded.unique().tolist():
            members = (rounded == length).nonzero()[:, 0]
            column = torch.arange(length)
            valid = column < counts[members, None]
            token = first[members, None] + column.minimum(counts[members, None] - 1)
            indices.append((token[:, None] * heads + head[:, None]).flatten())
            rows = torch.arange(start, start + len(indices[-1])).view(len(members), heads, length)
            inverse[token[valid]] = rows.transpose(1, 2)[valid]
            padded = None if bool(valid.all()) else valid.repeat_interleave(heads, 0)[:, None]
            groups.append(_HeadGroup(slice(start, start + rows.numel()), length, padded))
            start += rows.numel()
        return cls(torch.cat(indices), inverse.flatten(), tuple(groups))


@dataclass(frozen=True, eq=False)
class _HeadGroup:
    rows: slice
    length: int
    valid: Tensor | None  # [n * heads, 1, length] bool, None without padding

    def blocks(self, rows: Tensor) -> Tensor:
        """[n * heads, length, d]: the rows of this group."""
        return rows[self.rows].view(-1, self.length, rows.shape[1])


def _rounded(length: int) -> int:
    """Rows whose width is a multiple of the vectors' are quicker than shorter ones, and few shapes occur."""
    step = 8 if length <= 16 else 16 if length <= 64 else 32
    return -(-length // step) * step


def attend_by_head(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, dropout: float) -> Tensor:
    """dropout(softmax(scale * query key^T)) value inside each sequence, for each head; differentiable once.

    Args:
        query: [T, heads, d] on the CPU; cast to autocast's type where that is on, as torch's attention does.
        key: [T, heads, d].
        value: [T, heads, d].
        layout: Layout of the sequences and heads.
        scale: Factor on the scores.
        dropout: Probability of dropping a weight, drawn from torch's generator.

    Returns:
        [T, heads, d].
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (each.to(torch.get_autocast_dtype("cpu")) for each in (query, key, value))
    seed = draw_seed() if dropout else 0
    with torch.autocast("cpu", enabled=False):
        result: Tensor = _Attention.apply(query, key, value, layout, scale, dropout, seed)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, dropout: float, seed: int
    ) -> Tensor:
        keep = Keep(dropout, seed) if dropout else None
        queries, keys, values = (_by_head(each, layout) for each in (query * scale, key, value))
        if keep is not None:
            values *= keep.scale
        results = torch.empty_like(values)
        for group in layout.groups:
            q, k, v, result = (group.blocks(each) for each in (queries, keys, values, results))
            for part, weights, mask in _softmax_blocks(q, k, group.valid, keep):
                if mask is not None:
                    weights.mul_(mask)
                torch.bmm(weights, v[part], out=result[part])
        ctx.save_for_backward(query, key, value)
        ctx.options = layout, scale, dropout, seed
        return _by_token(results, layout, value.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Where `backward` is called under autocast, that is on here, too.
        with torch.autocast("cpu", enabled=False):
            return (*_gradients(gradient, *ctx.saved_tensors, *ctx.options), None, None, None, None)


def _gradients(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, dropout: float, seed: int
) -> Iterator[Tensor]:
    """Gradients of query, key and value, each [T, heads, d]."""
    keep = Keep(dropout, seed) if dropout else None
    queries, keys, values = (_by_head(each, layout) for each in (query * scale, key, value))
    # Queries that are padding are copies of real ones; without a gradient they add nothing to anything.
    of_results = torch.zeros_like(values)
    of_results[layout.inverse] = gradient.reshape(-1, gradient.shape[-1])
    if keep is not None:
        of_results *= keep.scale
    of_queries, of_keys, of_values = (torch.empty_like(values) for _ in range(3))
    for group in layout.groups:
        q, k, v, of_result = (group.blocks(each) for each in (queries, keys, values, of_results))
        of_q, of_k, of_v = (group.blocks(each) for each in (of_queries, of_keys, of_values))
        buffer = _buffer(k)
        for part, weights, mask in _softmax_blocks(q, k, group.valid, keep):
            of_weights = buffer[: len(weights)]
            dropped = weights if mask is None else torch.mul(weights, mask, out=of_weights)
            torch.bmm(dropped.transpose(1, 2), of_result[part], out=of_v[part])
            torch.bmm(of_result[part], v[part].transpose(1, 2), out=of_weights)
            if mask is not None:
                of_weights.mul_(mask)
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            torch.bmm(of_scores, k[part], out=of_q[part])
            torch.bmm(of_scores.transpose(1, 2), q[part], out=of_k[part])
    of_queries *= scale
    return (_by_token(each, layout, value.shape) for each in (of_queries, of_keys, of_values))


def _by_head(tokens: Tensor, layout: Layout) -> Tensor:
    """[T, heads, d] -> [rows, d]."""
    return tokens.reshape(-1, tokens.shape[-1]).index_select(0, layout.index)


def _by_token(rows: Tensor, layout: Layout, shape: torch.Size) -> Tensor:
    """[rows, d] -> [T, heads, d]."""
    return rows.index_select(0, layout.inverse).view(shape)


def _softmax_blocks(
    queries: Tensor, keys: Tensor, valid: Tensor | None, keep: Keep | None
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Slices of blocks [L, d], their weights [b, L, L] before dropout, and 1 for those that dropout keeps.

    The next ones are written over these.
    """
    scores, masks = _buffer(keys), None if keep is None else _buffer(keys)
    bias = None
    if valid is not None:
        bias = torch.zeros(valid.shape, dtype=keys.dtype).masked_fill_(~valid, -torch.inf)
    for start in range(0, len(keys), len(scores)):
        part = slice(start, min(start + len(scores), len(keys)))
        weights, transposed = scores[: part.stop - start], keys[part].transpose(1, 2)
        if bias is None:
            torch.bmm(queries[part], transposed, out=weights)
        else:
            torch.baddbmm(bias[part], queries[part], transposed, out=weights)
        torch.softmax(weights, -1, out=weights)
        yield part, weights, None if masks is None or keep is None else keep.draw(masks[: len(weights)])


def _buffer(keys: Tensor) -> Tensor:
    """Room for the scores of as many blocks as are computed at once."""
    length = keys.shape[1]
    return keys.new_empty(min(len(keys), max(1, _SCORES // length**2)), length, length)


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


def keep_few_kernels() -> None:
    """Have oneDNN, which multiplies on CPUs, keep 128 kernels instead of 1,024, unless the user has set a number.

    It compiles one for each shape, and in training nearly every step has another number of tokens: what it keeps, about
    1 MB each, is hardly ever used again. A layer of the network uses what the one before it compiled, for which 64 are
    enough: the processor time of training was the same with 64, 128 and 1,024. Must come before the first product.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # Its older name.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
