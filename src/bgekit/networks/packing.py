"""Unpadded ("packed") attention: sequences of different lengths laid end to end, no padding computed.

A batch of n sequences with T tokens in all is one row of T tokens and its lengths. Linear layers and norms see
only real tokens; attention alone needs to know where sequences begin. It is registered with the attention
interface of transformers, so every architecture that uses that interface runs packed with its published code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .cpu_training import Layout, attend_by_head

#: Name under which the packed attention stands in transformers' registry.
PACKED_ATTENTION: Final = "bgekit_packed"
#: Padding allowed inside one attention call, as a share of the longest sequence of the call.
_PADDING_SHARE: Final = 0.125


@dataclass(frozen=True, eq=False)
class Packed:
    """Token sequences laid end to end.

    Attributes:
        input_ids: [T] int64.
        lengths: Tokens of each of the n sequences, each at least 1; their sum is T.
        skip: For each sequence, how many leading tokens pooling leaves out (a prompt that does not count).
        token_types: [T] int64, the segment that each token belongs to, where it is not the first for all.

    Example:
        >>> from bgekit.networks import Packed
        >>> batch = Packed.of([[101, 2003, 102], [101, 102]])
        >>> batch.lengths, batch.starts.tolist()
        ((3, 2), [0, 3])
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    skip: tuple[int, ...] | None = None
    token_types: Tensor | None = None

    @classmethod
    def of(
        cls,
        sequences: Sequence[Sequence[int]],
        skip: Sequence[int] | None = None,
        token_types: Sequence[Sequence[int]] | None = None,
    ) -> Packed:
        """Pack lists of token ids, and of their token types where there are any."""
        lengths = tuple(map(len, sequences))
        types = None if token_types is None else _flat(token_types)
        return cls(_flat(sequences), lengths, tuple(skip) if skip is not None else None, types)

    @classmethod
    def join(cls, *batches: Packed) -> Packed:
        """Several batches as one, in their order."""
        skip, types = None, None
        if any(batch.skip is not None for batch in batches):
            skip = tuple(itertools.chain.from_iterable(b.skip or (0,) * len(b.lengths) for b in batches))
        if any(batch.token_types is not None for batch in batches):
            each = [torch.zeros_like(b.input_ids) if b.token_types is None else b.token_types for b in batches]
            types = torch.cat(each)
        lengths = tuple(itertools.chain.from_iterable(batch.lengths for batch in batches))
        return cls(torch.cat([batch.input_ids for batch in batches]), lengths, skip, types)

    def take(self, positions: Sequence[int]) -> Packed:
        """Some of the sequences, in the order of their positions."""
        chosen = torch.tensor(positions, dtype=torch.long, device=self.input_ids.device)
        counts = self.lengths_tensor[chosen]
        lengths = tuple(self.lengths[position] for position in positions)
        # Token i of the result is as far from where its sequence begins there as here.
        shift = (self.starts[chosen] - (counts.cumsum(0) - counts)).repeat_interleave(counts, output_size=sum(lengths))
        tokens = torch.arange(sum(lengths), device=chosen.device) + shift
        skip = None if self.skip is None else tuple(self.skip[position] for position in positions)
        types = None if self.token_types is None else self.token_types[tokens]
        return Packed(self.input_ids[tokens], lengths, skip, types)

    def to(self, device: torch.device) -> Packed:
        """Copy the batch to another device."""
        types = None if self.token_types is None else self.token_types.to(device, non_blocking=True)
        return Packed(self.input_ids.to(device, non_blocking=True), self.lengths, self.skip, types)

    @cached_property
    def lengths_tensor(self) -> Tensor:
        """[n] int64 on the device of the tokens."""
        return torch.tensor(self.lengths, dtype=torch.long, device=self.input_ids.device)

    @cached_property
    def starts(self) -> Tensor:
        """[n] int64: where each sequence begins."""
        return self.lengths_tensor.cumsum(0) - self.lengths_tensor

    @cached_property
    def cumulative(self) -> Tensor:
        """[n + 1] int32: boundaries of the sequences, as varlen kernels want them."""
        return nn.functional.pad(self.lengths_tensor.cumsum(0), (1, 0)).to(torch.int32)

    @cached_property
    def positions(self) -> Tensor:
        """[T] int64: position of each token in its own sequence, from 0."""
        total = torch.arange(self.input_ids.numel(), device=self.input_ids.device)
        return total - self.starts.repeat_interleave(self.lengths_tensor, output_size=self.input_ids.numel())

    def positions_for(self, padding: int | None) -> Tensor:
        """[T] int64: the position that a model looks up for each token.

        Args:
            padding: None for a model that counts tokens from 0. One of RoBERTa's kind, whose padding token has this
                id, counts from `padding + 1` and leaves padding tokens out, which a text that spells one can hold:
                they have the position `padding`.
        """
        if padding is None:
            return self.positions
        return roberta_positions(self.input_ids, padding, self.starts, self.lengths_tensor) + padding

    @cached_property
    def groups(self) -> list[PaddedGroup]:
        """Sequences of nearly equal length, which share one attention call."""
        device = self.input_ids.device
        starts = [0, *itertools.accumulate(self.lengths)]
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        groups = []
        while order:
            longest = self.lengths[order[0]]
            count = sum(1 for i in order if self.lengths[i] >= longest * (1 - _PADDING_SHARE))
            members, order = order[:count], order[count:]
            lengths = torch.tensor([self.lengths[i] for i in members])
            column = torch.arange(longest)
            valid = column[None, :] < lengths[:, None]
            first = torch.tensor([starts[i] for i in members])
            index = first[:, None] + torch.minimum(column[None, :], lengths[:, None] - 1)
            keep = valid.flatten().nonzero().squeeze(1)
            groups.append(
                PaddedGroup(
                    index.to(device),
                    None if bool(valid.all()) else valid.to(device),
                    keep.to(device),
                    index.flatten()[keep].to(device),
                )
            )
        return groups

    def layout(self, heads: int) -> Layout:
        """The batch head by head, as training on the CPU wants it."""
        if heads not in self._layouts:
            self._layouts[heads] = Layout.of(self.lengths, heads)
        return self._layouts[heads]

    @cached_property
    def _layouts(self) -> dict[int, Layout]:
        return {}


