"""CPU inference of BERT-family encoders: packed tokens, oneDNN-fused layers, attention without padding work.

Only the arithmetic of a published model (`BertModel` and its relatives) is kept. What makes it fast:
- linear layers see real tokens only, prepacked weights, GELU and the residual sum in the same pass (`cpu_products.py`);
- attention is computed for sequences of equal length at once (`cpu_attention.py`);
- pooling that reads one token of a text leaves out the other tokens of the last layer (`select`).

What a sequence's result is, to the last bit, depends on its own tokens alone: each step reads one row, or one sequence
by itself. Which kernels that takes is written down by the kind of CPU (`Kernels`); time never decides it.

At the end: how long runs give the memory back that their batches leave behind in the C library's heap.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, pad

from ..errors import ArgumentError
from .cpu_attention import Attention, OwnAttention, ShortAttention, TorchAttention
from .cpu_products import ACTIVATIONS, FEW, MANY, Int8Linear, Linear, Product, has_bfloat16, has_fast_int8, round_up
from .packing import roberta_positions
from .stored_bert import StoredBert, StoredLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .pooling import Select

#: Published classes with the post-norm BERT layer, and whether their positions start at the padding id.
_CLASSES: Final = {"BertModel": False, "RobertaModel": True, "XLMRobertaModel": True, "CamembertModel": True}


@dataclass(frozen=True)
class Kernels:
    """What suits a kind of CPU.

    Attributes:
        attention: How attention in bfloat16 is computed; in float32 it is torch's kernel, see `OwnAttention`.
        short: The same for sequences of at most `FEW` tokens.
        step: Numbers of rows up to `FEW` are multiples of this.
        block: Rows that go through a feed-forward network at a time: what lies between stays in the core's cache.
        batch: Tokens that a batch should have.
    """

    attention: type[Attention]
    short: type[Attention]
    step: int
    block: int
    batch: int

    def attention_in(self, dtype: torch.dtype, like: int = MANY) -> type[Attention]:
        """How attention in a number format is computed, of sequences whose products are those of `like` rows."""
        if dtype != torch.bfloat16:
            return TorchAttention
        return self.short if like == FEW else self.attention


#: By kind of CPU. Measured with `benchmarks/encode.py`; see docs/performance.md.
KERNELS: Final = {
    "amx": Kernels(TorchAttention, TorchAttention, step=16, block=2048, batch=2048),
    "other": Kernels(OwnAttention, ShortAttention, step=4, block=256, batch=2048),
}


def kernels() -> Kernels:
    """Those of this CPU, as far as oneDNN may use it (its variable ONEDNN_MAX_CPU_ISA)."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    allowed = limit in ("", "ALL", "DEFAULT") or "AMX" in limit
    return KERNELS["amx" if allowed and torch.cpu._is_amx_tile_supported() else "other"]


