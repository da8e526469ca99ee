"""Methods of merging (averages, TIES, DARE, SLERP): element by element, in float64, a block of rows at a time.

All formulas are of one tensor. What they need to know of the whole of it (norms, thresholds) is found in a pass of its
own, so that no more than a block of each model is in memory.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError

#: Rows -> these rows in float64, always as a new tensor.
Rows: TypeAlias = Callable[[slice], Tensor]

#: How far a sum of weights may be from 1: as much as rounding to three digits makes.
TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class Stack:
    """One tensor of all models.

    Attributes:
        name: Its name, of which random draws depend.
        blocks: All its rows, in order.
        models: Of each model.
        base: Of the base model, None without.
    """

    name: str
    blocks: Sequence[slice]
    models: Sequence[Rows]
    base: Rows | None = None

    def delta(self, number: int, rows: slice) -> Tensor:
        """Difference of a model to the base."""
        assert self.base is not None
        return self.models[number](rows) - self.base(rows)


@dataclass(frozen=True)
class Method(ABC):
    """A way to merge.

    Attributes:
        weights: Weights of each model.
    """

    weights: tuple[float, ...]
    name: ClassVar[str]
    needs_base: ClassVar[bool] = False

    @abstractmethod
    def combine(self, stack: Stack) -> Iterator[Tensor]:
        """The merged rows of each block, in float64."""


@dataclass(frozen=True)
class Average(Method):
    """Sum of w_i theta_i, for weights that sum to 1 (model soups, LM-Cocktail)."""

    name = "average"

    def combine(self, stack: Stack) -> Iterator[Tensor]:
        """See `Method`."""
        for rows in stack.blocks:
            yield _sum(model(rows).mul_(weight) for model, weight in zip(stack.models, self.weights, strict=True))


@dataclass(frozen=True)
class Slerp(Method):
    """Two models, along the arc between them: sin((1-t) a) / sin(a) theta_0 + sin(t a) / sin(a) theta_1.

    a is the angle between the two tensors, t the weight of the second. Where the arc is no different from the line
    (sin a < 1e-6), or is none (a tensor of zeros), it is their average.
    """

    name = "slerp"

    def __post_init__(self) -> None:
        if len(self.weights) != 2:
            raise ArgumentError(f"slerp merges two models, not {len(self.weights)}")

    def combine(self, stack: Stack) -> Iterator[Tensor]:
        """See `Method`."""
        first, second = stack.models
        dot = squares = others = 0.0
        for rows in stack.blocks:
            x, y = first(rows), second(rows)
            dot += float((x * y).sum())
            squares += float(x.square_().sum())
            others += float(y.square_().sum())
        norms = math.sqrt(squares) * math.sqrt(others)
        angle = math.acos(min(1.0, max(-1.0, dot / norms))) if norms else 0.0
        factors = self.weights
        if math.sin(angle) >= 1e-6:
            factors = tuple(math.sin(weight * angle) / math.sin(angle) for weight in self.weights)
        yield from Average(factors).combine(stack)


@dataclass(frozen=True)
class TaskArithmetic(Method):
    """theta_base + sum of w_i (theta_i - theta_base) (arXiv:2212.04089)."""

    name = "task_arithmetic"
    needs_base = True

    def combine(self, stack: Stack) -> Iterator[Tensor]:
        """See `Method`."""
        assert stack.base is not None
        for rows in stack.blocks:
            deltas = (stack.delta(number, rows).mul_(weight) for number, weight in enumerate(self.weights))
            yield stack.base(rows).add_(_sum(deltas))


@dataclass(frozen=True)
class Ties(Method):
    """Trim, elect a sign, average those that agree with it (arXiv:2306.01708), tensor by tensor.

    Of each model's change only the `density` largest elements are kept (more where equal). The sign of an element is
    that of the weighted sum over models; its change is the weighted mean of the models with this sign.

    Attributes:
        weights: Weights of each model, none negative; equal ones are the method as published.
        density: Share of elements kept.
        scale: The merged change is multiplied by it.
    """

    density: float = 0.2
    scale: float = 1.0
    name = "ties"
    needs_base = True

    def __post_init__(self) -> None:
        _check_density(self.density)
        if any(weight < 0 for weight in self.weights):
            raise ArgumentError(
                f"weights of ties must not be negative: {_listed(self.weights)}; task_arithmetic takes such"
            )

    def combine(self, stack: Stack) -> Iterator[Tensor]:
        """See `Method`."""
        assert stack.base is not None
        numbers = range(len(stack.models))
        least = [
            _threshold(lambda rows, number=number: stack.delta(number, rows), stack.blocks, self.density)  # type: ignore[misc]
            for number in numbers
        ]
        for rows in stack.blocks:
            deltas = [stack.delta(number, rows) for number in numbers]
            for number, delta in enumerate(deltas):
                delta[delta.float().abs() < least[number]] = 0.0
            votes = _sum(delta * weight for delta, weight in zip(deltas, self.weights, strict=True))
            sign = votes.sign()
            total, counted = torch.zeros_like(sign), torch.zeros_like(sign)
            for delta, weight in zip(deltas, self.weights, strict=True):
                agrees = (delta.sign() == sign) & (sign != 0)
                total += torch.where(agrees, delta * weight, 0.0)
                counted += agrees.double() * weight
            mean = torch.where(counted > 0, total / counted.clamp(min=1e-300), votes * 0.0)  # NaN stays NaN.
            yield stack.base(rows).add_(mean, alpha=self.scale)


@dataclass(frozen=True)
class Dare(Method):
    """theta_base + sum of w_i drop(theta_i - theta_base) (arXiv:2311.03099).

    `drop` keeps an element with the probability `density` and divides it by it. Draws depend on the seed, on the
    model's place and on the tensor's name alone.

    Attributes:
        weights: Weights of each model.
        density: Share of elements kept.
        seed: Random seed for the draws.
    """

    density: float = 0.2
    seed: int = 0
    name = "dare"
    needs_base = True

    def __post_init__(self) -> None:
        _check_density(self.density)
        if self.seed < 0:
            raise ArgumentError(f"seed must not be negative, but it is {self.seed}")

    def combine(self, stack: Stack) -> Iterator[Tensor]:
        """See `Method`."""
        assert stack.base is not None
        generators = [drops(self.seed, number, stack.name) for number in range(len(self.weights))]
        for rows in stack.blocks:
            merged = stack.base(rows)
            for number, weight in enumerate(self.weights):
                delta = stack.delta(number, rows)
                kept = torch.from_numpy(generators[number].random(delta.numel()) < self.density).view(delta.shape)
                merged += delta.mul_(kept).mul_(weight / self.density)
            yield merged


METHODS: Final[dict[str, type[Method]]] = {each.name: each for each in (Average, Slerp, TaskArithmetic, Ties, Dare)}


def described(method: Method) -> dict[str, Any]:
    """A method as plain values."""
    return {"method": method.name, **asdict(method)}


def drops(seed: int, number: int, name: str) -> np.random.Generator:
    """A generator that draws the elements of one tensor of a model that DARE keeps."""
    return np.random.default_rng([seed, number, zlib.crc32(name.encode())])


def checked_weights(weights: Sequence[float], count: int, *, normalize: bool = False) -> tuple[float, ...]:
    """Weights of an average, which sum to 1.

    Args:
        weights: As the caller gave them.
        count: Models.
        normalize: Divide them by their sum, whatever it is.

    Raises:
        ArgumentError: a weight is negative or no number, there are too few or too many, or they do not sum to 1.
    """
    found = finite_weights(weights, count)
    if any(weight < 0 for weight in found):
        raise ArgumentError(f"weights of an average must not be negative: {_listed(found)}; task_arithmetic takes such")
    total = math.fsum(found)
    if total <= 0 or (not normalize and abs(total - 1) > TOLERANCE):
        raise ArgumentError(
            f"the weights {_listed(found)} sum to {total:g}, not to 1; normalize=True divides them by their sum"
        )
    # Weights as exact as numbers can be stay as they are: they are shown, and compared with those that were found.
    return found if abs(total - 1) < 1e-12 else tuple(weight / total for weight in found)


def finite_weights(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """The weights, checked: finite, and as many as there are models.

    Raises:
        ArgumentError: they are not.
    """
    found = tuple(float(weight) for weight in weights)
    if len(found) != count:
        raise ArgumentError(f"{len(found)} weights for {count} models: give one for each")
    if not all(map(math.isfinite, found)):
        raise ArgumentError(f"weights must be finite numbers, not {_listed(found)}")
    return found


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise ArgumentError(f"density must be above 0 and at most 1, not {density:g}")


def _sum(tensors: Iterator[Tensor]) -> Tensor:
    # Not from zero on, which would turn -0.0 into 0.0.
    total = next(tensors)
    for tensor in tensors:
        total += tensor
    return total


def _threshold(read: Rows, blocks: Sequence[slice], density: float) -> float:
    """The least magnitude (float32) among the `density` largest of a tensor."""
    width = read(blocks[0])[0].numel()
    sizes = np.empty(blocks[-1].stop * width, dtype=np.float32)
    for rows in blocks:
        sizes[rows.start * width : rows.stop * width] = read(rows).float().abs().flatten().numpy()
    wanted = max(1, math.ceil(density * len(sizes)))
    sizes.partition(len(sizes) - wanted)
    return float(sizes[len(sizes) - wanted])
