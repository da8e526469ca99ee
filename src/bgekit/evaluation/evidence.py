"""Evidence for a difference of two scores: its interval, and how often chance alone gives as much (p value).

Outcomes of one task are exchanged between models at random (randomisation), the same for every pair of models, so that
all comparisons of a report can be corrected together. docs/statistics.md has the methods and what simulations say of
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import import_extra
from .metrics import MEASURES, ranks, standardised
from .tasks.base import MOST, Items

Doubles: TypeAlias = npt.NDArray[np.float64]
Singles: TypeAlias = npt.NDArray[np.float32]
#: Randomisations of a mean, and the fewest of it in a report of very many comparisons.
MEANS: Final = 10_000
_FEWEST_MEANS: Final = 2_000
#: Numbers kept of the randomisations of all comparisons.
_KEPT: Final = 20_000_000
#: Randomisations of a statistic that has to be computed again from all items each time.
STATISTICS: Final = 2_000
#: What a randomisation may fall short of the observed difference and still count as extreme: rounding.
_SLACK: Final = 1e-5
#: Numbers held at once while randomising.
_CHUNK: Final = 4_000_000
#: The most and the fewest parts that are left out in turn, for the spread of a statistic.
_PARTS: Final = (50, 1_000)


@dataclass(frozen=True)
class Contrast:
    """The score of one model minus that of another on the same items.

    Attributes:
        difference: As a fraction.
        low: Lower end of its 95 % interval; NaN where its spread cannot be known.
        high: Upper end.
        observed: The difference in deviations of what chance makes, 0 where that cannot be known.
        null: [randomisations], the same of exchanged outcomes; each with those of other models on the same items.
        scale: The deviation that chance makes, as a fraction.
        degrees: Degrees of freedom of `scale`; infinite where the randomisations need none.
        p_value: Share of randomisations at least as large, two-sided.
        units: Independent items: those that stand or fall together count as one.
        changed: Independent items on which the two differ.
        doubt: Why no interval can be given, "" if it can.
    """

    difference: float
    low: float
    high: float
    observed: float
    null: Singles
    scale: float
    degrees: float
    p_value: float
    units: int
    changed: int
    doubt: str = ""


def randomisations(comparisons: int) -> int:
    """Number of randomisations of each mean in a report of so many comparisons."""
    return int(np.clip(_KEPT // max(comparisons, 1), _FEWEST_MEANS, MEANS))


def contrasts(pairs: Sequence[tuple[Items, Items]], count: int, random: np.random.Generator) -> list[Contrast]:
    """Every pair of models on one task.

    Args:
        pairs: Items of two models each, the same ids in both.
        count: Randomisations.
        random: Drawn from.
    """
    if not pairs:
        return []
    names: dict[str, int] = {}
    units = [_units(a, names) for a, _ in pairs]
    first = pairs[0][0]
    if "draws" in first.columns or first.overlap:
        return _of_draws(pairs, units, len(names), count, random)
    if first.statistic == "mean":
        return _of_means(pairs, units, len(names), count, random)
    return _of_statistics(pairs, units, len(names), count, random)


def mean_contrast(parts: Sequence[Contrast]) -> Contrast:
    """The mean of the differences on several tasks, whose items are independent of each other.

    The tasks are taken as they are: it says what other items of the same tasks would bring, not what other tasks would.
    """
    count = len(parts)
    difference = sum(part.difference for part in parts) / count
    # Each end is as far away as the tasks' ends, as independent errors add up (Zou and Donner 2008).
    low = difference - math.sqrt(sum((part.difference - part.low) ** 2 for part in parts)) / count
    high = difference + math.sqrt(sum((part.high - part.difference) ** 2 for part in parts)) / count
    squares = [part.scale**2 for part in parts]
    scale = math.sqrt(sum(squares)) / count
    # Tasks are independent, so any randomisation of one goes with any of another.
    null = np.zeros(max(len(part.null) for part in parts), np.float32)
    for part in parts:
        null += np.resize(part.null, len(null)) * np.float32(part.scale / count)
    null /= np.float32(scale or 1)
    spread = sum(square**2 / part.degrees for square, part in zip(squares, parts, strict=True))
    degrees = sum(squares) ** 2 / spread if spread else math.inf
    observed = as_normal(difference / scale, degrees) if scale else 0.0
    units, changed = sum(part.units for part in parts), sum(part.changed for part in parts)
    if not math.isfinite(low + high):
        doubt = "how much it would differ with other items is unknown for one of the tasks"
        return Contrast(difference, math.nan, math.nan, 0.0, null, scale, degrees, 1.0, units, changed, doubt)
    p_value, doubt = _share(null, observed), doubt_of(units, changed)
    # A task with too few items has an end of its own that does not hold; few that differ add up over tasks.
    few = sum(bool(part.doubt) and (part.units < FEWEST_ITEMS or part.changed >= FEWEST_CHANGED) for part in parts)
    if few and not doubt:
        doubt = f"too few items in {few:,} of the tasks"
    return Contrast(difference, low, high, observed, null, scale, degrees, p_value, units, changed, doubt)


def step_down(found: Sequence[Contrast]) -> list[float]:
    """P values corrected for all comparisons together (Westfall and Young 1993, step-down max T).

    The largest difference, in deviations, must be larger than what chance makes the largest of all; the next one than
    what it makes the largest of the others; and so on. What several comparisons share counts once, so it finds more
    than a correction by their number. The chance of any false finding stays below the level.
    """
    if not found:
        return []
    size = np.array([abs(each.observed) for each in found])
    order = np.argsort(-size, kind="stable")
    largest = np.zeros(max(len(each.null) for each in found), np.float32)
    adjusted = np.ones(len(found))
    for place in order[::-1]:
        largest = np.maximum(largest, np.resize(np.abs(found[place].null), len(largest)))
        adjusted[place] = max(_share(largest, size[place]), found[place].p_value)
    adjusted[order] = np.maximum.accumulate(adjusted[order])
    return adjusted.tolist()


def _share(null: Singles, observed: float) -> float:
    """Share of the randomisations and the observed value that is at least as large."""
    extreme = int((np.abs(null) >= abs(observed) - _SLACK * max(1.0, abs(observed))).sum())
    return (1 + extreme) / (1 + len(null))


def _units(items: Items, names: dict[str, int]) -> npt.NDArray[np.int64]:
    """Number of each item's unit [n]: items that stand or fall together are one."""
    keys = items.ids if items.groups is None else [f"group {group}" for group in items.groups]
    return np.array([names.setdefault(key, len(names)) for key in keys], dtype=np.int64)


