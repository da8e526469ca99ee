"""Scores that are no means over items: they are computed anew wherever items are left out or exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import import_extra

Doubles: TypeAlias = npt.NDArray[np.float64]


def ranks(values: Doubles) -> Doubles:
    """Ranks along the last axis as fractions in (0, 1); equal values share theirs."""
    stats: Any = import_extra("scipy.stats", "eval")
    return (stats.rankdata(values, axis=-1) - 0.5) / max(values.shape[-1], 1)


def standardised(values: Doubles) -> Doubles:
    """With mean 0 and deviation 1, which a Pearson correlation does not see."""
    return (values - values.mean()) / max(float(values.std()), 1e-300)


def pearson(predicted: Doubles, label: Doubles) -> Doubles:
    """The correlation along the last axis; 0 where one side has no deviation."""
    x = predicted - predicted.mean(axis=-1, keepdims=True)
    y = label - label.mean(axis=-1, keepdims=True)
    return (x * y).sum(axis=-1) / np.maximum(np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1)), 1e-300)


def spearman(predicted: Doubles, label: Doubles) -> Doubles:
    """The rank correlation along the last axis."""
    return pearson(ranks(predicted), ranks(label))


def average_precision(predicted: Doubles, label: Doubles) -> Doubles:
    """As scikit-learn's, along the last axis: equal scores count together; not a number where nothing is related.

    Args:
        predicted: [..., n].
        label: The same shape, or [n] for all; more than 0 where related.
    """
    order = np.argsort(-predicted, axis=-1, kind="stable")
    scores = np.take_along_axis(predicted, order, axis=-1)
    related = np.take_along_axis(np.broadcast_to(label > 0, predicted.shape), order, axis=-1)
    count = predicted.shape[-1]
    ends = np.ones(scores.shape, dtype=bool)
    ends[..., :-1] = scores[..., 1:] != scores[..., :-1]
    # Of equal scores each gets the place of the last.
    last = np.where(ends, np.arange(count), count)
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    found = np.cumsum(related, axis=-1)
    precision = np.take_along_axis(found, last, axis=-1) / (last + 1)
    with np.errstate(invalid="ignore"):
        return (precision * related).sum(axis=-1) / found[..., -1]


#: By the name that `Items.statistic` has for it.
MEASURES: Final[dict[str, Callable[[Doubles, Doubles], Doubles]]] = {
    "pearson": pearson, "spearman": spearman, "average_precision": average_precision,
}  # fmt: skip
