"""CPU inference of BERT-family encoders: packed tokens, oneDNN-fused layers, attention without padding work.

Only the arithmetic of a published model (`BertModel` and its relatives) is kept. What makes it fast:
- linear layers see real tokens only, prepacked weights, GELU and the residual sum in the same pass;
- attention is batched products over sequences of nearly equal length, with a softmax of two passes (`attend`);
- pooling that reads one token of a text leaves out the other tokens of the last layer (`select`).

At the end: how long runs give the memory back that their batches leave behind in the C library's heap.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm, pad, relu, scaled_dot_product_attention

from ..errors import ArgumentError
from .packing import roberta_positions
from .stored_bert import StoredBert, StoredLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .pooling import Select

#: Published classes with the post-norm BERT layer, and whether their positions start at the padding id.
_CLASSES: Final = {"BertModel": False, "RobertaModel": True, "XLMRobertaModel": True, "CamembertModel": True}
#: `config.hidden_act` -> the epilogue that oneDNN computes with the product, its algorithm, and the function itself.
_ACTIVATIONS: Final[dict[str, tuple[str, str, Callable[[Tensor], Tensor]]]] = {
    "gelu": ("gelu", "none", gelu),
    "gelu_new": ("gelu", "tanh", partial(gelu, approximate="tanh")),
    "gelu_pytorch_tanh": ("gelu", "tanh", partial(gelu, approximate="tanh")),
    "relu": ("relu", "", relu),
}
#: Tokens that a batch should have.
TOKEN_BUDGET: Final = 2048
#: Rows that go through a feed-forward network, or 8-bit layers, at a time: what lies between stays in the core's cache.
_BLOCK: Final = 256
#: Tokens from which on sequences of equal length get attention calls of their own.
_RUN: Final = 256


def can_fuse(model: PreTrainedModel | StoredBert) -> bool:
    """Whether `FusedEncoder` computes exactly what this model computes."""
    config = model.config
    return (
        _class_of(model) in _CLASSES
        and torch.backends.mkldnn.is_available()
        and config.hidden_act in _ACTIVATIONS
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not getattr(config, "is_decoder", False)
        and all(type(module) in (nn.Linear, StoredLinear) for module in _linears(model))
    )


def _class_of(model: PreTrainedModel | StoredBert) -> str:
    """Name of the published class that a model is, "" for a class of anybody else's."""
    if isinstance(model, StoredBert):
        return model.published
    kind = type(model)
    return kind.__name__ if kind.__module__.startswith("transformers.models.") else ""


def _linears(model: Any) -> Iterator[Any]:
    """The linear modules of all layers; an adapter in the place of one of them cannot be fused."""
    for layer in model.encoder.layer:
        attention = layer.attention
        yield from (attention.self.query, attention.self.key, attention.self.value, attention.output.dense)
        yield from (layer.intermediate.dense, layer.output.dense)


class _Linear:
    """A prepacked linear layer, with what oneDNN applies to its result before writing it."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: str | None = None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), _BLOCK)
        self.bias = bias.to(dtype).contiguous()
        self.activation, self.algorithm = ("none", "") if activation is None else _ACTIVATIONS[activation][:2]

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], self.algorithm)
        return y

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's result plus `other`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")
        return y


class Norm:
    """Layer normalisation with float32 parameters and statistics, whatever the dtype of its input."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias, self.eps = norm.weight.detach().float(), norm.bias.detach().float(), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, hidden] in the dtype of x."""
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Layer:
    """One transformer layer but for its attention: the projections before it and all that follows."""

    def __init__(self, layer: Any, qkv: _Linear | Int8Projection, pack: Callable[..., Any], activation: str) -> None:
        """Copy a layer of the model, whose linear parts `pack` makes ready for the dtype."""
        self.qkv = qkv
        self.output, self.output_norm = pack(layer.attention.output.dense), Norm(layer.attention.output.LayerNorm)
        self.up = pack(layer.intermediate.dense, activation)
        self.down, self.down_norm = pack(layer.output.dense), Norm(layer.output.LayerNorm)

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        """The layer's output for its input and the heads' results, all [rows, hidden]."""
        result = torch.empty_like(x)
        for start in range(0, len(x), _BLOCK):
            rows = slice(start, start + _BLOCK)
            y = self.output_norm(self.output.plus(context[rows], x[rows]))
            result[rows] = self.down_norm(self.down.plus(self.up(y), y))
        return result


