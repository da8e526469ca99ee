"""Is one model better than another? Paired tests on the same items, with intervals and the items behind them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, import_extra
from .results import Comparison, ItemChange, Result

if TYPE_CHECKING:
    from .task import Items, Task

Doubles: TypeAlias = npt.NDArray[np.float64]

#: Resamples of a mean, and of a statistic that has to be computed anew from all items each time.
MEANS: Final = 10_000
STATISTICS: Final = 1_000
#: More of the latter where hardly one of the first was as extreme, so that corrected p values can get small.
MORE_STATISTICS: Final = 4_000
#: Items listed on each side.
LISTED: Final = 10
#: Below this probability a difference counts as real.
LEVEL: Final = 0.05
_FEW: Final = 5
#: Numbers held at once while resampling.
_CHUNK: Final = 4_000_000


def compare_all(results: Sequence[Result], tasks: dict[tuple[str, str], Task], *, seed: int = 0) -> list[Comparison]:
    """Every pair of models or settings on every task, with p values corrected for how many there are.

    Args:
        results: Their `items` are compared.
        tasks: By name and split; they explain single items.
        seed: Of the resampling.
    """
    found: list[tuple[Comparison, Result, Result]] = []
    for key, task in tasks.items():
        own = [result for result in results if (result.task, result.split) == key]
        found += [(compare(a, b, task, seed=seed), a, b) for a, b in itertools.combinations(own, 2)]
    families: dict[tuple[str, str], list[int]] = {}
    for number, (comparison, _, _) in enumerate(found):
        families.setdefault((comparison.a, comparison.b), []).append(number)
    concluded = [comparison for comparison, _, _ in found]
    # Whether one model is better than another has as many chances to be wrong as there are tasks.
    for members in families.values():
        for number, p in zip(members, holm([found[each][0].p_value for each in members]), strict=True):
            comparison, a, b = found[number]
            text = _conclusion(comparison, p, len(members), a, b)
            concluded[number] = replace(comparison, p_adjusted=p, conclusion=text)
    return concluded


def compare(a: Result, b: Result, task: Task | None = None, *, seed: int = 0) -> Comparison:
    """Two models on the same items.

    The interval (95 %) is the percentile bootstrap over items, the p value that of a two-sided randomisation test:
    which model an item's outcome belongs to is drawn at random. Scores that are no means (correlations, average
    precision) are computed anew from each resample; for those, predictions are replaced by their ranks first (for
    Pearson correlations they are standardised), so that two models' scales may differ.

    Args:
        a: One result.
        b: Another on the same data.
        task: Explains single items.
        seed: Of the resampling.

    Raises:
        ArgumentError: the two are not of the same items.
    """
    a, b = _on_common_items(a, b)
    if (
        a.items is None
        or b.items is None
        or list(a.items.ids) != list(b.items.ids)
        or a.items.statistic != b.items.statistic
    ):
        raise ArgumentError(f"{a.label} and {b.label} were not measured on the same items of {a.task}")
    random = np.random.default_rng(seed)
    resampled = _means if a.items.statistic == "mean" else _statistics
    difference, draws, p_value = resampled(a.items, b.items, random)
    low, high = np.quantile(draws, [0.025, 0.975])
    values_a, values_b = item_values(a.items), item_values(b.items)
    gain = values_a - values_b
    even = np.abs(gain) < 1e-9
    order = np.argsort(gain, kind="stable")
    worse = [int(row) for row in order[:LISTED] if gain[row] < 0 and not even[row]]
    better = [int(row) for row in order[::-1][:LISTED] if gain[row] > 0 and not even[row]]
    listed = task.explain([a.items.ids[row] for row in (*worse, *better)], a.details, b.details) if task else {}

    def changes(rows: list[int]) -> tuple[ItemChange, ...]:
        ids, texts = a.items.ids, a.items.texts  # type: ignore[union-attr]
        return tuple(
            ItemChange(
                ids[row], texts[row] if texts else "", 100 * float(values_a[row]), 100 * float(values_b[row]),
                listed.get(ids[row], {}),
            )
            for row in rows
        )  # fmt: skip

    return Comparison(
        a=a.label, b=b.label, task=a.task, split=a.split, metric=a.main_metric,
        difference=100 * difference, ci_low=100 * float(low), ci_high=100 * float(high), p_value=p_value,
        n=len(gain), wins=int((gain > 0)[~even].sum()), losses=int((gain < 0)[~even].sum()), ties=int(even.sum()),
        statistic=a.items.statistic, regressions=changes(worse), improvements=changes(better),
    )  # fmt: skip


def _on_common_items(a: Result, b: Result) -> tuple[Result, Result]:
    """Two results with the items that both have: a text may be no item for a model that scores all its parts alike."""
    if a.items is None or b.items is None or list(a.items.ids) == list(b.items.ids):
        return a, b
    common = set(a.items.ids) & set(b.items.ids)
    if not common:
        return a, b
    kept = []
    for result in (a, b):
        items = result.items
        assert items is not None
        rows = [row for row, item in enumerate(items.ids) if item in common]
        columns = {name: column[rows] for name, column in items.columns.items()}
        texts = [items.texts[row] for row in rows] if items.texts else ()
        kept.append(
            replace(result, items=replace(items, ids=[items.ids[row] for row in rows], columns=columns, texts=texts))
        )
    return kept[0], kept[1]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979): the chance of any false finding stays below the level."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def item_values(items: Items) -> Doubles:
    """How well each item [n] was done, from 0 to 1.

    For means it is the item's own value. For correlations it is 1 minus the distance of the item's rank by prediction
    to its rank by label, for average precision its rank from the end it belongs to, both as fractions of all items.
    """
    if items.statistic == "mean":
        return items.columns["value"]
    predicted, label = _ranks(items.columns["predicted"]), items.columns["label"]
    if items.statistic == "average_precision":
        return np.where(label > 0, predicted, 1 - predicted)
    return 1 - np.abs(predicted - _ranks(label))


def _means(a: Items, b: Items, random: np.random.Generator) -> tuple[float, Doubles, float]:
    """Difference of the means, its bootstrap draws, its p value."""
    gain = a.columns["value"] - b.columns["value"]
    n = len(gain)
    observed = float(gain.mean())
    if not gain.any():
        return 0.0, np.zeros(1), 1.0
    draws, extreme = np.empty(MEANS), 0
    step = max(1, _CHUNK // n)
    for first in range(0, MEANS, step):
        count = min(step, MEANS - first)
        draws[first : first + count] = gain[random.integers(0, n, (count, n))].mean(axis=1)
        signs = random.integers(0, 2, (count, n), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ gain) / n >= abs(observed) - 1e-12).sum())
    return observed, draws, (1 + extreme) / (1 + MEANS)


def _statistics(a: Items, b: Items, random: np.random.Generator) -> tuple[float, Doubles, float]:
    """The same for a statistic of prediction and label."""
    measure, label = _MEASURES[a.statistic], a.columns["label"]
    scale = _standardised if a.statistic == "pearson" else _ranks
    left, right = scale(a.columns["predicted"]), scale(b.columns["predicted"])
    observed = measure(left, label) - measure(right, label)
    n = len(label)
    if np.array_equal(left, right):
        return 0.0, np.zeros(1), 1.0
    draws = np.empty(STATISTICS)
    for number in range(STATISTICS):
        rows = random.integers(0, n, n)
        draws[number] = measure(left[rows], label[rows]) - measure(right[rows], label[rows])
    extreme, count = 0, 0
    while count < STATISTICS or (extreme < _FEW and count < MORE_STATISTICS):
        swapped = random.integers(0, 2, n, dtype=np.int8).astype(bool)
        mixed_a, mixed_b = np.where(swapped, right, left), np.where(swapped, left, right)
        extreme += int(abs(measure(mixed_a, label) - measure(mixed_b, label)) >= abs(observed) - 1e-12)
        count += 1
    # A resample may hold one label only, where nothing can be measured.
    kept = draws[np.isfinite(draws)]
    return observed, kept if len(kept) else np.zeros(1), (1 + extreme) / (1 + count)


def _standardised(values: Doubles) -> Doubles:
    """With mean 0 and deviation 1, which a Pearson correlation does not see."""
    return (values - values.mean()) / max(float(values.std()), 1e-300)


def _ranks(values: Doubles) -> Doubles:
    """Ranks as fractions in (0, 1), equal values share theirs."""
    stats: Any = import_extra("scipy.stats", "eval")
    return (stats.rankdata(values) - 0.5) / max(len(values), 1)


def _pearson(predicted: Doubles, label: Doubles) -> float:
    x, y = predicted - predicted.mean(), label - label.mean()
    return float(x @ y / max(float(np.sqrt((x @ x) * (y @ y))), 1e-300))


def _spearman(predicted: Doubles, label: Doubles) -> float:
    return _pearson(_ranks(predicted), _ranks(label))


def _average_precision(predicted: Doubles, label: Doubles) -> float:
    """As scikit-learn's: precision at each threshold, weighted by the recall it adds; equal scores count together."""
    order = np.argsort(-predicted, kind="stable")
    found, ordered = np.cumsum(label[order] > 0), predicted[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    if not found[-1]:
        return float("nan")
    precision = found[ends] / (ends + 1)
    return float((np.diff(found[ends], prepend=0) * precision).sum() / found[-1])


_MEASURES: Final[dict[str, Callable[[Doubles, Doubles], float]]] = {
    "pearson": _pearson, "spearman": _spearman, "average_precision": _average_precision,
}  # fmt: skip


def _conclusion(comparison: Comparison, p: float, count: int, a: Result, b: Result) -> str:
    """What can and cannot be concluded."""
    between = f"between {comparison.ci_low:+.2f} and {comparison.ci_high:+.2f}"
    chance = f"p {'<' if p < 0.001 else '='} {max(p, 0.001):.3f}" + (
        f", corrected for {count} comparisons" if count > 1 else ""
    )
    if comparison.wins + comparison.losses == 0 and comparison.difference == 0:
        return f"{a.label} and {b.label} do the same on every item of {a.task}."
    if comparison.n < 2:
        return (
            f"{a.label} and {b.label} differ by {comparison.difference:+.2f} points of {comparison.metric} on "
            f"{a.task}, of which only one number each is known: nothing can be concluded from it."
        )
    if p < LEVEL:
        better, worse = (a, b) if comparison.difference > 0 else (b, a)
        return (
            f"{better.label} is better than {worse.label} on {a.task}: {abs(comparison.difference):.2f} points of "
            f"{comparison.metric} ({chance}; a - b lies {between})."
        )
    reach = (comparison.ci_high - comparison.ci_low) / 2
    return (
        f"No difference between {a.label} and {b.label} can be concluded from {a.task} ({chance}): with "
        f"{comparison.n:,} items only differences of about {reach:.1f} points show, and {comparison.difference:+.2f} "
        f"was found. Nor can it be concluded that they are equal: a - b lies {between}."
    )
