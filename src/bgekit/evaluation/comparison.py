"""Comparison of two models: paired tests on the same items, with intervals and the items behind them."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, NumericalError
from .evidence import Contrast, contrasts, mean_contrast, randomisations, step_down
from .metrics import metric_name, ranks
from .results import Comparison, ItemChange, Result
from .tasks.base import MOST, Items

if TYPE_CHECKING:
    from .tasks.base import Task

Doubles: TypeAlias = npt.NDArray[np.float64]

#: Items listed on each side.
LISTED: Final = 10
#: Below this probability a difference counts as real.
LEVEL: Final = 0.05


def compare_all(
    results: Sequence[Result], tasks: dict[tuple[str, str], Task], *, seed: int = 0, count: int | None = None
) -> list[Comparison]:
    """Every pair of models or settings on every task, and on the mean over tasks where there are several.

    All p values are corrected together: the chance that any of the differences that count as real is none stays below
    5 %, however many models and tasks there are.

    Args:
        results: Their `items` are compared.
        tasks: Tasks by name and split; they explain single items.
        seed: Random seed for the randomisations.
        count: How many; by default 10,000, fewer for very many comparisons and for scores that are not means.

    Returns:
        Those of the tasks, then, for pairs that were measured on all of them, those of the means (`over_tasks`).

    Raises:
        ArgumentError: two results are not of the same items.
        NumericalError: a score, or what an item adds to it, is not a number.
    """
    by_task = {
        key: list(itertools.combinations([each for each in results if (each.task, each.split) == key], 2))
        for key in tasks
    }
    labels = list(dict.fromkeys(result.label for result in results))
    if count is None:
        count = randomisations(sum(map(len, by_task.values())) + len(labels) * (len(labels) - 1) // 2)
    found: list[tuple[Comparison, Contrast]] = []
    by_pair: dict[tuple[str, str], list[tuple[Comparison, Contrast]]] = {}
    for key, pairs in by_task.items():
        for each in _compared(pairs, count, seed, tasks[key]):
            found.append(each)
            by_pair.setdefault((each[0].a, each[0].b), []).append(each)
    if len(tasks) > 1:
        found += [_over_tasks(each) for each in by_pair.values() if len(each) == len(tasks)]
    adjusted = step_down([contrast for _, contrast in found])
    return [
        replace(
            comparison, p_adjusted=p, together=len(found), conclusion=_conclusion(comparison, contrast, p, len(found))
        )
        for (comparison, contrast), p in zip(found, adjusted, strict=True)
    ]  # fmt: skip


def compare(a: Result, b: Result, task: Task | None = None, *, seed: int = 0, count: int | None = None) -> Comparison:
    """Two models on the same items.

    The p value is that of a two-sided randomisation test: which model the outcome of an item (of a group of items that
    stand or fall together) belongs to is drawn at random. Scores that are not means (correlations, average precision)
    are computed again from each randomisation; for those, predictions are replaced by their ranks first (for Pearson
    correlations they are standardised), so that two models' scales may differ. Of scores from draws of training texts,
    the draws count as random, too. docs/statistics.md says how intervals are made and when there is none.

    Args:
        a: One result.
        b: Another on the same data.
        task: Explains single items.
        seed: Random seed for the randomisations.
        count: How many; by default as `compare_all`.

    Raises:
        ArgumentError: the two are not of the same items.
        NumericalError: a score, or what an item adds to it, is not a number.
    """
    ((comparison, contrast),) = _compared([(a, b)], count or randomisations(1), seed, task)
    (p,) = step_down([contrast])
    return replace(comparison, p_adjusted=p, conclusion=_conclusion(comparison, contrast, p, 1))


def _compared(
    pairs: Sequence[tuple[Result, Result]], count: int, seed: int, task: Task | None
) -> list[tuple[Comparison, Contrast]]:
    """Pairs of results on one task."""
    if not pairs:
        return []
    measured = [(a, b, *_common_items(a, b)) for a, b in pairs]
    first = pairs[0][0]
    # Each task has its own: randomisations of different tasks must not go together.
    random = np.random.default_rng([seed, zlib.crc32(f"{first.task}\0{first.split}".encode())])
    found = contrasts([(own, other) for _, _, own, other in measured], count, random)
    return [
        (_comparison(a, b, own, other, contrast, task), contrast)
        for (a, b, own, other), contrast in zip(measured, found, strict=True)
    ]


def _common_items(a: Result, b: Result) -> tuple[Items, Items]:
    """The items that both have: a text may be no item for a model that scores all its parts alike.

    Raises:
        ArgumentError: the two were not measured on the same items.
    """
    kept = [items for items in (a.items, b.items) if items is not None]
    if len(kept) == 2 and list(kept[0].ids) != list(kept[1].ids):
        common = set(kept[0].ids) & set(kept[1].ids)
        kept = [_those_of(items, [row for row, item in enumerate(items.ids) if item in common]) for items in kept]
    if (
        len(kept) < 2
        or not len(kept[0].ids)
        or list(kept[0].ids) != list(kept[1].ids)
        or kept[0].statistic != kept[1].statistic
        or kept[0].columns.keys() - {MOST} != kept[1].columns.keys() - {MOST}
    ):
        raise ArgumentError(f"{a.label} and {b.label} were not measured on the same items of {a.task}")
    for result, items in ((a, kept[0]), (b, kept[1])):
        _check_numbers(result, items)
    return kept[0], kept[1]


def _check_numbers(result: Result, items: Items) -> None:
    """See to it that a score is a number, and so is what each item adds to it: of others nothing can be concluded.

    Raises:
        NumericalError: one is not.
    """
    if not math.isfinite(result.main_score):
        raise NumericalError(
            f"{result.label} on {result.task}: {result.main_metric} is {result.main_score}, not a number"
        )
    for name, column in items.columns.items():
        if len(wrong := np.flatnonzero(~np.isfinite(column.reshape(len(items.ids), -1)).all(axis=1))):
            raise NumericalError(
                f"{result.label} on {result.task}: the {name} of {len(wrong):,} items is not a number, first of "
                f"{items.ids[wrong[0]]!r}: nothing can be compared with it"
            )


def _those_of(items: Items, rows: list[int]) -> Items:
    return replace(
        items,
        ids=[items.ids[row] for row in rows],
        columns={name: column[rows] for name, column in items.columns.items()},
        texts=[items.texts[row] for row in rows] if items.texts else (),
        groups=[items.groups[row] for row in rows] if items.groups is not None else None,
    )


def _comparison(a: Result, b: Result, own: Items, other: Items, contrast: Contrast, task: Task | None) -> Comparison:
    values_a, values_b = item_values(own), item_values(other)
    gain = values_a - values_b
    even = np.abs(gain) < 1e-9
    order = np.argsort(gain, kind="stable")
    worse = [int(row) for row in order[:LISTED] if gain[row] < 0 and not even[row]]
    better = [int(row) for row in order[::-1][:LISTED] if gain[row] > 0 and not even[row]]
    listed = task.explain([own.ids[row] for row in (*worse, *better)], a.details, b.details) if task else {}

    def changes(rows: list[int]) -> tuple[ItemChange, ...]:
        return tuple(
            ItemChange(
                own.ids[row], own.texts[row] if own.texts else "", 100 * float(values_a[row]),
                100 * float(values_b[row]), listed.get(own.ids[row], {}),
            )
            for row in rows
        )  # fmt: skip

    low, high, doubt = _ends(contrast)
    if a.fingerprints.get("model") and a.fingerprints == b.fingerprints and not gain.any():
        # The same model on the same data: no other items could tell it from itself.
        low, high, doubt = 0.0, 0.0, ""
    return Comparison(
        a=a.label, b=b.label, task=a.task, split=a.split, metric=a.main_metric,
        difference=100 * contrast.difference, ci_low=low, ci_high=high, doubt=doubt, p_value=contrast.p_value,
        n=len(gain), units=contrast.units, wins=int((gain > 0)[~even].sum()), losses=int((gain < 0)[~even].sum()),
        ties=int(even.sum()), statistic=own.statistic, regressions=changes(worse), improvements=changes(better),
    )  # fmt: skip


def _over_tasks(parts: Sequence[tuple[Comparison, Contrast]]) -> tuple[Comparison, Contrast]:
    """The mean over tasks of two models."""
    contrast = mean_contrast([each for _, each in parts])
    first, gains = parts[0][0], [each.difference for each, _ in parts]
    low, high, doubt = _ends(contrast)
    comparison = Comparison(
        a=first.a, b=first.b, task=f"the mean over {len(parts)} tasks", split="", metric="main score",
        difference=100 * contrast.difference, ci_low=low, ci_high=high, doubt=doubt, p_value=contrast.p_value,
        n=sum(each.n for each, _ in parts), units=contrast.units, wins=sum(gain > 0 for gain in gains),
        losses=sum(gain < 0 for gain in gains), ties=gains.count(0), statistic="mean",
        over_tasks=len(parts),
    )  # fmt: skip
    return comparison, contrast


def _ends(contrast: Contrast) -> tuple[float | None, float | None, str]:
    """The ends of the interval x100, or none and why."""
    if contrast.doubt:
        return None, None, contrast.doubt
    return 100 * contrast.low, 100 * contrast.high, ""


def item_values(items: Items) -> Doubles:
    """Value of each item [n], from 0 to 1.

    For means it is the item's own value. For correlations it is 1 minus the distance of the item's rank by prediction
    to its rank by label, for average precision its rank from the end it belongs to, both as fractions of all items.
    """
    if items.statistic == "mean":
        return items.columns["value"]
    predicted, label = ranks(items.columns["predicted"]), items.columns["label"]
    if items.statistic == "average_precision":
        return np.where(label > 0, predicted, 1 - predicted)
    return 1 - np.abs(predicted - ranks(label))


def _conclusion(comparison: Comparison, contrast: Contrast, p: float, count: int) -> str:
    """The conclusion in words, with its limits."""
    a, b, task, metric = comparison.a, comparison.b, comparison.task, metric_name(comparison.metric)
    found = f"{comparison.difference:+.2f}"
    if comparison.ci_low is None or comparison.ci_high is None:
        between = f"no interval: {comparison.doubt}"
    else:
        between = f"a - b lies between {comparison.ci_low:+.2f} and {comparison.ci_high:+.2f}"
    chance = f"p {'<' if p < 0.001 else '='} {max(p, 0.001):.3f}" + (
        f", corrected for {count:,} comparisons" if count > 1 else ""
    )
    if comparison.wins + comparison.losses == 0 and comparison.difference == 0:
        return f"{a} and {b} do the same on every {'task' if comparison.over_tasks else f'item of {task}'}."
    if math.isnan(contrast.low):
        only = "for which only one number per model is known" if comparison.n < 2 else contrast.doubt
        return f"{a} and {b} differ by {found} points of {metric} on {task}, {only}: nothing can be concluded from it."
    if p < LEVEL:
        better, worse, side = (a, b, 1) if comparison.difference > 0 else (b, a, -1)
        points = f"{abs(comparison.difference):.2f} points of {metric}"
        if comparison.ci_low is not None and comparison.ci_high is not None:
            ends = sorted((side * comparison.ci_low, side * comparison.ci_high))
            between = f"95 % interval {ends[0]:.2f} to {ends[1]:.2f}"
        return f"{better} is better than {worse} on {task}: {points} ({chance}; {between})."
    if comparison.ci_low is None or comparison.ci_high is None:
        return (
            f"No difference between {a} and {b} can be concluded from {task} ({chance}): {found} was found; "
            f"{between}. Nor can it be concluded that they are equal."
        )
    reach = (comparison.ci_high - comparison.ci_low) / 2
    return (
        f"No difference between {a} and {b} can be concluded from {task} ({chance}): with {comparison.n:,} items only "
        f"differences of about {reach:.1f} points show, and {found} was found. Nor can it be concluded that they are "
        f"equal: {between}."
    )
