"""Intervals of differences, and from how many items on one can be given."""

from __future__ import annotations

import math
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import import_extra

Doubles: TypeAlias = npt.NDArray[np.float64]

#: An interval needs so many independent items, and so many of them on which the models differ: with fewer, intervals
#: of skewed or rare gains hold less often than they say (docs/statistics.md).
FEWEST_ITEMS: Final = 50
FEWEST_CHANGED: Final = 10
#: Of fewer contributions nothing is known of their skewness.
_SKEWED: Final = 20


def unit_sizes(unit: npt.NDArray[np.int64], total: int) -> tuple[npt.NDArray[np.int64], Doubles]:
    """The units that are there, and how many items each has."""
    sizes = np.bincount(unit, minlength=total)
    present = np.flatnonzero(sizes)
    return present, sizes[present].astype(np.float64)


def effective_units(sizes: Doubles) -> int:
    """As many units of equal size as these are worth."""
    return round(float(sizes.sum() ** 2 / (sizes**2).sum())) if len(sizes) else 0


def doubt_of(units: int, changed: int, rarer: int | None = None) -> str:
    """Why no interval can be given, "" if one can.

    Args:
        units: Independent items.
        changed: Those on which two models differ.
        rarer: Those with the rarer of two labels, where a score is a mean over these.
    """
    if units < FEWEST_ITEMS:
        return f"too few items ({units:,} independent ones; an interval needs {FEWEST_ITEMS})"
    if rarer is not None and rarer < FEWEST_ITEMS:
        return f"too few items with the rarer label ({rarer:,} independent ones; an interval needs {FEWEST_ITEMS})"
    if changed < FEWEST_CHANGED:
        return f"too few items on which the two differ ({changed:,}; an interval needs {FEWEST_CHANGED})"
    return ""


def interval_of(contributions: Doubles, difference: float, degrees: int, rare: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of a mean of contributions [units]: Student's, with two corrections that only widen it.

    Where few items differ, one more item is counted, half of it a gain and half a loss of the usual size `rare`
    (Agresti and Min 2005). Where contributions are skewed, an end that the skewness moves outwards is moved (Hall
    1992).

    Args:
        contributions: What each unit adds, with the difference as their mean.
        difference: The middle.
        degrees: Of freedom.
        rare: The usual size of a gain where it is not 0; 0 leaves out the first correction.
    """
    n = len(contributions)
    if n < 2 or degrees < 1:
        return math.nan, math.nan
    quantile = student(degrees)
    centred = contributions - difference
    squares = float((centred**2).sum())
    error = math.sqrt(squares / (n - 1) / n)
    middle, half = difference, quantile * error
    if rare:
        middle = difference * n / (n + 1)
        more = float(((contributions - middle) ** 2).sum()) + rare**2 + middle**2
        half = quantile * math.sqrt(more / n / (n + 1))
    low, high = min(middle - half, difference), max(middle + half, difference)
    if n >= _SKEWED and squares > 0:
        skewness = float((centred**3).mean()) / (squares / n) ** 1.5 * math.sqrt(n * (n - 1)) / (n - 2)
        bend, shift = skewness / (3 * math.sqrt(n)), skewness / (6 * math.sqrt(n))
        if abs(bend) > 1e-6:
            ends = [float(np.cbrt(1 + 3 * bend * (end - shift)) - 1) / bend for end in (quantile, -quantile)]
            low, high = min(low, difference - error * ends[0]), max(high, difference - error * ends[1])
    return low, high


def student(degrees: float) -> float:
    """Of Student's distribution, the quantile for 95 %."""
    special: Any = import_extra("scipy.special", "eval")
    return float(special.stdtrit(degrees, 0.975))


def as_normal(value: float, degrees: float) -> float:
    """A value of Student's distribution as the one of the normal distribution that is as probable."""
    if math.isinf(degrees) or not value:
        return value
    special: Any = import_extra("scipy.special", "eval")
    tail = max(float(special.stdtr(degrees, -abs(value))), 1e-300)
    return math.copysign(-float(special.ndtri(tail)), value)
