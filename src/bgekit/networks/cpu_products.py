"""Matrix products on a CPU whose results depend on their own row alone: the linear layers of the fused encoder.

oneDNN chooses, by the number of rows and of threads, in which order it sums a product up, and another order rounds
otherwise. On CPUs without AMX one row differs from all other numbers of rows; with AMX they fall into classes (bf16,
K = 1,536: 8 to 32 rows and 384 or more agree, and 40 to 320 agree; docs/determinism.md has the table). So a product
is computed only with numbers of rows and threads that give a row the bits it has in one thread among `FEW` rows, if
it is of a sequence of at most so many tokens, else among `MANY`. Which those are is not believed but tried, at the
first use of each (`RowCheck`), and kept for the process.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from functools import cache, cached_property, lru_cache, partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu

logger = logging.getLogger(__name__)
#: `config.hidden_act` -> the epilogue that oneDNN computes with the product, its algorithm, and the function itself.
ACTIVATIONS: Final[dict[str, tuple[str, str, Callable[[Tensor], Tensor]]]] = {
    "gelu": ("gelu", "none", gelu),
    "gelu_new": ("gelu", "tanh", partial(gelu, approximate="tanh")),
    "gelu_pytorch_tanh": ("gelu", "tanh", partial(gelu, approximate="tanh")),
    "relu": ("relu", "", relu),
}
#: Rows of the product whose bits all others must have, and of those that a larger one is cut into: for rows of short
#: sequences and for those of others. A short sequence alone is then computed as it is, and others in large parts.
FEW: Final = 32
MANY: Final = 256
#: Numbers of rows that are tried are multiples of this; heads are computed by so many.
_STEP: Final = 16
#: Rows of short sequences from which on a product is computed by blocks of columns, and the narrowest of these.
_BULK: Final = 128
_NARROWEST: Final = 128


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Have torch compute with so many threads in the calling thread, for which alone it keeps that number."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def round_up(count: int, step: int = 16) -> int:
    """The next of the few numbers of rows that matrices have: of up to `FEW` rows, a multiple of `step`.

    oneDNN compiles and keeps a kernel for each new shape (here 0.2 to 0.7 ms and 0.6 to 0.9 MB, up to 1,024 of
    them), which would cost every batch of a new size time, and the process its memory.
    """
    if count > FEW:
        step = 16 if count <= 256 else 32 if count <= 1024 else 64
    return -(-count // step) * step


def with_zeros(x: Tensor, more: int) -> Tensor:
    """[rows + more, columns]: x [rows, columns] with rows of zeros behind it; a quarter of the time of `pad`."""
    return torch.cat([x, _zeros(more, x.shape[1], x.dtype)])


def in_equal_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a function of single rows makes of x [rows, in], by 16 rows at a time in one thread.

    For the small heads behind a transformer, whose products are torch's own: with always the same number of rows they
    are summed up in the same order.
    """
    parts = []
    with threads_of(1):
        for part in x.split(_STEP):
            parts.append(function(with_zeros(part, _STEP - len(part)) if len(part) < _STEP else part)[: len(part)])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@lru_cache(maxsize=256)