def _flat(sequences: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(list(itertools.chain.from_iterable(sequences)), dtype=torch.long)


def roberta_positions(input_ids: Tensor, padding: int, starts: Tensor, lengths: Tensor) -> Tensor:
    """[T] int64: 1, 2, ... for the tokens of each sequence that are not padding, 0 for those that are.

    Args:
        input_ids: [T] int64, sequences laid end to end.
        padding: Id of the padding token.
        starts: [n] int64, where each sequence begins.
        lengths: [n] int64, their tokens.
    """
    real = (input_ids != padding).long()
    total = real.cumsum(0)
    before = (total - real)[starts]
    return (total - before.repeat_interleave(lengths, output_size=len(input_ids))) * real


@dataclass(frozen=True, eq=False)
class PaddedGroup:
    """Sequences of one attention call.

    `index` is [n, L]: the row of each token, padding included (it points at a real row and is masked as key).
    """

    index: Tensor
    valid: Tensor | None  # [n, L] bool, None when no sequence is padded
    keep: Tensor  # positions of real tokens in the flattened [n * L]
    rows: Tensor  # their rows in the packed batch


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Packed,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside each sequence of a packed batch, with the signature transformers calls.

    Args:
        module: The attention layer; its `is_causal` decides the direction.
        query: [1, heads, T, d]; key and value may have fewer heads (grouped-query attention).
        key: [1, key heads, T, d].
        value: [1, key heads, T, d].
        attention_mask: Not used: a packed batch has no padding.
        packed: The batch; the caller of the model passes it as a keyword argument.
        dropout: Probability of dropping an attention weight.
        scaling: Factor on the scores, 1/sqrt(d) by default.
        sliding_window: Keys further than `sliding_window - 1` tokens away are not seen.
        kwargs: What other attention functions need.

    Returns:
        [1, T, heads, d], and None for the attention weights.
    """
    causal = bool(getattr(module, "is_causal", False))
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and dropout == 0.0 and (varlen := _varlen_attention()) is not None:
        reach = -1 if sliding_window is None else sliding_window - 1
        longest = max(packed.lengths)
        q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        boundaries, window = packed.cumulative, (reach, 0 if causal else reach)
        result: Any = varlen(
            q, k, v, boundaries, boundaries, longest, longest,
            scale=scaling, window_size=window, enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        return result.unsqueeze(0), None
    rows = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]  # [T, heads, d]
    plain = not causal and sliding_window is None and query.shape == key.shape == value.shape
    # Without dropout torch's own kernel is quicker in float32.
    ours = module.training and (dropout > 0 or query.dtype != torch.float32)
    if ours and plain and query.device.type == "cpu":
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layout = packed.layout(query.shape[1])
        return attend_by_head(rows[0], rows[1], rows[2], layout, scale, dropout).unsqueeze(0), None
    outputs, positions = [], []
    for group in packed.groups:
        q, k, v = (tensor[group.index].transpose(1, 2) for tensor in rows)  # [n, heads, L, d]
        mask = _mask(group, causal, sliding_window)
        result = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling,
            is_causal=causal and mask is None, enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
        outputs.append(result.transpose(1, 2).flatten(0, 1)[group.keep])
        positions.append(group.rows)
    # Every row is written exactly once, so gathering by the inverse order is the scatter, and differentiable.
    inverse = torch.cat(positions).argsort()
    return torch.cat(outputs)[inverse].unsqueeze(0), None


def _mask(group: PaddedGroup, causal: bool, sliding_window: int | None) -> Tensor | None:
    length = group.index.shape[1]
    mask = None if group.valid is None else group.valid[:, None, None, :]
    if sliding_window is not None and length > sliding_window:
        column = torch.arange(length, device=group.index.device)
        near = (column[:, None] - column[None, :]).abs() < sliding_window
        mask = near if mask is None else mask & near
    if causal and mask is not None:
        mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return mask


@lru_cache(maxsize=1)
def _varlen_attention() -> Callable[..., Any] | None:
    """The attention that torch has for this layout; imported when a GPU needs it, as it brings torch._dynamo."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    return varlen_attn


def register() -> None:
    """Make the packed attention known to transformers; calling it again does nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_ATTENTION, packed_attention)


def plan_batches(
    lengths: Sequence[int], token_budget: int, *, batch_size: int | None = None, padded: bool = False, streams: int = 1
) -> Iterator[list[int]]:
    """Positions of the sequences of each batch, longest sequences first.

    Longest first, because a budget that is too large for the device shows at the first batch, and because
    neighbours in length waste least in attention.

    Args:
        lengths: Tokens of each sequence.
        token_budget: Maximum number of tokens per batch; a longer sequence stands alone.
        batch_size: Maximum number of sequences per batch.
        padded: Count a batch as its longest sequence times its size, as architectures that pad compute it.
        streams: Batches that are computed at once. Several get as many batches as keep all of them busy to the end,
            of equally many tokens give or take half a sequence, by which one may be over the budget.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    total = sum(lengths)
    share = total / (streams * -(-total // (streams * token_budget))) if streams > 1 and total else math.inf
    limit = token_budget if streams == 1 or padded else math.inf
    batch: list[int] = []
    tokens = planned = 0
    end = share
    for position in order:
        own = lengths[position]
        cost = lengths[batch[0]] if batch and padded else own
        if batch and (tokens + cost > limit or len(batch) == batch_size or planned + own / 2 > end):
            yield batch
            batch, tokens, cost = [], 0, own
            end = share * (round(planned / share) + 1)
        batch.append(position)
        tokens += cost
        planned += own
    if batch:
        yield batch