def _of_means(
    pairs: Sequence[tuple[Items, Items]], units: Sequence[npt.NDArray[np.int64]], total: int, count: int,
    random: np.random.Generator,
) -> list[Contrast]:  # fmt: skip
    gains = [a.columns["value"] - b.columns["value"] for a, b in pairs]
    sums = np.stack([np.bincount(unit, gain, total) for unit, gain in zip(units, gains, strict=True)], axis=1)
    sums[np.abs(sums) < 1e-9] = 0.0
    scales = np.sqrt((sums**2).sum(axis=0))
    scaled = (sums / np.maximum(scales, 1e-300)).astype(np.float32)
    # Models are exchanged together, which keeps what comparisons share.
    null = _signed(scaled, count, random)
    found = []
    for column, ((a, b), unit, gain) in enumerate(zip(pairs, units, gains, strict=True)):
        present, sizes = unit_sizes(unit, total)
        own = sums[present, column]
        effective, changed = effective_units(sizes), int((own != 0).sum())
        low, high = _mean_interval(gain, unit, total)
        if MOST in a.columns:
            high = max(high, _mean_interval(a.columns[MOST] - b.columns["value"], unit, total)[1])
        if MOST in b.columns:
            low = min(low, _mean_interval(a.columns["value"] - b.columns[MOST], unit, total)[0])
        observed = float(own.sum() / scales[column]) if scales[column] else 0.0
        found.append(
            Contrast(
                float(gain.mean()), low, high, observed, null[column], float(scales[column]) / len(gain), math.inf,
                _share(null[column], observed), effective, changed, doubt_of(effective, changed),
            )
        )  # fmt: skip
    return found


def _mean_interval(gain: Doubles, unit: npt.NDArray[np.int64], total: int) -> tuple[float, float]:
    """The 95 % interval of the mean of gains [n], of items that belong to units [n]."""
    present, sizes = unit_sizes(unit, total)
    own, difference = np.bincount(unit, gain, total)[present], float(gain.mean())
    own[np.abs(own) < 1e-9] = 0.0
    share, changed = len(sizes) / len(gain), own[own != 0]
    return interval_of(
        difference + share * (own - difference * sizes), difference, effective_units(sizes) - 1,
        rare=share * math.sqrt(float((changed**2).mean())) if len(changed) else 0.0,
    )  # fmt: skip