def _zeros(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(rows, columns, dtype=dtype)


#: A part of a product: its first row, the row after its last, the rows it is padded to, and its threads.
_Part = tuple[int, int, int, int]


class RowCheck:
    """The numbers of rows, and of threads, that give a row of one shape of product the bits of the reference.

    The product that is tried has weights and a row of its own: half of the summands are the other half's negatives,
    in another order, so the exact sum is zero and what comes out is the rounding alone, which another order of
    summation changes in nearly every column.
    """

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, activation: str | None = None) -> None:
        """Nothing tried yet.

        Args:
            inputs: Columns of x.
            outputs: Columns of the result.
            dtype: Type of x, the weights and the result.
            activation: `config.hidden_act`, if one follows.
        """
        self._shape, self._dtype, self._activation = (outputs, inputs), dtype, activation
        self._lock = threading.Lock()
        self._tried: dict[tuple[int, int, bool, int], bool] = {}
        self._references: dict[tuple[bool, int], Tensor] = {}
        self._parts: dict[tuple[int, int, bool, int], tuple[_Part, ...] | None] = {}
        self._widths: dict[tuple[int, int, bool], int | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process, that process's own."""
        outputs, inputs = self._shape
        return row_check, (inputs, outputs, self._dtype, self._activation)

    def parts(self, rows: int, adds: bool, like: int = MANY) -> tuple[_Part, ...] | None:
        """How to compute so many rows: None if as they are, else the parts in which they are computed.

        Args:
            rows: Rows of x.
            adds: Whether something is added to the product.
            like: Rows of the reference, `FEW` or `MANY`.
        """
        key = rows, torch.get_num_threads(), adds, like
        try:
            return self._parts[key]
        except KeyError:
            with self._lock:
                return self._parts.setdefault(key, self._choose(*key))

    def width(self, rows: int, adds: bool) -> int | None:
        """Columns of the blocks in which so many rows of short sequences have their bits; None where they do not.

        With AMX, narrow products sum up many rows as wide ones do a few. There is one width, as each is a copy.
        """
        key = rows, torch.get_num_threads(), adds
        if rows < _BULK:
            return None
        if key not in self._widths:
            width = self._block_width
            self._widths[key] = width if width and self._holds_in_blocks(width, *key) else None
        return self._widths[key]

    @cached_property
    def _block_width(self) -> int | None:
        """The widest that serves a batch and half a batch."""
        outputs = self._shape[0]
        counts = range(2, outputs // _NARROWEST + 1)
        widths = [outputs // count for count in counts if outputs % (count * _STEP) == 0]
        holds = self._holds_in_blocks
        return next((width for width in widths if all(holds(width, rows, 1, False) for rows in (1024, 2048))), None)

    def _holds_in_blocks(self, width: int, rows: int, threads: int, adds: bool) -> bool:
        """Whether a block of the product's first columns has its bits; the weights that are tried repeat every 16."""
        inputs = self._shape[1]
        block = row_check(inputs, width, self._dtype, self._activation)
        return bool((block._compute(rows, threads, adds) == self.reference(adds, FEW)[:width]).all())

    def _choose(self, rows: int, threads: int, adds: bool, like: int) -> tuple[_Part, ...] | None:
        if self._holds(rows, threads, adds, like):
            return None
        whole = [(start, start + like) for start in range(0, rows - like + 1, like)]
        last = len(whole) * like
        parts = [(start, stop, *self._padded(like, threads, adds, like)) for start, stop in whole]
        if last < rows:
            parts.append((last, rows, *self._padded(rows - last, threads, adds, like)))
        return tuple(parts)

    def _padded(self, rows: int, threads: int, adds: bool, like: int) -> tuple[int, int]:
        """Rows to pad so many to, and threads, that hold; up to twice as many rows are better than one thread."""
        for count in dict.fromkeys((threads, 1)):
            most = like if count == 1 else min(like, max(4 * _STEP, 2 * rows))
            for padded in (rows, *range(-(-rows // _STEP) * _STEP, most + 1, _STEP)):
                if self._holds(padded, count, adds, like):
                    return padded, count
        _warn_of(*self._shape, self._dtype)
        return rows, threads

    def _holds(self, rows: int, threads: int, adds: bool, like: int = MANY) -> bool:
        """Whether all of so many rows have the bits of the reference."""
        key = rows, threads, adds, like
        if key not in self._tried:
            self._tried[key] = bool((self._compute(rows, threads, adds) == self.reference(adds, like)).all())
        return self._tried[key]

    def reference(self, adds: bool, like: int = MANY) -> Tensor:
        """[outputs] the row's result among `like` rows, in one thread."""
        if (adds, like) not in self._references:
            self._references[adds, like] = self._compute(like, 1, adds)[0].clone()
        return self._references[adds, like]

    def _compute(self, rows: int, threads: int, adds: bool) -> Tensor:
        """[rows, outputs] the product that is tried."""
        row, layer = self._tested
        x = row.expand(rows, -1).contiguous()
        with threads_of(threads), torch.inference_mode():
            return layer.multiply(x, x.new_zeros(rows, self._shape[0]) if adds else None)

    @cached_property
    def _tested(self) -> tuple[Tensor, Linear]:
        """The row [1, inputs] and the layer of the product that is tried."""
        outputs, inputs = self._shape
        draw = torch.Generator().manual_seed(0)
        half = torch.randn(17, inputs // 2, generator=draw)
        order = torch.randperm(inputs // 2, generator=draw)
        odd = torch.zeros(17, inputs % 2)
        row = torch.cat([half[16:], -half[16:, order], odd[16:]], 1).to(self._dtype)
        few = torch.cat([half[:16], half[:16, order], odd[:16]], 1).to(self._dtype)
        weight = few.repeat(-(-outputs // 16), 1)[:outputs]
        return row, Linear(weight, torch.zeros(outputs), self._dtype, self._activation)


@cache
def _warn_of(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    """Say, once per shape, where bits depend on the batch."""
    logger.warning(
        "no number of rows gives a product of %d by %d in %s the same bits alone and in company on this CPU: the last "
        "bits of a vector depend on its batch", inputs, outputs, dtype,
    )  # fmt: skip


@cache
def row_check(inputs: int, outputs: int, dtype: torch.dtype, activation: str | None) -> RowCheck:
    """The check of a shape, which all layers of that shape share."""
    return RowCheck(inputs, outputs, dtype, activation)


class Product(Protocol):
    """A linear layer of the fused encoder, with what is computed in the same pass."""

    def __call__(self, x: Tensor, like: int = MANY) -> Tensor:
        """[rows, out] for [rows, in]; a row's bits are those it has among `like` rows, `FEW` or `MANY`."""
        ...

    def plus(self, x: Tensor, other: Tensor, like: int = MANY) -> Tensor:
        """The layer's result plus `other`."""
        ...


class Linear:
    """A prepacked linear layer, with what oneDNN applies to its result before writing it."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: str | None = None) -> None:
        """Pack the weights.

        Args:
            weight: [out, in].
            bias: [out].
            dtype: Type to compute in.
            activation: `config.hidden_act`, if one follows.
        """
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), MANY)
        self.bias = bias.to(dtype).contiguous()
        self.activation, self.algorithm = ("none", "") if activation is None else ACTIVATIONS[activation][:2]
        self._check = row_check(weight.shape[1], weight.shape[0], dtype, activation)
        self._kind = dtype, activation
        self._blocks: dict[int, list[Linear]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: it makes blocks of its own."""
        return self.__dict__ | {"_blocks": {}}

    def __call__(self, x: Tensor, like: int = MANY) -> Tensor:
        """See `Product`."""
        return self._product(x, None, like)

    def plus(self, x: Tensor, other: Tensor, like: int = MANY) -> Tensor:
        """The layer's result plus `other`."""
        return self._product(x, other, like)

    def _product(self, x: Tensor, other: Tensor | None, like: int) -> Tensor:
        rows = x.shape[0]
        parts = self._check.parts(rows, other is not None, like)
        if parts is None:
            return self.multiply(x, other)
        if like == FEW and (width := self._check.width(rows, other is not None)):
            added = itertools.repeat(None) if other is None else other.split(width, 1)
            return torch.cat([
                block.multiply(x, own) for block, own in zip(self._in_blocks(width), added, strict=False)
            ], 1)  # fmt: skip
        results = []
        for start, stop, padded, count in parts:
            part, added = x[start:stop], None if other is None else other[start:stop]
            if more := padded - (stop - start):
                part, added = with_zeros(part, more), None if added is None else with_zeros(added, more)
            with threads_of(count):
                results.append(self.multiply(part, added)[: stop - start])
        return results[0] if len(results) == 1 else torch.cat(results)

    def _in_blocks(self, width: int) -> list[Linear]:
        """The same layer as blocks of columns, a second copy of its weights, made when many short texts come."""
        if width not in self._blocks:
            weights = self.weight.to_dense().split(width)
            # Two threads may both make them; one of the equal results stays.
            blocks = [Linear(*part, *self._kind) for part in zip(weights, self.bias.split(width), strict=True)]
            self._blocks.setdefault(width, blocks)
        return self._blocks[width]

    def multiply(self, x: Tensor, other: Tensor | None) -> Tensor:
        """The product of all rows at once, whatever bits that gives."""
        result: Tensor
        if other is not None:
            result = _plus(x, other, self.weight, self.bias, "add")
            return result
        result = _pointwise(x, self.weight, self.bias, self.activation, [], self.algorithm)
        return result


_pointwise: Any = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
_plus: Any = torch.ops.mkldnn._linear_pointwise.binary if torch.backends.mkldnn.is_available() else None


def products_of_rows(x: Tensor, others: Tensor) -> Tensor:
    """The products [n, m] of all rows of x [n, d] with all of others [m, d], in float32.

    By oneDNN where there is: `torch.mm` asks MKL, which on processors of other makers than Intel takes 1.1 to 1.3 times
    as long (AMD Zen 3, one thread, 1,000 by 1,024 to 4,096 rows of 384).
    """
    result: Tensor = torch.mm(x, others.T) if _pointwise is None else _pointwise(x, others, None, "none", [], "")
    return result


#: Rows that go through 8-bit layers at a time: what lies between stays in the core's cache.
_BLOCK: Final = 256
#: Neighbouring float32 of this size are 1 apart: adding it rounds, and leaves a whole number in the lowest byte.
_WHOLE: Final = 1.5 * (1 << 23)


def has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices on this CPU at all, fast or not: not with AVX2 alone."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported


def has_fast_int8() -> bool:
    """Whether this CPU multiplies 8-bit integers faster than anything else, without saturating between steps."""
    return torch.cpu._is_vnni_supported()


class _Rows:
    """Quantised activations: row r is `step[r] * (whole[r] + zero[r])`, with whole in 0..255."""

    def __init__(self, x: Tensor) -> None:
        """Quantise [rows, n] float32, each row to its own range."""
        high, low = x.amax(1, keepdim=True).clamp_(min=0), x.amin(1, keepdim=True).clamp_(max=0)
        # 254 steps leave one for the rounding of the zero point.
        self.step = high.sub_(low).div_(254).clamp_(min=1e-30)
        inverse = self.step.reciprocal()
        self.zero = low.mul_(inverse).round_()
        # The lowest byte of the sum is what is wanted; a conversion from float32 would take three times as long.
        self.whole = (x * inverse).add_(_WHOLE - self.zero).view(torch.int32).to(torch.uint8)


class Int8Linear:
    """A linear layer with 8-bit weights. Sums of whole numbers are exact, so a row's company changes nothing."""

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32, activation: str | None = None
    ) -> None:
        """Quantise the weights; arguments as of `Linear`, with `dtype` the type of the result."""
        weight, self.dtype = weight.detach().float(), dtype
        self.activation = None if activation is None else ACTIVATIONS[activation][2]
        self.scale = (weight.abs().amax(1) / 127).clamp_(min=1e-30)
        whole = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.weight: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
        self.zero = torch.zeros(len(whole), dtype=torch.long)
        # A row's product is step * (whole W) + step * zero * (sum of W's columns) + bias: here the last two.
        self.rest = torch.stack([self.scale * whole.sum(1), bias.detach().float()])

    def __call__(self, x: Tensor, like: int = MANY) -> Tensor:
        """[rows, out] for [rows, in] float32; `like` is for products of floating numbers alone."""
        if len(x) <= _BLOCK:
            return self._block(x)
        return torch.cat([self._block(part) for part in x.split(_BLOCK)])

    def _block(self, x: Tensor) -> Tensor:
        rows = _Rows(x)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows.whole, 1.0, 0, self.weight, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        offset = torch.cat([rows.zero.mul_(rows.step), rows.step.new_ones(len(x), 1)], 1)
        y = y.mul_(rows.step).addmm_(offset, self.rest)
        return (y if self.activation is None else self.activation(y)).to(self.dtype)

    def plus(self, x: Tensor, other: Tensor, like: int = MANY) -> Tensor:
        """The layer's result plus `other`, of rows in any floating type."""
        return self(x.float()).add_(other)
