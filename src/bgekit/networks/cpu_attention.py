"""Attention of a packed batch on a CPU, for each sequence as if it were alone: torch's kernel, or batched products.

A sequence is computed in shapes that its own length decides, so its bits do not depend on its company.
"""

from __future__ import annotations

import abc
import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .cpu_products import threads_of, with_zeros


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring sequences whose lengths are rounded up to the same, and which share their attention.

    Attributes:
        count: How many sequences.
        sequences: Which ones, of the sorted batch.
        tokens: Their rows in the packed batch.
        length: Tokens of each of them, padding included.
        own: [n, 1, 1, 1] tokens of each, in the compute dtype.
        mask: [n, 1, 1, length] bool, true for real tokens; None without padding.
        equal: Tokens of each where the rows that follow a sequence serve as its padding, else 0.
        padded: [n * length] otherwise: the row of each token, with a sequence's last token as its padding.
        real: [tokens] where the real tokens are in `padded`.
    """

    count: int
    sequences: slice
    tokens: slice
    length: int
    own: Tensor
    mask: Tensor | None
    equal: int
    padded: Tensor | None
    real: Tensor | None

    @cached_property
    def addend(self) -> Tensor | None:
        """[n, 1, 1, length] in the compute dtype: what is added to scores for the mask, once for all layers."""
        if self.mask is None:
            return None
        return torch.zeros(self.mask.shape, dtype=self.own.dtype).masked_fill_(~self.mask, -math.inf)

    @cached_property
    def share(self) -> Tensor | None:
        """[n, 1, length, 1] in the compute dtype: one for real tokens and zero for padding."""
        return None if self.mask is None else self.mask.to(self.own.dtype).transpose(2, 3)

    @classmethod
    def of(cls, lengths: list[int], length: int, first: int, start: int, rows: int, dtype: torch.dtype) -> Group:
        """The group of sequences `first` and following, whose tokens begin at row `start` of `rows`."""
        own = torch.tensor(lengths)
        stop = start + sum(lengths)
        places = len(lengths), slice(first, first + len(lengths)), slice(start, stop), length
        share = own.to(dtype)[:, None, None, None]
        if lengths[0] == length:
            return cls(*places, share, None, length, None, None)
        column = torch.arange(length)
        valid = column < own[:, None]
        mask = valid[:, None, None, :]
        if lengths[0] == lengths[-1] and stop + length - lengths[-1] <= rows:
            return cls(*places, share, mask, lengths[0], None, None)
        ends = own.cumsum(0) + start
        padded = torch.minimum((ends - own)[:, None] + column, ends[:, None] - 1)
        return cls(*places, share, mask, 0, padded.flatten(), valid.flatten().nonzero()[:, 0])


class Attention(abc.ABC):
    """The attention of one batch, whose sequences lie end to end by ascending length.

    A sequence is computed with as many keys as its own length, rounded up, says. What stands in the padding is masked,
    so it adds exactly nothing.

    Attributes:
        scale: What the products of its queries and keys are to be multiplied by; None for 1/sqrt(width).
    """

    scale: ClassVar[float | None] = None

    def __init__(self, lengths: list[int], rows: int, heads: int, dtype: torch.dtype) -> None:
        """Lay the batch out.

        Args:
            lengths: Tokens of each sequence, ascending.
            rows: Rows of the states, those behind the last token included.
            heads: Heads of the model.
            dtype: Type of the states.
        """
        self.heads = heads
        self.groups: list[Group] = []
        #: Rows of zeros behind the states, which serve a sequence alone as its padding.
        self.more = max(0, self.padded(lengths[0]) - rows) if len(lengths) == 1 else 0
        rows += self.more
        first = start = 0
        # A sequence that needs no padding has no mask in any company: a mask of nothing rounds otherwise.
        for (length, _), same in itertools.groupby(lengths, lambda own: (self.padded(own), self.padded(own) == own)):
            run = list(same)
            self.groups.append(Group.of(run, length, first, start, rows, dtype))
            first, start = first + len(run), start + sum(run)

    @staticmethod
    @abc.abstractmethod
    def query_factor(width: int) -> float:
        """What the queries of heads of this width are to be multiplied by; the model's weights bring it."""

    @staticmethod
    @abc.abstractmethod
    def padded(length: int) -> int:
        """The number of keys that a sequence of this length is computed with."""

    @abc.abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, group: Group) -> Tensor:
        """softmax(query key^T) value of each head.

        Args:
            query: [n, heads, q, d].
            key: [n, heads, L, d].
            value: [n, heads, L, d].
            group: The sequences.

        Returns:
            [n, q, heads, d], contiguous.
        """

    def __call__(self, states: Tensor, queries: Tensor | None) -> Tensor:
        """The heads' results, [rows, hidden].

        Args:
            states: [rows, 3 * hidden] queries, keys and values of all tokens, with what rows follow them; if `queries`
                are given, [rows, 2 * hidden] keys and values.
            queries: One per sequence, [at least n, hidden], or None for those of all tokens.
        """
        rows = (states if queries is None else queries).shape[0]
        if self.more:
            states = with_zeros(states, self.more)
        wide = states.shape[1]
        kinds = 3 if queries is None else 2
        hidden = wide // kinds
        width = hidden // self.heads
        results = []
        for group in self.groups:
            shape = group.count, group.length, kinds, self.heads, width
            if group.padded is None:
                strides = group.equal * wide, wide, hidden, width, 1
                own = states.as_strided(shape, strides, group.tokens.start * wide)
            else:
                own = states.index_select(0, group.padded).view(shape)
            parts = own.permute(2, 0, 3, 1, 4).unbind()
            query = parts[0]
            if queries is not None:
                query = queries[group.sequences].view(group.count, 1, self.heads, width).transpose(1, 2)
            result = self.attend(query, parts[-2], parts[-1], group)
            if queries is None and group.real is not None:
                results.append(result.view(-1, hidden).index_select(0, group.real))
            elif queries is None and group.equal != group.length and len(self.groups) * group.count > 1:
                results.append(result[:, : group.equal].reshape(-1, hidden))
            else:
                results.append(result.view(-1, hidden))
        context = results[0] if len(results) == 1 else torch.cat(results)
        # A sequence alone brings rows of padding, too: what is behind the last token only has to be numbers.
        more = rows - context.shape[0]
        return context[:rows] if more <= 0 else with_zeros(context, more)