def _of_statistics(
    pairs: Sequence[tuple[Items, Items]], units: Sequence[npt.NDArray[np.int64]], total: int, count: int,
    random: np.random.Generator,
) -> list[Contrast]:  # fmt: skip
    """Predictions are replaced by their ranks (for Pearson correlations standardised): scales of models may differ."""
    statistic = pairs[0][0].statistic
    measure = MEASURES[statistic]
    scale = standardised if statistic == "pearson" else ranks
    swapped = coins(min(count, STATISTICS), total, random).astype(bool)
    parts: dict[int, Doubles] = {}
    found = []
    for (a, b), unit in zip(pairs, units, strict=True):
        label = a.columns["label"]
        # The rank correlation of ranks is theirs, too, and the label's never change.
        target = ranks(label) if statistic == "spearman" else label
        left, right = scale(a.columns["predicted"]), scale(b.columns["predicted"])
        difference = float(measure(left, target) - measure(right, target))
        null = np.concatenate([
            _exchanged(statistic, left, right, target, swapped[start : start + step][:, unit])
            for step in (max(1, _CHUNK // (4 * len(label))),)
            for start in range(0, len(swapped), step)
        ])  # fmt: skip
        for items in (a, b):
            if id(items) not in parts:
                parts[id(items)] = _influence(items, unit, total)
        own = parts[id(a)] - parts[id(b)]
        present, sizes = unit_sizes(unit, total)
        effective = effective_units(sizes)
        rarer = effective
        if statistic == "average_precision":
            # It is a mean over the related pairs, so as many count as there are of the rarer kind.
            rarer = min(effective, len(np.unique(unit[label > 0])), len(np.unique(unit[label <= 0])))
        changed = int((np.bincount(unit, np.abs(left - right), total)[present] > 1e-12).sum())
        low, high = interval_of(difference + own, difference, min(rarer, len(own)) - 1)
        deviation = math.sqrt(float((null**2).mean()))
        null = (null / (deviation or 1.0)).astype(np.float32)
        observed = difference / deviation if deviation else 0.0
        found.append(
            Contrast(
                difference, low, high, observed, null, deviation, math.inf, _share(null, observed), effective, changed,
                doubt_of(effective, changed, rarer),
            )
        )  # fmt: skip
    return found


def _exchanged(
    statistic: str, left: Doubles, right: Doubles, target: Doubles, swapped: npt.NDArray[np.bool_]
) -> Doubles:
    """The difference [rows] with predictions exchanged where `swapped` [rows, n] says so."""
    measure = MEASURES["pearson" if statistic == "spearman" else statistic]
    a, b = np.where(swapped, right, left), np.where(swapped, left, right)
    if statistic == "spearman":
        a, b = ranks(a), ranks(b)
    return measure(a, target) - measure(b, target)


def _influence(items: Items, unit: npt.NDArray[np.int64], total: int) -> Doubles:
    """Contribution of each part of the items to the statistic [parts], mean 0: computed without it (jackknife)."""
    measure, predicted, label = MEASURES[items.statistic], items.columns["predicted"], items.columns["label"]
    n = len(label)
    present, _ = unit_sizes(unit, total)
    parts = min(len(present), int(np.clip(_CHUNK // max(n, 1), *_PARTS)))
    # Units are dealt out at random, the same for every model.
    place = np.empty(total, dtype=np.int64)
    place[present] = np.random.default_rng(0).permutation(len(present)) % parts
    part = place[unit]
    whole = float(measure(predicted, label))
    sizes = np.bincount(part, minlength=parts)
    without = np.full(parts, math.nan)
    # Rows of the same length are measured together.
    for size in np.unique(sizes[sizes < n]):
        numbers = np.flatnonzero(sizes == size)
        step = max(1, _CHUNK // (4 * n))
        for few in np.split(numbers, range(step, len(numbers), step)):
            kept = np.nonzero(part != few[:, None])[1].reshape(len(few), -1)
            without[few] = measure(predicted[kept], label[kept])
    added = (n - sizes) * (whole - without) * parts / n
    return added - added.mean()


def _of_draws(
    pairs: Sequence[tuple[Items, Items]], units: Sequence[npt.NDArray[np.int64]], total: int, count: int,
    random: np.random.Generator,
) -> list[Contrast]:  # fmt: skip
    """Evidence where items share a few random draws: of training texts (classification) or of texts (clustering)."""
    if "draws" not in pairs[0][0].columns:
        units, total = [np.zeros(1, np.int64)] * len(pairs), 1
    shares = [_crossed(a, b, unit, total) for (a, b), unit in zip(pairs, units, strict=True)]
    by_item = np.stack([each.by_item for each in shares], axis=1).astype(np.float32)
    by_draw = np.stack([each.by_draw for each in shares], axis=1).astype(np.float32)
    # A sign for each item and a weight for each draw, for all pairs: what their comparisons share stays.
    null = by_draw.T @ random.normal(size=(len(by_draw), count)).astype(np.float32)
    null += _signed(by_item, count, random)
    found = []
    for (a, b), each, chance in zip(pairs, shares, null, strict=True):
        gain = _outcomes(a) - _outcomes(b)
        difference, deviation = float(gain.mean()), each.deviation
        if math.isnan(deviation):
            count_of = gain.shape[1]
            doubt = f"nothing is known of other draws: {count_of} draw{'s' * (count_of != 1)} of the same texts"
            found.append(
                Contrast(
                    difference, math.nan, math.nan, 0.0, chance, 0.0, math.inf, 1.0, each.units, each.changed, doubt
                )
            )  # fmt: skip
            continue
        half = student(each.degrees) * deviation
        observed = as_normal(difference / deviation, each.degrees) if deviation else 0.0
        found.append(
            Contrast(
                difference, difference - half, difference + half, observed, chance, deviation, each.degrees,
                _share(chance, observed), each.units, each.changed, doubt_of(each.units, each.changed),
            )
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class _Crossed:
    """Contributions of items and of draws to the spread of a difference.

    Attributes:
        by_item: [units], the share of each, scaled so that all squares of items and draws together are 1.
        by_draw: [draws], likewise.
        deviation: Deviation of the difference, NaN where nothing is known of other draws.
        degrees: Its degrees of freedom (Satterthwaite).
        units: Independent items.
        changed: Those on which the two differ.
    """

    by_item: Doubles
    by_draw: Doubles
    deviation: float
    degrees: float
    units: int
    changed: int


def _crossed(a: Items, b: Items, unit: npt.NDArray[np.int64], total: int) -> _Crossed:
    """Items and draws as random effects that are crossed.

    Draws that have texts in common vary less among themselves than others would: their spread is widened by their
    overlap (Nadeau and Bengio 2003).
    """
    gain, overlap = _outcomes(a) - _outcomes(b), max(a.overlap, b.overlap)
    draws = gain.shape[1]
    present, sizes = unit_sizes(unit, total)
    n = len(sizes)
    sums = np.stack([np.bincount(unit, column, total)[present] for column in gain.T], axis=1)
    differ = np.abs(sums) > 1e-9
    # A problem of clustering is item and draw in one.
    units, changed = (effective_units(sizes), int(differ.any(axis=1).sum())) if n > 1 else (draws, int(differ.sum()))
    items, across = np.zeros(total), np.zeros(draws)
    if draws < 2 or overlap > 1 - 1e-9:
        return _Crossed(items, across, math.nan, math.inf, units, changed)
    centred = (sums - gain.mean() * sizes[:, None]) * n / len(gain)
    by_item, by_draw = centred.mean(axis=1), centred.mean(axis=0)
    rest = centred - by_item[:, None] - by_draw
    of_items = float((by_item**2).sum()) / max(n - 1, 1) / n
    spread = float((by_draw**2).sum()) / (draws - 1)
    # What differs from draw to draw for single items is not a difference of draws.
    noise = float((rest**2).sum()) / max((n - 1) * (draws - 1), 1) / n
    widened = 1 / draws + overlap / (1 - overlap)
    of_draws = widened * max(spread - noise, 0.0)
    variance = of_items + of_draws
    if not variance:
        return _Crossed(items, across, 0.0, math.inf, units, changed)
    degrees = variance**2 / (of_items**2 / max(units - 1, 1) + (widened * spread) ** 2 / (draws - 1))
    items[present] = by_item * math.sqrt(of_items / variance / max(float((by_item**2).sum()), 1e-300))
    across = by_draw * math.sqrt(of_draws / variance / max(float((by_draw**2).sum()), 1e-300))
    return _Crossed(items, across, math.sqrt(variance), max(degrees, 1.0), units, changed)


def coins(rows: int, columns: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Random zeros and ones [rows, columns], eight from each random byte."""
    octets = random.integers(0, 256, (rows, -(-columns // 8)), dtype=np.uint8)
    return np.unpackbits(octets, axis=1, count=columns)


def _signed(values: Singles, count: int, random: np.random.Generator) -> Singles:
    """Sums [columns, count] of values [units, columns] with random signs, one a unit for all columns."""
    total, columns = values.shape
    sums = np.empty((columns, count), np.float32)
    step = max(1, _CHUNK // total)
    for start in range(0, count, step):
        rows = min(step, count - start)
        signs = coins(rows, total, random).astype(np.float32) * 2 - 1
        sums[:, start : start + rows] = (signs @ values).T
    return sums


def _outcomes(items: Items) -> Doubles:
    """Value of each item in each draw [n, draws]; where the items are draws themselves, [1, draws]."""
    return items.columns["draws"] if "draws" in items.columns else items.columns["value"][None, :]


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
    """Number of units of equal size that these are worth."""
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
        degrees: Degrees of freedom.
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
    """Quantile of Student's distribution for 95 %."""
    special: Any = import_extra("scipy.special", "eval")
    return float(special.stdtrit(degrees, 0.975))


def as_normal(value: float, degrees: float) -> float:
    """A value of Student's distribution as the one of the normal distribution that is as probable."""
    if math.isinf(degrees) or not value:
        return value
    special: Any = import_extra("scipy.special", "eval")
    tail = max(float(special.stdtr(degrees, -abs(value))), 1e-300)
    return math.copysign(-float(special.ndtri(tail)), value)
