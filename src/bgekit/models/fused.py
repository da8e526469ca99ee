"""CPU inference of BERT-family encoders: packed tokens, oneDNN-fused layers, attention without padding work.

Only the arithmetic of a published model is kept (`BertModel` and its relatives, post-norm); its weights are
copied once into the layout that oneDNN multiplies fastest. What makes it fast:

- linear layers see real tokens only, from prepacked weights, with GELU and the residual sum in the same pass;
- attention is batched products over sequences of nearly equal length, with a softmax of two passes (`_attend`);
- pooling that reads one token of a text leaves out the other tokens of the last layer (`select`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, scaled_dot_product_attention

from ..errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Select = Literal["all", "first", "last"]

#: Published classes with the post-norm BERT layer, and whether their positions start after the padding id.
_CLASSES: Final = {"BertModel": False, "RobertaModel": True, "XLMRobertaModel": True, "CamembertModel": True}

#: `config.hidden_act` -> the epilogue that oneDNN computes with the product, and its algorithm.
_ACTIVATIONS: Final[dict[str, tuple[str, str]]] = {
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}
_IDENTITY: Final = ("none", "")

#: Tokens that a batch should have: few enough that the activations of a layer stay near the core.
TOKEN_BUDGET: Final = 1024

#: Attention scores computed at once: they are read three times, so they should stay in the cache.
_SCORES: Final = 1 << 19

#: What one more attention call costs, in tokens of padding.
_CALL_COST: Final = 32

#: Between these, a softmax denominator taken without subtracting the row's maximum has lost nothing.
_SMALLEST, _LARGEST = 1e-25, 1e25


def recommended_streams() -> tuple[int, int]:
    """(streams, threads of each): how many batches to compute side by side on this machine."""
    return torch.get_num_threads(), 1


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether `FusedEncoder` computes exactly what this model computes."""
    kind, config = type(model), model.config
    return (
        kind.__name__ in _CLASSES
        and kind.__module__.startswith("transformers.models.")
        and torch.backends.mkldnn.is_available()
        and config.hidden_act in _ACTIVATIONS
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not config.is_decoder
        and all(type(module) is nn.Linear for module in _linears(model))
    )


def _linears(model: Any) -> Iterator[nn.Module]:
    """The linear modules of all layers; an adapter in the place of one of them cannot be fused."""
    for layer in model.encoder.layer:
        attention = layer.attention
        yield from (attention.self.query, attention.self.key, attention.self.value, attention.output.dense)
        yield from (layer.intermediate.dense, layer.output.dense)


class _Linear:
    """A prepacked linear layer, with what oneDNN applies to its result before writing it."""

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: tuple[str, str] = _IDENTITY
    ) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), TOKEN_BUDGET)
        self.bias = bias.to(dtype).contiguous()
        self.activation, self.algorithm = activation

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, self.activation, [], self.algorithm
        )
        return y

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's result plus `other`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return y