def can_fuse(model: PreTrainedModel | StoredBert) -> bool:
    """Whether `FusedEncoder` computes exactly what this model computes."""
    config = model.config
    return (
        _class_of(model) in _CLASSES
        and torch.backends.mkldnn.is_available()
        and config.hidden_act in ACTIVATIONS
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


class Norm:
    """Layer normalisation with float32 parameters and statistics, whatever the dtype of its input."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight, self.bias, self.eps = norm.weight.detach().float(), norm.bias.detach().float(), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, hidden] in the dtype of x."""
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Layer:
    """One transformer layer but for its attention: the projections before it and all that follows."""

    def __init__(self, layer: Any, qkv: Product, pack: Callable[..., Product], activation: str, block: int) -> None:
        """Copy a layer of the model, whose linear parts `pack` makes ready for the dtype."""
        self.qkv, self.block = qkv, block
        self.output, self.output_norm = pack(layer.attention.output.dense), Norm(layer.attention.output.LayerNorm)
        self.up = pack(layer.intermediate.dense, activation)
        self.down, self.down_norm = pack(layer.output.dense), Norm(layer.output.LayerNorm)

    def finish(self, x: Tensor, context: Tensor, like: int) -> Tensor:
        """The layer's output for its input and the heads' results, all [rows, hidden]; `like` as of `Product`."""
        if x.shape[0] <= self.block:
            return self._finish(x, context, like)
        result = torch.empty_like(x)
        for start in range(0, x.shape[0], self.block):
            rows = slice(start, start + self.block)
            result[rows] = self._finish(x[rows], context[rows], like)
        return result

    def _finish(self, x: Tensor, context: Tensor, like: int) -> Tensor:
        y = self.output_norm(self.output.plus(context, x, like))
        return self.down_norm(self.down.plus(self.up(y, like), y, like))


class FusedEncoder:
    """Inference-only copy of a BERT-family encoder for CPUs.

    A call leaves no state behind, so several threads may call it at once. What else is in a batch changes
    nothing of a sequence's result.
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
            raise ArgumentError("dtype='int8' needs a CPU with VNNI: leave dtype out, and what is fast here is taken")
        if dtype == torch.bfloat16 and not has_bfloat16():
            raise ArgumentError("this CPU cannot compute in bfloat16: leave dtype out, or use dtype='float32'")
        source: Any = model
        config, embeddings = source.config, source.embeddings
        self.kernels = kernels()
        self.heads: int = config.num_attention_heads
        self._layer = Int8Linear if dtype == "int8" else Linear
        half = torch.bfloat16 if has_bfloat16() else torch.float32
        #: What attention computes in, and what goes from layer to layer.
        self.dtype: torch.dtype = dtype if isinstance(dtype, torch.dtype) else half
        self.attention = self.kernels.attention_in(self.dtype)
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
                self.layers.append(_Layer(layer, qkv, self._packed, config.hidden_act, self.kernels.block))
            last = source.encoder.layer[-1].attention.self
            self.last_query = self._projection(last.query)
            self.last_pair = self._projection(last.key, last.value)

    def _packed(self, linear: nn.Linear, activation: str | None = None) -> Product:
        return self._layer(linear.weight, linear.bias, self.state_dtype, activation)

    def _projection(self, *parts: nn.Linear) -> Product:
        """Linear layers of the same input as one. A query before others or alone brings its factor."""
        weights, biases = [part.weight.float() for part in parts], [part.bias.float() for part in parts]
        if len(parts) != 2:
            factor = self.attention.query_factor(parts[0].out_features // self.heads)
            weights[0], biases[0] = weights[0] * factor, biases[0] * factor
        return self._layer(torch.cat(weights), torch.cat(biases), self.dtype)

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
        return self.several(input_ids, lengths, (select,), token_types)[0]

    def several(
        self, input_ids: Tensor, lengths: Sequence[int], selects: Sequence[Select], token_types: Tensor | None = None
    ) -> list[Tensor]:
        """The hidden states of several selections of tokens; each has the bits that it has alone."""
        self._check(input_ids, lengths)
        with torch.inference_mode():
            ascending = sorted(lengths)
            if ascending == list(lengths):
                return self._by_length(input_ids, ascending, selects, token_types)
            starts = [end - own for end, own in zip(itertools.accumulate(lengths), lengths, strict=True)]
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            tokens = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in order])
            types = None if token_types is None else token_types[tokens]
            results = self._by_length(input_ids[tokens], ascending, selects, types)
            return [
                torch.empty_like(hidden).index_copy_(0, tokens if select == "all" else torch.tensor(order), hidden)
                for select, hidden in zip(selects, results, strict=True)
            ]

    def _check(self, input_ids: Tensor, lengths: Sequence[int]) -> None:
        if input_ids.dim() != 1 or sum(lengths) != len(input_ids) or not lengths or min(lengths) < 1:
            raise ArgumentError(
                f"lengths of at least 1 that sum to the number of tokens are needed: {len(lengths)} lengths, "
                f"sum {sum(lengths)}, for input_ids of shape {tuple(input_ids.shape)}"
            )
        limit = len(self.positions) - (self.padding is not None)
        if max(lengths) > limit:
            raise ArgumentError(f"a sequence of {max(lengths)} tokens: this model has {limit} positions")

    def _by_length(
        self, input_ids: Tensor, lengths: list[int], selects: Sequence[Select], token_types: Tensor | None
    ) -> list[Tensor]:
        """`several` for ascending lengths: short sequences by themselves, as their products are other ones."""
        short = bisect.bisect_right(lengths, FEW)
        if short in (0, len(lengths)):
            return self._forward(input_ids, lengths, selects, token_types, FEW if short else MANY)
        cut = sum(lengths[:short])
        parts = (slice(cut), lengths[:short], FEW), (slice(cut, None), lengths[short:], MANY)
        results = [
            self._forward(input_ids[own], some, selects, None if token_types is None else token_types[own], like)
            for own, some, like in parts
        ]
        return [torch.cat(both) for both in zip(*results, strict=True)]

    def _forward(
        self, input_ids: Tensor, lengths: list[int], selects: Sequence[Select], token_types: Tensor | None, like: int
    ) -> list[Tensor]:
        """`several` for ascending lengths and one kind of products, see `Product`."""
        count = input_ids.shape[0]
        rows = round_up(count, self.kernels.step)
        own = torch.tensor(lengths)
        ends = own.cumsum(0)
        if len(lengths) == 1 and self.padding is None:
            place = torch.arange(count)
        elif self.padding is None:
            place = torch.arange(count) - (ends - own).repeat_interleave(own)
        else:
            place = roberta_positions(input_ids, self.padding, ends - own, own)
        more = (0, rows - count)
        x = embedding(pad(input_ids, more), self.words).float()
        x += embedding(pad(place, more), self.positions)
        if token_types is not None:
            x += embedding(pad(token_types, more), self.segments)
        x = self.norm(x).to(self.state_dtype)
        attention = self.kernels.attention_in(self.dtype, like)(lengths, rows, self.heads, self.dtype)
        for layer in self.layers[:-1]:
            x = layer.finish(x, attention(layer.qkv(x, like), None), like)
        results, last = [], self.layers[-1]
        for select in selects:
            if select == "all":
                y = last.finish(x, attention(last.qkv(x, like), None), like)
                results.append(y[:count].float())
                continue
            # The last layer for one row a sequence; attention still reads the other rows.
            wanted = ends - own if select == "first" else ends - 1
            some = len(wanted)
            chosen = x[pad(wanted, (0, round_up(some, self.kernels.step) - some))]
            heads = attention(self.last_pair(x, like), self.last_query(chosen, like))
            results.append(last.finish(chosen, heads, like)[:some].float())
        return results


#: The function of glibc that returns it; None with other C libraries.
_MALLOC_TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
#: Seconds between two returns of freed memory: what they cost is then less than a two-hundredth of the whole.
_TRIM_SECONDS: Final = 5.0
#: Bytes of the largest block that glibc ever keeps: 32 MiB, less room for what it writes before it and for alignment.
_LARGEST_KEPT: Final = (32 << 20) - (8 << 10)


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


def keep_freed_memory() -> None:
    """Have the C library keep what a batch has freed for the next one, where it does not do so yet (glibc).

    It asks the system for every block above a threshold and gives it back when it is freed; the threshold is 128 KiB at
    first and rises to the size of the largest such block that was freed, 32 MiB at most. Weights that are mapped free
    none, and then nearly every tensor of a batch was new pages of the system: 140,000 page faults for 200 passages, a
    tenth of the time of a small model. One block of that size, which is never touched, is enough. Who sets the
    thresholds (`MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`) has them as they are.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)
