"""Attention of a packed batch on a CPU, for each sequence as if it were alone: torch's kernel, or batched products.

Both take states of all tokens and give the heads' results, and both compute a sequence in shapes that its own length
decides, so its bits do not depend on its company.
"""

from __future__ import annotations

import abc
import itertools
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .cpu_products import threads_of, with_zeros


class Attention(abc.ABC):
    """The attention of one batch, whose sequences lie end to end by ascending length."""

    @abc.abstractmethod
    def __init__(self, lengths: list[int], heads: int, dtype: torch.dtype) -> None:
        """Lay the batch out.

        Args:
            lengths: Tokens of each sequence, ascending.
            heads: Heads of the model.
            dtype: Type of the states.
        """

    @staticmethod
    @abc.abstractmethod
    def query_factor(width: int) -> float:
        """What the queries of heads of this width are to be multiplied by; the model's weights bring it."""

    @abc.abstractmethod
    def __call__(self, states: Tensor, queries: Tensor | None) -> Tensor:
        """The heads' results, [rows, hidden].

        Args:
            states: [rows, 3 * hidden] queries, keys and values of all tokens, with what rows follow them; if `queries`
                are given, [rows, 2 * hidden] keys and values.
            queries: One a sequence, [at least n, hidden], or None for those of all tokens.
        """


class TorchAttention(Attention):
    """torch's own kernel, once for all sequences of equal length; the fastest with AMX."""

    def __init__(self, lengths: list[int], heads: int, dtype: torch.dtype) -> None:
        """See `Attention`."""
        self.heads, self.dtype = heads, dtype
        #: Sequences of each length, and the length.
        self.runs = [(len(list(same)), length) for length, same in itertools.groupby(lengths)]

    @staticmethod
    def query_factor(width: int) -> float:
        """See `Attention`."""
        return 1.0

    def __call__(self, states: Tensor, queries: Tensor | None) -> Tensor:
        """See `Attention`."""
        kinds = 3 if queries is None else 2
        hidden = states.shape[1] // kinds
        width = hidden // self.heads
        results, row, first = [], 0, 0
        for count, length in self.runs:
            tokens = states[row : row + count * length].view(count, length, kinds, self.heads, width)
            parts = tokens.permute(2, 0, 3, 1, 4).unbind()
            query = parts[0]
            if queries is not None:
                query = queries[first : first + count].view(count, 1, self.heads, width).transpose(1, 2)
            with threads_of(_safe_threads(length, self.heads, width, self.dtype)):
                result = scaled_dot_product_attention(query, parts[-2], parts[-1])
            results.append(result.transpose(1, 2).reshape(-1, hidden))
            row, first = row + count * length, first + count
        rest = len(states) - row if queries is None else len(queries) - first
        context = results[0] if len(results) == 1 else torch.cat(results)
        return with_zeros(context, rest) if rest else context


#: Threads of an attention call: with more, its work is cut by how many sequences there are.
_MOST_THREADS: Final = 8
_threads: dict[tuple[int, int, int, torch.dtype, int], int] = {}
_threads_lock = threading.Lock()


def _safe_threads(length: int, heads: int, width: int, dtype: torch.dtype) -> int:
    """Threads that give attention of a length the bits that one gives: those of the caller if they do, else one.

    In float32 its products are MKL's, which chooses its way by the number of threads, too.
    """
    key = length, heads, width, dtype, min(_MOST_THREADS, torch.get_num_threads())
    if key[-1] == 1:
        return 1
    try:
        return _threads[key]
    except KeyError:
        with _threads_lock:
            states = torch.randn(3, 1, heads, length, width, generator=torch.Generator().manual_seed(0)).to(dtype)
            results = []
            for threads in (1, key[-1]):
                with threads_of(threads):
                    results.append(scaled_dot_product_attention(*states))
            return _threads.setdefault(key, key[-1] if torch.equal(*results) else 1)


@dataclass(frozen=True, eq=False)
class _Group:
    """Neighbouring sequences that share their products, because their lengths are rounded up to the same.

    Attributes:
        count: How many sequences.
        sequences: Which ones, of the sorted batch.
        tokens: Their rows in the packed batch.
        length: Keys of each of them, padding included.
        own: [n, 1, 1, 1] tokens of each, in the compute dtype.
        padded: [n * length] the row of each token, with a sequence's last token as its padding; None without padding.
        real: [tokens] where the real tokens are in `padded`.
        mask: [n, length] 1 for real tokens and 0 for padding, in the compute dtype; None without padding.
    """

    count: int
    sequences: slice
    tokens: slice
    length: int
    own: Tensor
    padded: Tensor | None
    real: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, lengths: list[int], first: int, start: int, dtype: torch.dtype) -> _Group:
        """The group of sequences `first` and following, whose tokens begin at row `start`."""
        own, length = torch.tensor(lengths), _padded_length(lengths[-1])
        ends = own.cumsum(0) + start
        places = len(lengths), slice(first, first + len(lengths)), slice(start, int(ends[-1])), length
        share = own.to(dtype)[:, None, None, None]
        if lengths[0] == length:
            return cls(*places, share, None, None, None)
        column = torch.arange(length)
        valid = column < own[:, None]
        padded = torch.minimum((ends - own)[:, None] + column, ends[:, None] - 1)
        return cls(*places, share, padded.flatten(), valid.flatten().nonzero()[:, 0], valid.to(dtype))