class _Norm:
    """Layer normalisation with float32 parameters and statistics, whatever the dtype of its input."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias, self.eps = norm.weight.detach().float(), norm.bias.detach().float(), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Layer:
    """The weights of one transformer layer."""

    def __init__(self, layer: Any, heads: int, dtype: torch.dtype, activation: tuple[str, str]) -> None:
        attention = layer.attention.self
        # Scores come out in units of log2, so that softmax needs exp2 alone.
        scale = math.log2(math.e) / math.sqrt(attention.query.out_features // heads)
        parts = [attention.query, attention.key, attention.value]
        weights = [part.weight.float() * (scale if part is parts[0] else 1.0) for part in parts]
        biases = [part.bias.float() * (scale if part is parts[0] else 1.0) for part in parts]
        self.query = _Linear(weights[0], biases[0], dtype)
        self.key_value = _Linear(torch.cat(weights[1:]), torch.cat(biases[1:]), dtype)
        dense = layer.attention.output.dense, layer.intermediate.dense, layer.output.dense
        self.output = _Linear(dense[0].weight, dense[0].bias, dtype)
        self.up = _Linear(dense[1].weight, dense[1].bias, dtype, activation)
        self.down = _Linear(dense[2].weight, dense[2].bias, dtype)
        self.output_norm = _Norm(layer.attention.output.LayerNorm)
        self.down_norm = _Norm(layer.output.LayerNorm)

    def feed_forward(self, x: Tensor, context: Tensor) -> Tensor:
        """All that follows attention: [T, hidden] of the layer's input and of the heads' results."""
        x = self.output_norm(self.output.plus(context, x))
        return self.down.plus(self.up(x), x)


@dataclass(frozen=True, eq=False)
class _Group:
    """Neighbouring sequences of nearly equal length, which share their attention products.

    Attributes:
        sequences: Which ones, of the sorted batch.
        tokens: Their rows in the packed batch.
        padded: [n * length] row of each token when each sequence is padded to `length` by repeating its last
            token; None if all have that length.
        real: [tokens] where the real tokens are in `padded`; None likewise.
        mask: [n, length] 1 for real tokens and 0 for padding, in the compute dtype; None likewise.
    """

    sequences: slice
    tokens: slice
    length: int
    padded: Tensor | None = None
    real: Tensor | None = None
    mask: Tensor | None = None


def _group(lengths: list[int], dtype: torch.dtype) -> list[_Group]:
    """Cut ascending lengths where one more attention call costs less than the padding it saves."""
    groups, first, start = [], 0, 0
    for i in range(1, len(lengths) + 1):
        if i < len(lengths):
            padding = (lengths[i] - lengths[i - 1]) * (i - first)
            if padding <= _CALL_COST:
                continue
        count, stop = i - first, start + sum(lengths[first:i])
        longest = lengths[i - 1]
        sequences, tokens = slice(first, i), slice(start, stop)
        if stop - start == count * longest:
            groups.append(_Group(sequences, tokens, longest))
        else:
            own = torch.tensor(lengths[first:i])[:, None]
            column = torch.arange(longest)[None, :]
            valid = column < own
            padded = start + own.cumsum(0) - own + torch.minimum(column, own - 1)
            real = valid.flatten().nonzero().squeeze(1)
            groups.append(_Group(sequences, tokens, longest, padded.flatten(), real, valid.to(dtype)))
        first, start = i, stop
    return groups


class FusedEncoder:
    """Inference-only copy of a BERT-family encoder for CPUs.

    A call leaves no state behind, so several threads may call it at once. What else is in a batch changes a
    sequence's result by rounding only.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | Literal["int8"]) -> None:
        """Copy the weights of `model`, which is left as it is.

        Args:
            model: A model for which `can_fuse` is true.
            dtype: torch.float32 or torch.bfloat16; embeddings and all norms compute in float32 in both.

        Raises:
            ArgumentError: the model or the dtype is not supported.
        """
        if not can_fuse(model):
            raise ArgumentError(f"{type(model).__name__} cannot be fused: ask can_fuse first")
        if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.bfloat16):
            raise ArgumentError(f"dtype {dtype} is not supported here: torch.float32 or torch.bfloat16")
        source: Any = model
        config, embeddings = source.config, source.embeddings
        self.dtype = dtype
        self.heads: int = config.num_attention_heads
        with torch.no_grad():
            self.words = embeddings.word_embeddings.weight.detach().float()
            first = config.pad_token_id + 1 if _CLASSES[type(model).__name__] else 0
            # There is one segment, so its embedding is part of every position's.
            segment = embeddings.token_type_embeddings.weight.detach().float()[0]
            self.positions = embeddings.position_embeddings.weight.detach().float()[first:] + segment
            self.norm = _Norm(embeddings.LayerNorm)
            activation = _ACTIVATIONS[config.hidden_act]
            self.layers = [_Layer(each, self.heads, dtype, activation) for each in source.encoder.layer]

    def __call__(self, input_ids: Tensor, lengths: Sequence[int], select: Select = "all") -> Tensor:
        """Hidden states of the last layer.

        Args:
            input_ids: [T] int64, the sequences laid end to end, with their special tokens.
            lengths: Tokens of each of the n sequences, each at least 1, T in all. Any order is correct;
                few different lengths in a batch are fast.
            select: The tokens to return: all, or the first or the last one of each sequence.

        Returns:
            [T, hidden] for `all`, else [n, hidden]; float32, in the order given.

        Raises:
            ArgumentError: the lengths do not fit the tokens or the model.
        """
        self._check(input_ids, lengths)
        with torch.inference_mode():
            starts = [end - own for end, own in zip(itertools.accumulate(lengths), lengths, strict=True)]
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            if order == list(range(len(lengths))):
                return self._forward(input_ids, list(lengths), select)
            tokens = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in order])
            hidden = self._forward(input_ids[tokens], [lengths[i] for i in order], select)
            restored = torch.empty_like(hidden)
            return restored.index_copy_(0, tokens if select == "all" else torch.tensor(order), hidden)

    def _check(self, input_ids: Tensor, lengths: Sequence[int]) -> None:
        if input_ids.dim() != 1 or sum(lengths) != len(input_ids) or not lengths or min(lengths) < 1:
            raise ArgumentError(
                f"lengths of at least 1 that sum to the number of tokens are needed: {len(lengths)} lengths, "
                f"sum {sum(lengths)}, for input_ids of shape {tuple(input_ids.shape)}"
            )
        if max(lengths) > len(self.positions):
            raise ArgumentError(f"a sequence of {max(lengths)} tokens: this model has {len(self.positions)} positions")

    def _forward(self, input_ids: Tensor, lengths: list[int], select: Select) -> Tensor:
        """`__call__` for ascending lengths."""
        groups = _group(lengths, self.dtype)
        own = torch.tensor(lengths)
        ends = own.cumsum(0)
        place = torch.arange(len(input_ids)) - (ends - own).repeat_interleave(own)
        x = embedding(input_ids, self.words)
        x += embedding(place, self.positions)
        x = self.norm(x).to(self.dtype)
        for layer in self.layers[:-1]:
            x = layer.down_norm(layer.feed_forward(x, self._attention(layer, x, x, groups)))
        # Only the wanted tokens go through the last layer; attention still reads the others.
        layer = self.layers[-1]
        wanted = x if select == "all" else x[ends - own if select == "first" else ends - 1]
        context = self._attention(layer, x, wanted, groups)
        return layer.down_norm(layer.feed_forward(wanted, context).float())

    def _attention(self, layer: _Layer, x: Tensor, wanted: Tensor, groups: list[_Group]) -> Tensor:
        """The heads' results for the `wanted` rows, [len(wanted), hidden]: all of `x` or one a sequence."""
        hidden = x.shape[1]
        query, key_value = layer.query(wanted), layer.key_value(x)
        context = torch.empty_like(query)
        one_each = wanted is not x
        for group in groups:
            n = group.sequences.stop - group.sequences.start
            rows = group.sequences if one_each else group.tokens
            kv, q = key_value[group.tokens], query[rows]
            if group.padded is not None:
                kv = key_value.index_select(0, group.padded)
                q = q if one_each else query.index_select(0, group.padded)
            k, v = kv.view(n, group.length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
            q = q.view(n, -1, self.heads, k.shape[-1]).transpose(1, 2)
            if group.real is None or one_each:
                _attend(q, k, v, group.mask, context[rows].view(n, -1, self.heads, k.shape[-1]).transpose(1, 2))
            else:
                padded = torch.empty_like(q.transpose(1,2), memory_format=torch.contiguous_format)
                _attend(q, k, v, group.mask, padded.transpose(1, 2))
                torch.index_select(padded.view(-1, hidden), 0, group.real, out=context[rows])
        return context


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor) -> None:
    """softmax(query key^T) value of each head, with scores in units of log2.

    Args:
        query: [n, heads, q, d].
        key: [n, heads, L, d].
        value: [n, heads, L, d].
        mask: [n, L] 1 for tokens and 0 for padding, None without padding.
        out: [n, heads, q, d], written.
    """
    n, heads, length, width = key.shape
    queries = query.reshape(n * heads, -1, width)
    # Softmax does not see a constant added to a row of scores, so the keys' mean may go: what is left is
    # smaller, hence finer in bfloat16, and exp2 needs no pass to find and subtract the row's maximum.
    keys = torch.sub(key, key.mean(2, keepdim=True), out=key.new_empty(key.shape)).view(n * heads, length, width)
    if mask is None:
        values = value.reshape(n * heads, length, width)
        ones = None
    else:
        # Padding adds nothing to either sum once its value and its share of the denominator are zero.
        values = torch.mul(value, mask[:, None, :, None], out=value.new_empty(value.shape)).view(keys.shape)
        ones = mask[:, None, :, None].expand(n, heads, length, 1).reshape(n * heads, length, 1)
    sums, totals = torch.empty_like(queries), queries.new_empty(n * heads, queries.shape[1], 1)
    step = max(1, _SCORES // (length * queries.shape[1]))
    for i in range(0, n * heads, step):
        part = slice(i, i + step)
        scores = torch.bmm(queries[part], keys[part].transpose(1, 2)).exp2_()
        torch.bmm(scores, values[part], out=sums[part])
        if ones is None:
            torch.sum(scores, -1, keepdim=True, out=totals[part])
        else:
            torch.bmm(scores, ones[part], out=totals[part])
    smallest, largest = torch.aminmax(totals)
    if not (smallest > _SMALLEST and largest < _LARGEST):
        # Scores far from zero, which trained encoders do not have; this also lets NaN through.
        valid = None if mask is None else mask[:, None, None, :].bool()
        exact = scaled_dot_product_attention(query, key, value, attn_mask=valid, scale=math.log(2))
        out.copy_(exact)
        return
    torch.div(sums.view(query.shape), totals.view(n, heads, -1, 1), out=out)
