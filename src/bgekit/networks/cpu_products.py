"""Matrix products on a CPU whose results depend on their own row alone: the linear layers of the fused encoder.

oneDNN chooses, by the number of rows and of threads, in which order it sums a product up, and another order rounds
otherwise. On CPUs without AMX one row differs from all other numbers of rows; with AMX they fall into classes (bf16,
K = 1,536: 8 to 32 rows and 384 or more agree, and 40 to 320 agree; docs/determinism.md has the table). So a product
is computed only with numbers of rows and threads that give a row the bits it has among `REFERENCE_ROWS` rows in one
thread. Which those are is not believed but tried, at the first use of each (`RowCheck`), and kept for the process.
"""

from __future__ import annotations

import contextlib
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
#: Rows of the product whose bits all others must have, and most rows of those that are cut.
REFERENCE_ROWS: Final = 256
#: Numbers of rows that are tried are multiples of this; heads are computed by so many.
_STEP: Final = 16


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


def round_up(count: int) -> int:
    """The next of the few numbers of rows that matrices have.

    oneDNN compiles and keeps a kernel for each new shape (here 0.2 to 0.7 ms and 0.6 to 0.9 MB, up to 1,024 of
    them), which would cost every batch of a new size time, and the process its memory.
    """
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
        self._tried: dict[tuple[int, int, bool], bool] = {}
        self._references: dict[bool, Tensor] = {}
        self._parts: dict[tuple[int, int, bool], tuple[_Part, ...] | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process, that process's own."""
        outputs, inputs = self._shape
        return row_check, (inputs, outputs, self._dtype, self._activation)

    def parts(self, rows: int, adds: bool) -> tuple[_Part, ...] | None:
        """How to compute so many rows: None if as they are, else the parts in which they are computed.

        Args:
            rows: Rows of x.
            adds: Whether something is added to the product.
        """
        key = rows, torch.get_num_threads(), adds
        try:
            return self._parts[key]
        except KeyError:
            with self._lock:
                return self._parts.setdefault(key, self._choose(*key))

    def _choose(self, rows: int, threads: int, adds: bool) -> tuple[_Part, ...] | None:
        if self._holds(rows, threads, adds):
            return None
        whole = [(start, start + REFERENCE_ROWS) for start in range(0, rows - REFERENCE_ROWS + 1, REFERENCE_ROWS)]
        last = len(whole) * REFERENCE_ROWS
        parts = [(start, stop, *self._padded(REFERENCE_ROWS, threads, adds)) for start, stop in whole]
        if last < rows:
            parts.append((last, rows, *self._padded(rows - last, threads, adds)))
        return tuple(parts)

    def _padded(self, rows: int, threads: int, adds: bool) -> tuple[int, int]:
        """Rows to pad so many to, and threads, that hold; up to twice as many rows are better than one thread."""
        for count in dict.fromkeys((threads, 1)):
            most = REFERENCE_ROWS if count == 1 else min(REFERENCE_ROWS, max(4 * _STEP, 2 * rows))
            for padded in (rows, *range(-(-rows // _STEP) * _STEP, most + 1, _STEP)):
                if self._holds(padded, count, adds):
                    return padded, count
        _warn_of(*self._shape, self._dtype)
        return rows, threads

    def _holds(self, rows: int, threads: int, adds: bool) -> bool:
        """Whether all of so many rows have the bits of the reference."""
        key = rows, threads, adds
        if key not in self._tried:
            self._tried[key] = bool((self._compute(*key) == self.reference(adds)).all())
        return self._tried[key]

    def reference(self, adds: bool) -> Tensor:
        """[outputs] the row's result among `REFERENCE_ROWS` rows, in one thread."""
        if adds not in self._references:
            self._references[adds] = self._compute(REFERENCE_ROWS, 1, adds)[0].clone()
        return self._references[adds]

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

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, out] for [rows, in]."""
        ...

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
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
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), REFERENCE_ROWS)
        self.bias = bias.to(dtype).contiguous()
        self.activation, self.algorithm = ("none", "") if activation is None else ACTIVATIONS[activation][:2]
        self._check = row_check(weight.shape[1], weight.shape[0], dtype, activation)

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, out] for [rows, in]."""
        return self._product(x, None)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's result plus `other`."""
        return self._product(x, other)

    def _product(self, x: Tensor, other: Tensor | None) -> Tensor:
        rows = len(x)
        parts = self._check.parts(rows, other is not None)
        if parts is None:
            return self.multiply(x, other)
        results = []
        for start, stop, padded, count in parts:
            part, added = x[start:stop], None if other is None else other[start:stop]
            if more := padded - (stop - start):
                part, added = with_zeros(part, more), None if added is None else with_zeros(added, more)
            with threads_of(count):
                results.append(self.multiply(part, added)[: stop - start])
        return results[0] if len(results) == 1 else torch.cat(results)

    def multiply(self, x: Tensor, other: Tensor | None) -> Tensor:
        """The product of all rows at once, whatever bits that gives."""
        if other is None:
            result: Tensor = _pointwise(x, self.weight, self.bias, self.activation, [], self.algorithm)
            return result
        result = _plus(x, other, self.weight, self.bias, "add")
        return result


_pointwise: Any = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
_plus: Any = torch.ops.mkldnn._linear_pointwise.binary if torch.backends.mkldnn.is_available() else None

#: Rows that go through 8-bit layers at a time: what lies between stays in the core's cache.
_BLOCK: Final = 256
#: Neighbouring float32 of this size are 1 apart: adding it rounds, and leaves a whole number in the lowest byte.
_WHOLE: Final = 1.5 * (1 << 23)


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

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, out] for [rows, in] float32."""
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

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer's result plus `other`, of rows in any floating type."""
        return self(x.float()).add_(other)
