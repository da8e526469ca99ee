"""From the weights of several models to files with those of one, tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, NumericalError
from ..models.card import DenseLayer
from ..models.saving import write_json
from .agreement import Kind
from .methods import Average, Method, Rows, Stack
from .sources import Source, is_unused
from .tensors import Stored, write_safetensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Combined:
    """One tensor of the result and where it comes from.

    Attributes:
        stored: Its type and shape: the first model's.
        models: The tensor of each model; the first's alone, and no base, where another does not have it.
        base: The base model's.
    """

    stored: Stored
    models: Sequence[Stored]
    base: Stored | None = None


def combined_weights(sources: Sequence[Source], base: Source | None, kind: Kind) -> dict[str, Combined]:
    """Which tensors are merged, by the first model's names.

    Raises:
        CheckpointError: a weight is missing in a model, or has another shape or kind of number there.
    """
    first, everyone = sources[0], [*sources[1:], *([base] if base is not None else [])]
    found = {}
    used: list[set[str]] = [set() for _ in everyone]
    for name, stored in first.tensors.items():
        theirs = [source.find(name) for source in everyone]
        if lacking := [source.name for source, own in zip(everyone, theirs, strict=True) if own is None]:
            if not _optional(name, kind):
                raise CheckpointError(f"{lacking[0]} has no weight {name}, which {first.name} has")
            logger.info("%s is taken from %s: %s has no such weight", name, first.name, lacking[0])
            found[name] = Combined(stored, [stored])
            continue
        names = [own for own in theirs if own is not None]
        for seen, own in zip(used, names, strict=True):
            seen.add(own)
        tensors = [source.tensors[own] for source, own in zip(everyone, names, strict=True)]
        _check_alike(name, first, stored, everyone, tensors)
        models = [stored, *tensors[: len(sources) - 1]]
        found[name] = Combined(stored, models, tensors[-1] if base is not None else None)
    for source, seen in zip(everyone, used, strict=True):
        extra = [name for name in source.tensors if name not in seen and first.find(name) is None]
        if wrong := [name for name in extra if not _optional(name, kind)]:
            raise CheckpointError(f"{first.name} has no weight {wrong[0]}, which {source.name} has")
    return found


def write_weights(weights: Mapping[str, Combined], method: Method, first: Source, folder: Path) -> None:
    """Write merged weights as safetensors, in as many files as the first model has.

    Args:
        weights: What `combined_weights` found.
        method: How they are merged.
        first: The first model.
        folder: Where to.

    Raises:
        NumericalError: a merged weight is NaN or infinite, or too large for the type that it is stored in.
        OSError: the files cannot be written.
    """
    places: dict[str, str] = {}
    for file, names in first.files.items():
        target = file.name.replace("pytorch_model", "model").removesuffix(file.suffix) + ".safetensors"
        stored = {name: weights[name].stored for name in names}
        write_safetensors(folder / target, stored, lambda name: merged_blocks(name, weights[name], method))
        places |= dict.fromkeys(names, target)
    if len(first.files) > 1:
        total = sum(each.stored.rows * each.stored.width * each.stored.dtype.itemsize for each in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)


def merged_dense(
    sources: Sequence[Source], base: Source | None, layers: Sequence[Sequence[DenseLayer]], method: Method
) -> list[dict[str, Tensor]]:
    """`weight` and `bias` of each dense layer behind the pooling, merged.

    Args:
        sources: The models.
        base: The base model; where it lacks a head, as a bare encoder does, the heads are averaged.
        layers: The dense layers of each model, and of the base if there is one.
        method: How they are merged.
    """
    everyone = [*sources, *([base] if base is not None else [])]
    heads = []
    for number, _ in enumerate(layers[0]):
        own = [source.dense(each[number]) for source, each in zip(everyone, layers, strict=True) if number < len(each)]
        way, with_base = (method, base is not None) if len(own) == len(everyone) else (_equal(sources), False)
        head = {}
        for name, stored in own[0].items():
            tensors = [each[name] for each in own]
            _check_alike(f"dense layer {number}, {name}", sources[0], stored, everyone[1 : len(own)], tensors[1:])
            one = Combined(stored, tensors[: len(sources)], tensors[-1] if with_base else None)
            blocks = list(merged_blocks(f"dense.{number}.{name}", one, way))
            head[name] = torch.cat(blocks).reshape(stored.shape)
        heads.append(head)
    return heads


def merged_blocks(name: str, weight: Combined, method: Method) -> Iterator[Tensor]:
    """The merged rows of a tensor, block by block, in the type that it is stored in.

    Raises:
        NumericalError: a value is NaN or infinite, or too large for the type.
    """
    stored, blocks = weight.stored, weight.stored.blocks()
    if not stored.dtype.is_floating_point:
        yield from _unchanged(name, weight)
        return
    if len(weight.models) < len(method.weights) or (method.needs_base and weight.base is None):
        for rows in blocks:
            yield stored.read(rows).to(stored.dtype)
        return
    base = None if weight.base is None else _wide(weight.base)
    stack = Stack(name, blocks, [_wide(model) for model in weight.models], base)
    for block in method.combine(stack):
        merged = block.to(stored.dtype)
        if not bool(torch.isfinite(merged).all()):
            raise NumericalError(
                f"the merged {name} has values that are NaN or infinite as {str(stored.dtype).removeprefix('torch.')}: "
                "a model is damaged, or its weights are too far from the others'"
            )
        yield merged


def _unchanged(name: str, weight: Combined) -> Iterator[Tensor]:
    """Whole numbers, such as positions, are not averaged."""
    differs = False
    for rows in weight.stored.blocks():
        block = weight.stored.read(rows)
        differs |= any(not torch.equal(block, model.read(rows)) for model in weight.models[1:])
        yield block
    if differs:
        logger.warning("%s holds whole numbers in which the models differ: the first model's are taken", name)


def _check_alike(name: str, first: Source, stored: Stored, others: Sequence[Source], tensors: Sequence[Stored]) -> None:
    for source, tensor in zip(others, tensors, strict=True):
        if tensor.shape != stored.shape:
            raise CheckpointError(
                f"{name} has the shape {list(stored.shape)} in {first.name} and {list(tensor.shape)} in {source.name}"
            )
        if tensor.dtype != stored.dtype and not (tensor.dtype.is_floating_point and stored.dtype.is_floating_point):
            raise CheckpointError(
                f"{name} is stored as {stored.dtype} in {first.name} and as {tensor.dtype} in {source.name}"
            )


def _optional(name: str, kind: Kind) -> bool:
    return is_unused(name) if kind == "encoder" else name.endswith("position_ids")


def _wide(stored: Stored) -> Rows:
    return lambda rows: stored.read(rows).to(torch.float64, copy=True)


def _equal(sources: Sequence[Source]) -> Average:
    return Average((1 / len(sources),) * len(sources))