def _round_up(count: int) -> int:
    """The next of the few sizes that matrices come in.

    oneDNN compiles and keeps a kernel for each new shape (here 0.2 to 0.7 ms and 0.6 to 0.9 MB, up to 1,024 of
    them), which would cost every batch of a new size time, and the process its memory.
    """
    step = 8 if count <= 64 else 16 if count <= 256 else 32
    return -(-count // step) * step


@dataclass(frozen=True, eq=False)
class _LengthGroup:
    """Neighbouring sequences that share their attention products, as if all had `length` tokens.

    Attributes:
        count: How many sequences.
        sequences: Which ones, of the sorted batch.
        tokens: Their rows in the packed batch.
        length: Keys of each of them, padding included.
        own: Tokens of each, if all have equally many (what follows a sequence is then its padding), else 0.
        padded: [n * length] otherwise: the row of each token, with a sequence's last token as its padding.
        real: [tokens] where the real tokens are in `padded`.
        mask: [n or 1, length] 1 for real tokens and 0 for padding, in the compute dtype; None without padding.
    """

    count: int
    sequences: slice
    tokens: slice
    length: int
    own: int
    padded: Tensor | None
    real: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, lengths: list[int], first: int, start: int, rows: int, dtype: torch.dtype) -> _LengthGroup:
        """The group of sequences `first` and following, whose tokens begin at row `start` of `rows`."""
        own, length = torch.tensor(lengths), _round_up(lengths[-1])
        ends = own.cumsum(0) + start
        places = len(lengths), slice(first, first + len(lengths)), slice(start, int(ends[-1]))
        column = torch.arange(length)
        if lengths[0] == lengths[-1] and places[2].stop + length - lengths[-1] <= rows:
            mask = (column < own[:1]).to(dtype)[None] if length > lengths[-1] else None
            return cls(*places, length, lengths[-1], None, None, mask)
        valid = column < own[:, None]
        padded = torch.minimum((ends - own)[:, None] + column, ends[:, None] - 1)
        return cls(*places, length, 0, padded.flatten(), valid.flatten().nonzero()[:, 0], valid.to(dtype))


def _length_groups(lengths: list[int], rows: int, dtype: torch.dtype) -> list[_LengthGroup]:
    """Groups of ascending lengths: equal ones where they are many, else those of the same rounded length."""
    runs: list[list[int]] = []
    for length, same in itertools.groupby(lengths):
        run = list(same)
        few = max(sum(run), sum(runs[-1]) if runs else _RUN) < _RUN
        if few and _round_up(length) == _round_up(runs[-1][-1]):
            runs[-1] += run
        else:
            runs.append(run)
    groups, first, start = [], 0, 0
    for run in runs:
        groups.append(_LengthGroup.of(run, first, start, rows, dtype))
        first, start = first + len(run), start + sum(run)
    return groups