def _padded_length(length: int) -> int:
    """The next of the few lengths that attention is computed in; a multiple of 8 fills the vectors of the CPU."""
    step = 8 if length <= 64 else 16 if length <= 256 else 32
    return -(-length // step) * step


class OwnAttention(Attention):
    """Batched products with a softmax of two passes, once for all sequences of about equal length.

    The fastest where torch's kernel has no matrix unit to use.
    """

    def __init__(self, lengths: list[int], heads: int, dtype: torch.dtype) -> None:
        """See `Attention`."""
        self.heads = heads
        self.groups: list[_Group] = []
        first = start = 0
        for _, same in itertools.groupby(lengths, _padded_length):
            run = list(same)
            self.groups.append(_Group.of(run, first, start, dtype))
            first, start = first + len(run), start + sum(run)

    @staticmethod
    def query_factor(width: int) -> float:
        """See `Attention`: scores come out in units of log2, so that softmax needs exp2 alone."""
        return math.log2(math.e) / math.sqrt(width)

    def __call__(self, states: Tensor, queries: Tensor | None) -> Tensor:
        """See `Attention`."""
        kinds = 3 if queries is None else 2
        hidden = states.shape[1] // kinds
        width = hidden // self.heads
        context = states.new_zeros(len(states if queries is None else queries), hidden)
        for group in self.groups:
            n = group.count
            own = states[group.tokens] if group.padded is None else states.index_select(0, group.padded)
            parts = own.view(n, group.length, kinds, self.heads, width).permute(2, 0, 3, 1, 4)
            if queries is not None:
                query = queries[group.sequences].view(n, 1, self.heads, width).transpose(1, 2)
                out = context[group.sequences].view(n, 1, self.heads, width)
                attend(query, parts[0], parts[1], group.mask, group.own, out)
            elif group.real is None:
                out = context[group.tokens].view(n, group.length, self.heads, width)
                attend(parts[0], parts[1], parts[2], None, group.own, out)
            else:
                out = context.new_empty(n, group.length, self.heads, width)
                attend(parts[0], parts[1], parts[2], group.mask, group.own, out)
                torch.index_select(out.view(-1, hidden), 0, group.real, out=context[group.tokens])
        return context


#: Attention scores computed at once: they are read three times, so they should stay in the cache.
_SCORES: Final = 1 << 20
#: Between these, a softmax denominator taken without subtracting the row's maximum has lost nothing.
_SMALLEST, _LARGEST = 1e-25, 1e25


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, own: Tensor, out: Tensor) -> None:
    """softmax(query key^T) value of each head, with scores in units of log2.

    Args:
        query: [n, heads, q, d].
        key: [n, heads, L, d].
        value: [n, heads, L, d].
        mask: [n, L] 1 for tokens and 0 for padding, None without padding.
        own: [n, 1, 1, 1] tokens of each sequence.
        out: [n, q, heads, d], written with the results.
    """
    n, heads, length, width = key.shape
    queries = query.reshape(n * heads, -1, width)
    share = None if mask is None else mask[:, None, :, None]
    # Softmax does not see a constant added to a row of scores, so the keys' mean may go: what is left is
    # smaller, hence finer in bfloat16, and exp2 needs no pass to find and subtract the row's maximum.
    known = key if share is None else torch.mul(key, share, out=key.new_empty(key.shape))
    mean = known.sum(2, keepdim=True).div_(own)
    keys = torch.sub(key, mean, out=key.new_empty(key.shape)).view(n * heads, length, width)
    if share is None:
        values, ones = value.reshape(keys.shape), keys.new_ones(n * heads, length, 1)
    else:
        # Padding adds nothing to either sum once its values and its share of the denominator are zero.
        values = torch.mul(value, share, out=value.new_empty(value.shape)).view(keys.shape)
        ones = share.expand(n, heads, length, 1).reshape(n * heads, length, 1)
    sums, totals = torch.empty_like(queries), queries.new_empty(n * heads, queries.shape[1], 1)
    for part in _powers_of_two(n * heads, max(1, _SCORES // (length * queries.shape[1]))):
        weights = torch.bmm(queries[part], keys[part].transpose(1, 2)).exp2_()
        torch.bmm(weights, values[part], out=sums[part])
        torch.bmm(weights, ones[part], out=totals[part])
    smallest, largest = torch.aminmax(totals)
    torch.div(sums.view(query.shape).transpose(1, 2), totals.view(n, heads, -1, 1).transpose(1, 2), out=out)
    if not (smallest > _SMALLEST and largest < _LARGEST):
        # Scores of hundreds, which trained encoders do not have; NaN comes here too, and stays NaN.
        held = ((totals > _SMALLEST) & (totals < _LARGEST)).view(n, -1).all(1)
        for row in (~held).nonzero()[:, 0].tolist():
            valid = None if mask is None else mask[row, None, None, None, :].bool()
            one = slice(row, row + 1)
            exact = scaled_dot_product_attention(query[one], key[one], value[one], attn_mask=valid, scale=math.log(2))
            out[one] = exact.transpose(1, 2)


def _powers_of_two(count: int, most: int) -> Iterator[slice]:
    """Cut `count` into the largest powers of two up to `most`, so that few shapes occur (see `round_up`)."""
    start = 0
    while start < count:
        stop = start + (1 << (min(count - start, most).bit_length() - 1))
        yield slice(start, stop)
        start = stop