class TorchAttention(Attention):
    """torch's own kernel; the fastest with AMX, and for a short sequence alone everywhere, as it is one call.

    It takes up to twice as long where the last 16 keys are not full, and makes zeros of fewer than 16 that are NaN, so
    there are always as many.
    """

    @staticmethod
    def query_factor(width: int) -> float:
        """See `Attention`."""
        return 1.0

    @staticmethod
    def padded(length: int) -> int:
        """See `Attention`."""
        return -(-length // 16) * 16

    def attend(self, query: Tensor, key: Tensor, value: Tensor, group: Group) -> Tensor:
        """See `Attention`."""
        shape = query.shape[2], group.length, self.heads, query.shape[3]
        with threads_of(_safe_threads(shape, group.mask is not None, query.dtype)):
            result = scaled_dot_product_attention(query, key, value, attn_mask=group.addend, scale=self.scale)
        return result.transpose(1, 2)


#: Threads of an attention call: with more, its work is cut by how many sequences there are.
_MOST_THREADS: Final = 8
_threads: dict[tuple[tuple[int, int, int, int], bool, torch.dtype, int], int] = {}
_threads_lock = threading.Lock()


def _safe_threads(shape: tuple[int, int, int, int], masked: bool, dtype: torch.dtype) -> int:
    """Threads that give attention of a shape the bits that one gives: those of the caller if they do, else one.

    In float32 its products are MKL's, which chooses its way by the number of threads, too, and on some CPUs by where in
    memory the scores of a thread begin: with an odd number of queries each thread's begin elsewhere.

    Args:
        shape: Queries and keys of a sequence, heads, and width of a head.
        masked: Whether there is a mask.
        dtype: Type of the states.
    """
    case = shape, masked, dtype, min(_MOST_THREADS, torch.get_num_threads())
    if case[-1] == 1:
        return 1
    try:
        return _threads[case]
    except KeyError:
        with _threads_lock:
            queries, length, heads, width = shape
            draw = torch.Generator().manual_seed(0)
            # As many sequences as give each thread at least two heads.
            shared = -(-2 * case[-1] // heads), heads
            query = torch.randn(*shared, queries, width, generator=draw).to(dtype)
            key, value = torch.randn(2, *shared, length, width, generator=draw).to(dtype)
            mask = (torch.arange(length) < length - 1)[None, None, None, :] if masked else None
            results = []
            for threads in (1, case[-1]):
                with threads_of(threads):
                    results.append(scaled_dot_product_attention(query, key, value, attn_mask=mask))
            return _threads.setdefault(case, case[-1] if torch.equal(*results) else 1)


class OwnAttention(Attention):
    """Batched products with a softmax of two passes; the fastest where torch's kernel has no matrix unit to use.

    For bfloat16: batched products in float32 are MKL's, which sums them up by how many there are.
    """

    #: Its queries bring the rest: scores are in units of log2, so that softmax needs exp2 alone.
    scale = math.log(2)

    @staticmethod
    def query_factor(width: int) -> float:
        """See `Attention`."""
        return math.log2(math.e) / math.sqrt(width)

    @staticmethod
    def padded(length: int) -> int:
        """See `Attention`; a multiple of 8 fills the vectors of the CPU."""
        step = 8 if length <= 64 else 16 if length <= 256 else 32
        return -(-length // step) * step

    def attend(self, query: Tensor, key: Tensor, value: Tensor, group: Group) -> Tensor:
        """See `Attention`."""
        out = query.new_empty(group.count, query.shape[2], self.heads, query.shape[3])
        attend(query, key, value, group.share, group.own, out)
        return out


class ShortAttention(TorchAttention):
    """torch's kernel for queries that were made for `OwnAttention`."""

    scale = OwnAttention.scale


#: Attention scores computed at once: they are read three times, so they should stay in the cache.
_SCORES: Final = 1 << 20
#: Between these, a softmax denominator taken without subtracting the row's maximum has lost nothing.
_SMALLEST, _LARGEST = 1e-25, 1e25


def attend(query: Tensor, key: Tensor, value: Tensor, share: Tensor | None, own: Tensor, out: Tensor) -> None:
    """softmax(query key^T) value of each head, with scores in units of log2.

    Args:
        query: [n, heads, q, d].
        key: [n, heads, L, d].
        value: [n, heads, L, d].
        share: [n, 1, L, 1] one for tokens and zero for padding, None without padding.
        own: [n, 1, 1, 1] tokens of each sequence.
        out: [n, q, heads, d], written with the results.
    """
    n, heads, length, width = key.shape
    queries = query.reshape(n * heads, -1, width)
    # Softmax does not see a constant added to a row of scores, so the keys' mean may go: what is left is
    # smaller, hence finer in bfloat16, and exp2 needs no pass to find and subtract the row's maximum.
    known = key if share is None else torch.mul(key, share, out=key.new_empty(key.shape))
    mean = known.sum(2, keepdim=True).div_(own)
    keys = torch.sub(key, mean, out=key.new_empty(key.shape)).view(n * heads, length, width)
    # A column of ones behind the values sums the weights up. Padding adds nothing to either sum: it is zero in both.
    values = value.new_empty(n, heads, length, width + 1)
    if share is None:
        values[..., :width], values[..., width:] = value, 1
    else:
        torch.mul(value, share, out=values[..., :width])
        values[..., width:] = share
    values = values.view(n * heads, length, width + 1)
    sums = queries.new_empty(n * heads, queries.shape[1], width + 1)
    for part in _parts(n, heads, max(1, _SCORES // (length * queries.shape[1]))):
        weights = torch.bmm(queries[part], keys[part].transpose(1, 2)).exp2_()
        torch.bmm(weights, values[part], out=sums[part])
    totals = sums[..., width:]
    smallest, largest = (bound.item() for bound in torch.aminmax(totals))
    divided, by = sums.view(n, heads, -1, width + 1).transpose(1, 2).split([width, 1], 3)
    torch.div(divided, by, out=out)
    if not (smallest > _SMALLEST and largest < _LARGEST):
        # Scores of hundreds, which trained encoders do not have; NaN comes here too, and stays NaN.
        held = ((totals > _SMALLEST) & (totals < _LARGEST)).view(n, -1).all(1)
        for row in (~held).nonzero()[:, 0].tolist():
            one = slice(row, row + 1)
            valid = None if share is None else share[one].transpose(2, 3).bool()
            exact = scaled_dot_product_attention(query[one], key[one], value[one], attn_mask=valid, scale=math.log(2))
            out[one] = exact.transpose(1, 2)


def _parts(sequences: int, heads: int, most: int) -> Iterator[slice]:
    """Cut the heads of all sequences into parts of at most `most`: whole sequences, or heads where one has more.

    There are as many as the largest power of two, so that few shapes occur (see `round_up`).
    """
    count, step = (sequences, heads) if heads <= most else (sequences * heads, 1)
    start = 0
    while start < count:
        stop = start + (1 << (min(count - start, most // step).bit_length() - 1))
        yield slice(start * step, stop * step)
        start = stop
