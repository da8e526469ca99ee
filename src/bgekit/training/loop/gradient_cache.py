"""The gradient of a batch of any size on the memory of a part of it (GradCache, arXiv:2101.06983).

A contrastive loss couples all vectors of a batch, so a batch cannot be cut up as in gradient accumulation. But the
network is applied to each text alone:

1. encode chunk by chunk without keeping activations;
2. compute the loss of all vectors, and its gradient with respect to the vectors;
3. encode each chunk again, with activations and the same dropout, and go back from the gradient of its vectors.

The sum over chunks is the gradient of the plain step, for the price of a second forward pass: four passes over the
network instead of three.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from ...errors import ArgumentError
from ...networks.cpu_inference import Trimmer
from ...networks.packing import Packed, plan_batches
from ...networks.unified import TokenOutputs
from ..losses.contrastive import members
from ..losses.distributed import LossValue

#: What a network gives: vectors [n, d] or scores [n] of the sequences of a batch, or several tensors, of which each has
#: a number of rows for each sequence that follows from its length.
Encoded: TypeAlias = Tensor | TokenOutputs
#: The network, wrapped for data-parallel training or not.
Encode: TypeAlias = Callable[[Packed], Encoded]
#: The loss of what was encoded, one argument for each batch.
VectorLoss: TypeAlias = Callable[..., LossValue]
#: Goes back from a scalar; `accelerator.backward`, or one that scales the loss for float16 first.
Backward: TypeAlias = Callable[[Tensor], Any]


@dataclass(frozen=True)
class _Chunk:
    """Sequences that are encoded at once, and their positions among all."""

    batch: Packed
    positions: Tensor

    def encode(self, encode: Encode) -> Encoded:
        encoded = encode(self.batch)
        # A stand-in for no sequences is encoded and cut off: its gradient is zero for all parameters.
        return encoded if len(self.positions) else _like(encoded, [each[:0] for each in _tensors(encoded)])


def plain_backward(
    encode: Encode, batches: Sequence[Packed], loss: VectorLoss, *, backward: Backward = Tensor.backward
) -> LossValue:
    """Add the gradient of a loss to the parameters: one forward and one backward pass.

    Args:
        encode: The network.
        batches: What is encoded, such as (queries, passages), or (pairs,) for a reranker. All of it goes through the
            network in one call, which data-parallel wrappers need. May hold no sequence at all on this process.
        loss: Takes the vectors of each batch.
        backward: Goes back from the loss.

    Returns:
        The loss, detached, and its metrics.
    """
    everything, counts = _join(batches)
    encoded = _chunk(everything, range(len(everything.lengths))).encode(encode)
    value = loss(*_split(encoded, everything, counts))
    backward(value.loss)
    return LossValue(value.loss.detach(), value.metrics)


def cached_backward(
    encode: Encode,
    batches: Sequence[Packed],
    loss: VectorLoss,
    *,
    chunk: int,
    backward: Backward = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
) -> LossValue:
    """Add the gradient of `plain_backward`, to rounding, with the activations of a chunk at a time.

    With dropout the gradient is that of the masks that were drawn in the first pass, which are not those that a
    plain step would draw.

    Args:
        encode: The network. Under autocast and with gradient checkpointing as in a plain step.
        batches: What is encoded; queries and passages share chunks.
        loss: Takes the vectors of each batch; called once.
        chunk: Sequences encoded at once, on average: chunks are cut to `chunk` times the mean length in tokens,
            so that a chunk of long texts takes no more memory than others.
        backward: Goes back from a scalar, once for each chunk. What it scales by is scaled once.
        no_sync: Context in which gradients are not exchanged between processes; that of `encode` by default.
            All chunks but the last are computed in it.

    Returns:
        The loss, detached, and its metrics.
    """
    if chunk < 1:
        raise ArgumentError(f"a chunk must have at least 1 sequence, not {chunk}")
    own: Callable[[], AbstractContextManager[Any]] = getattr(encode, "no_sync", contextlib.nullcontext)
    silent = own if no_sync is None else no_sync
    everything, counts = _join(batches)
    chunks = list(_chunks(everything, chunk))

    # Thousands of chunks, each of another size, would leave holes in the heap that grow with the batch.
    memory = Trimmer()
    states = []
    whole: Encoded = torch.empty(0)
    with torch.no_grad():
        for piece in chunks:
            memory.trim()
            states.append(_RandomState.now(everything.input_ids))
            part = piece.encode(encode)
            if len(states) == 1:
                sizes = [int(rows.sum()) for rows in _rows(part, everything)]
                whole = _like(part, [each.new_empty(size, *each.shape[1:])
                                     for each, size in zip(_tensors(part), sizes, strict=True)])  # fmt: skip
            for place, each, rows in zip(_tensors(whole), _tensors(part), _rows(part, everything), strict=True):
                place[_places(rows, piece.positions)] = each
    # Autocast keeps weights that it has cast, and those cast here would have no gradient in the second pass.
    torch.clear_autocast_cache()

    value, gradients = _differentiated(loss, whole, everything, counts)
    del whole  # Of a large batch as much as the activations of a chunk.
    memory.trim()

    afterwards = _RandomState.now(everything.input_ids)
    try:
        for number, (piece, state) in enumerate(zip(chunks, states, strict=True), start=1):
            with silent() if number < len(chunks) else contextlib.nullcontext():
                state.restore()
                again = piece.encode(encode)
                products = [
                    (each * gradient[_places(rows, piece.positions)]).sum()
                    for each, gradient, rows in zip(_tensors(again), gradients, _rows(again, everything), strict=True)
                    if each.requires_grad  # What a part of the network gives that does not learn goes nowhere.
                ]
                backward(functools.reduce(operator.add, products))
            torch.clear_autocast_cache()
            memory.trim()
    finally:
        afterwards.restore()
    return value


@dataclass(frozen=True)
class PackedGradient:
    """Adds the gradient of a loss of packed sequences to the parameters, as a `Gradient` of `StepTrainer`.

    Attributes:
        sequences: What is encoded of a batch, such as its queries and its passages.
        loss: Takes what was encoded of each of them, and the batch.
        chunk: Sequences encoded at once (see `cached_backward`), None for all.
    """

    sequences: Callable[[Any], Sequence[Packed]]
    loss: VectorLoss
    chunk: int | None = None

    def __call__(
        self, encode: Encode, batch: Any, backward: Backward, no_sync: Callable[[], AbstractContextManager[Any]]
    ) -> LossValue:
        """The loss of a batch, detached, and its metrics."""

        def loss(*encoded: Tensor) -> LossValue:
            return self.loss(*encoded, batch)

        if self.chunk is None:
            return plain_backward(encode, self.sequences(batch), loss, backward=backward)
        return cached_backward(
            encode, self.sequences(batch), loss, chunk=self.chunk, backward=backward, no_sync=no_sync
        )


def _differentiated(
    loss: VectorLoss, encoded: Encoded, everything: Packed, counts: Sequence[int]
) -> tuple[LossValue, list[Tensor]]:
    """The loss of what was encoded of all sequences, without its graph, and its gradient for each tensor."""
    tensors = [each.requires_grad_() for each in _tensors(encoded)]
    value = loss(*_split(encoded, everything, counts))
    found = torch.autograd.grad(value.loss, tensors, allow_unused=True)
    gradients = [torch.zeros_like(each) if of is None else of for each, of in zip(tensors, found, strict=True)]
    return LossValue(value.loss.detach(), value.metrics), gradients


def _tensors(encoded: Encoded) -> Sequence[Tensor]:
    return (encoded,) if isinstance(encoded, Tensor) else encoded.there


def _like(encoded: Encoded, tensors: Sequence[Tensor]) -> Encoded:
    return tensors[0] if isinstance(encoded, Tensor) else encoded.of(tensors)


def _rows(encoded: Encoded, batch: Packed) -> list[Tensor]:
    """For each tensor of what was encoded, [n] the rows of each sequence of a batch."""
    if isinstance(encoded, Tensor):
        return [torch.ones(len(batch.lengths), dtype=torch.long, device=batch.input_ids.device)]
    return encoded.rows(batch)


def _places(rows: Tensor, positions: Tensor) -> Tensor:
    """Places of some sequences, one after the other, in a tensor in which each of all has so many rows."""
    stops = rows.cumsum(0)
    return members((stops - rows)[positions], stops[positions])[1]


def _split(encoded: Encoded, everything: Packed, counts: Sequence[int]) -> list[Encoded]:
    """What was encoded of all sequences, batch by batch."""
    parts = [
        each.split([int(part.sum()) for part in rows.split(counts)])
        for each, rows in zip(_tensors(encoded), _rows(encoded, everything), strict=True)
    ]
    return [_like(encoded, tensors) for tensors in zip(*parts, strict=True)]


def _join(batches: Sequence[Packed]) -> tuple[Packed, list[int]]:
    return Packed.join(*batches), [len(batch.lengths) for batch in batches]


def _chunks(batch: Packed, size: int) -> Iterator[_Chunk]:
    if not batch.lengths:
        yield _chunk(batch, ())
    else:
        budget = math.ceil(size * len(batch.input_ids) / len(batch.lengths))
        for positions in plan_batches(batch.lengths, budget):
            yield _chunk(batch.take(positions), positions)


def _chunk(batch: Packed, positions: Sequence[int]) -> _Chunk:
    device = batch.input_ids.device
    if not batch.lengths:
        batch = Packed.of([[0]]).to(device)
    return _Chunk(batch, torch.tensor(positions, dtype=torch.long, device=device))


@dataclass(frozen=True)
class _RandomState:
    """State of the generators that dropout draws from: the CPU's and that of the device of a tensor."""

    cpu: Tensor
    device_type: str
    devices: list[int]
    states: list[Tensor]

    @classmethod
    def now(cls, where: Tensor) -> _RandomState:
        devices, states = get_device_states(where)
        return cls(torch.get_rng_state(), where.device.type, list(devices), list(states))

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        set_device_states(self.devices, self.states, device_type=self.device_type)