class FusedEncoder:
    """Inference-only copy of a BERT-family encoder for CPUs.

    A call leaves no state behind, so several threads may call it at once. What else is in a batch changes a
    sequence's result by rounding only.
    """

    def __init__(self, model: PreTrainedModel | StoredBert, dtype: torch.dtype | Literal["int8"]) -> None:
        """Copy the weights of `model`, which is left as it is. The table of words is no copy: rows of it are read.

        Args:
            model: A model for which `can_fuse` is true.
            dtype: torch.float32, torch.bfloat16 or "int8" (CPUs with VNNI); embeddings and all norms compute in
                float32 whatever it is.

        Raises:
            ArgumentError: the model or the dtype is not supported.
        """
        if not can_fuse(model):
            raise ArgumentError(f"{_class_of(model) or type(model).__name__} cannot be fused: ask can_fuse first")
        if dtype not in (torch.float32, torch.bfloat16, "int8"):
            raise ArgumentError(f"dtype {dtype} is not supported: torch.float32, torch.bfloat16 or 'int8'")
        if dtype == "int8" and not has_fast_int8():
            raise ArgumentError("dtype='int8' needs a CPU with VNNI: use dtype='bfloat16' or 'float32'")
        source: Any = model
        config, embeddings = source.config, source.embeddings
        self.heads: int = config.num_attention_heads
        self.int8 = dtype == "int8"
        half = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        #: What attention computes in, and what goes from layer to layer.
        self.dtype: torch.dtype = dtype if isinstance(dtype, torch.dtype) else half
        self.state_dtype: torch.dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
        with torch.no_grad():
            #: [vocabulary, hidden] as it is stored: most of a small model, of which a text reads a few rows.
            self.words = embeddings.word_embeddings.weight.detach()
            #: Id of the padding token where that has a position of its own, the first, and other tokens follow.
            self.padding: int | None = (config.pad_token_id or 0) if _CLASSES[_class_of(model)] else None
            # Most tokens are of the first segment, so its embedding is part of every position's.
            segments = embeddings.token_type_embeddings.weight.detach().float()
            self.positions = embeddings.position_embeddings.weight.detach().float()[self.padding or 0 :] + segments[0]
            #: [types, hidden] what another segment adds to that.
            self.segments = segments - segments[0]
            self.norm = Norm(embeddings.LayerNorm)
            self.layers = []
            for layer in source.encoder.layer:
                own = layer.attention.self
                qkv = self._projection(own.query, own.key, own.value)
                self.layers.append(_Layer(layer, qkv, self._packed, config.hidden_act))
            last = source.encoder.layer[-1].attention.self
            self.last_query = self._projection(last.query)
            self.last_pair = self._projection(last.key, last.value)

    def _packed(self, linear: nn.Linear, activation: str | None = None) -> _Linear | Int8Linear:
        if self.int8:
            return Int8Linear(linear.weight, linear.bias, activation)
        return _Linear(linear.weight, linear.bias, self.dtype, activation)

    def _projection(self, *parts: nn.Linear) -> _Linear | Int8Projection:
        """Linear layers of the same input as one. A query before others or alone brings the scores' scale."""
        weights, biases = [part.weight.float() for part in parts], [part.bias.float() for part in parts]
        if len(parts) != 2:
            # Scores come out in units of log2, so that softmax needs exp2 alone.
            scale = math.log2(math.e) / math.sqrt(parts[0].out_features // self.heads)
            weights[0], biases[0] = weights[0] * scale, biases[0] * scale
        return (Int8Projection if self.int8 else _Linear)(torch.cat(weights), torch.cat(biases), self.dtype)

    def __call__(
        self, input_ids: Tensor, lengths: Sequence[int], select: Select = "all", token_types: Tensor | None = None
    ) -> Tensor:
        """Hidden states of the last layer.

        Args:
            input_ids: [T] int64, the sequences laid end to end, with their special tokens.
            lengths: Tokens of each of the n sequences, each at least 1, T in all. Any order is correct;
                few different lengths in a batch are fast.
            select: The tokens to return: all, or the first or the last one of each sequence.
            token_types: [T] int64, the segment of each token; by default all are of the first.

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
                return self._forward(input_ids, list(lengths), select, token_types)
            tokens = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in order])
            types = None if token_types is None else token_types[tokens]
            hidden = self._forward(input_ids[tokens], [lengths[i] for i in order], select, types)
            restored = torch.empty_like(hidden)
            return restored.index_copy_(0, tokens if select == "all" else torch.tensor(order), hidden)

    def _check(self, input_ids: Tensor, lengths: Sequence[int]) -> None:
        if input_ids.dim() != 1 or sum(lengths) != len(input_ids) or not lengths or min(lengths) < 1:
            raise ArgumentError(
                f"lengths of at least 1 that sum to the number of tokens are needed: {len(lengths)} lengths, "
                f"sum {sum(lengths)}, for input_ids of shape {tuple(input_ids.shape)}"
            )
        limit = len(self.positions) - (self.padding is not None)
        if max(lengths) > limit:
            raise ArgumentError(f"a sequence of {max(lengths)} tokens: this model has {limit} positions")

    def _forward(self, input_ids: Tensor, lengths: list[int], select: Select, token_types: Tensor | None) -> Tensor:
        """`__call__` for ascending lengths."""
        count, rows = len(input_ids), _round_up(len(input_ids))
        groups = _length_groups(lengths, rows, self.dtype)
        own = torch.tensor(lengths)
        ends = own.cumsum(0)
        if self.padding is None:
            place = torch.arange(count) - (ends - own).repeat_interleave(own)
        else:
            place = roberta_positions(input_ids, self.padding, ends - own, own)
        x = embedding(pad(input_ids, (0, rows - count)), self.words).float()
        x += embedding(pad(place, (0, rows - count)), self.positions)
        if token_types is not None:
            x += embedding(pad(token_types, (0, rows - count)), self.segments)
        x = self.norm(x).to(self.state_dtype)
        for layer in self.layers if select == "all" else self.layers[:-1]:
            x = layer.finish(x, self._attention(layer.qkv(x), None, groups))
        if select != "all":
            x, count = self._last(x, groups, ends - own if select == "first" else ends - 1), len(lengths)
        return x[:count].float()

    def _last(self, x: Tensor, groups: list[_LengthGroup], wanted: Tensor) -> Tensor:
        """The last layer for one `wanted` row a sequence; attention still reads the other rows."""
        wanted = pad(wanted, (0, _round_up(len(wanted)) - len(wanted)))
        chosen = x[wanted]
        context = self._attention(self.last_pair(x), self.last_query(chosen), groups)
        return self.layers[-1].finish(chosen, context)

    def _attention(self, states: Tensor, queries: Tensor | None, groups: list[_LengthGroup]) -> Tensor:
        """The heads' results, [rows, hidden].

        Args:
            states: [rows, 3 * hidden] queries, keys and values of all tokens; if `queries` are given,
                [rows, 2 * hidden] keys and values.
            queries: One a sequence, [at least n, hidden], or None for those of all tokens.
            groups: The sequences.
        """
        wide = states.shape[1]
        hidden = wide // (3 if queries is None else 2)
        width = hidden // self.heads
        context = states.new_zeros(len(states if queries is None else queries), hidden)
        for group in groups:
            n, shape = group.count, (group.count, group.length, wide // hidden, self.heads, width)
            if group.padded is not None:
                own = states.index_select(0, group.padded).view(shape)
            else:
                strides = group.own * wide, wide, hidden, width, 1
                own = states.as_strided(shape, strides, group.tokens.start * wide)
            parts = own.permute(2, 0, 3, 1, 4)
            if queries is not None:
                query = queries[group.sequences].view(n, 1, self.heads, width).transpose(1, 2)
                attend(query, parts[0], parts[1], group.mask, context[group.sequences].view(n, 1, self.heads, width))
            elif group.real is None:
                out = context[group.tokens].view(n, group.own, self.heads, width)
                attend(parts[0], parts[1], parts[2], group.mask, out)
            else:
                out = context.new_empty(n, group.length, self.heads, width)
                attend(parts[0], parts[1], parts[2], group.mask, out)
                torch.index_select(out.view(-1, hidden), 0, group.real, out=context[group.tokens])
        return context


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
    """Cut `count` into the largest powers of two up to `most`, so that few shapes occur (see `_round_up`)."""
    start = 0
    while start < count:
        stop = start + (1 << (min(count - start, most).bit_length() - 1))
        yield slice(start, stop)
        start = stop


#: Neighbouring float32 of this size are 1 apart: adding it rounds, and leaves a whole number in the lowest byte.
_WHOLE: Final = 1.5 * (1 << 23)
_ONES: Final = torch.ones(_BLOCK, 1)


def has_fast_int8() -> bool:
    """Whether this CPU multiplies 8-bit integers faster than anything else, without saturating between steps."""
    return torch.cpu._is_vnni_supported()


class _Rows:
    """Quantised activations: row r is `step[r] * whole[r] + offset[r, 0]`, with whole in 0..255."""

    def __init__(self, x: Tensor) -> None:
        """Quantise [at most _BLOCK, n] float32, each row to its own range."""
        high, low = x.amax(1, keepdim=True).clamp_(min=0), x.amin(1, keepdim=True).clamp_(max=0)
        # 254 steps leave one for the rounding of the zero point.
        self.step = high.sub_(low).div_(254).clamp_(min=1e-30)
        inverse = self.step.reciprocal()
        zero = low.mul_(inverse).round_()
        # The lowest byte of the sum is what is wanted; a conversion from float32 would take three times as long.
        self.whole = (x * inverse).add_(_WHOLE - zero).view(torch.int32).to(torch.uint8)
        self.offset = torch.cat([zero.mul_(self.step), _ONES[: len(x)]], 1)


class Int8Linear:
    """A linear layer with 8-bit weights."""

    def __init__(self, weight: Tensor, bias: Tensor, activation: str | None = None) -> None:
        weight = weight.detach().float()
        self.activation = None if activation is None else _ACTIVATIONS[activation][2]
        self.scale = (weight.abs().amax(1) / 127).clamp_(min=1e-30)
        whole = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
        self.zero = torch.zeros(len(whole), dtype=torch.long)
        # A row's product is step * (whole W) + offset * (sum of W's columns) + bias: here the last two.
        self.rest = torch.stack([self.scale * whole.sum(1), bias.detach().float()])

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, out] float32 for [at most _BLOCK rows, in] float32."""
        rows = _Rows(x)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows.whole, 1.0, 0, self.weight, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = y.mul_(rows.step).addmm_(rows.offset, self.rest)
        return y if self.activation is None else self.activation(y)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's result plus `other`, of rows in any floating type."""
        return self(x.float()).add_(other)


class Int8Projection:
    """Linear layers of the same input as one, with results for attention in `dtype`."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.linear, self.dtype = Int8Linear(weight, bias), dtype

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, out] for [rows, in] float32."""
        result = x.new_empty(len(x), len(self.linear.scale), dtype=self.dtype)
        for start in range(0, len(x), _BLOCK):
            result[start : start + _BLOCK] = self.linear(x[start : start + _BLOCK])
        return result


#: The function of glibc that returns it; None with other C libraries.
_MALLOC_TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
#: Seconds between two returns of freed memory: what they cost is then less than a two-hundredth of the whole.
_TRIM_SECONDS: Final = 5.0


class Trimmer:
    """Returns freed memory to the system every few seconds while something runs for long."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def trim(self) -> None:
        """Return it if it is time."""
        if time.monotonic() - self._last >= _TRIM_SECONDS:
            return_freed_memory()
            self._last = time.monotonic()


def return_freed_memory() -> None:
    """Have the C library give the pages it no longer needs back to the system, where it can (glibc); 20 ms.

    Batches of ever-changing sizes leave holes in its heap, which it keeps: measured with a 6-layer model, the process
    grew by 2.5 MB with every thousand texts, without end and without a single object more. With this it stays flat.
    """
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)
