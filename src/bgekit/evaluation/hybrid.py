"""Weights of a hybrid search, fitted on judged queries, and what they bring for queries that they were not fitted on.

Weights lie on a grid, so everything that fitting asks is asked once: the score of each query at each point of the grid
is computed first (`score_table`), and to fit weights to some of the queries is to find the best column of these rows.
That makes folds and thousands of resamples cheap, and no optimiser can end in the wrong place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from .metrics import Qrels, ranking_metrics

Doubles: TypeAlias = npt.NDArray[np.float64]
#: Parts that queries are dealt into: weights are fitted on all but one, and scored on that one.
FOLDS: Final = 5
#: Steps from 0 to 1 of a weight, by the number of modes: 101, 231, 286 and 126 points.
_STEPS: Final = {2: 100, 3: 20, 4: 10, 5: 5}
#: Means that differ by less are equal: the order of a sum.
_SLACK: Final = 1e-9
#: Ranks looked at beyond those that count, so that equal scores at the cut are told apart by their order.
_MORE: Final = 8


@dataclass(frozen=True)
class Candidates:
    """What any of some modes found for one query.

    Attributes:
        rows: Their rows [n]; of equal scores the earlier counts as better.
        scores: What each mode gives to each, made comparable between queries, [modes, n].
        starts: Where rows are passages, those of one document side by side: place of the first of each document; a
            document counts as its best passage does. None where each row is a document.
    """

    rows: npt.NDArray[np.int64]
    scores: Doubles
    starts: npt.NDArray[np.int64] | None = None

    def weighed(self, weights: Doubles) -> tuple[Doubles, npt.NDArray[np.int64]]:
        """Weighted sums [points, documents] by weights [points, modes], and the row of each document."""
        # Mode by mode: a product of matrices rounds by place, and documents that are alike would come apart.
        scores = sum((weights[:, [mode]] * own for mode, own in enumerate(self.scores)), np.zeros(1))
        if self.starts is None:
            return scores, self.rows
        return np.maximum.reduceat(scores, self.starts, axis=1), self.rows[self.starts]


def weight_grid(modes: int) -> Doubles:
    """Weights [points, modes] that add up to 1, each mode alone among them.

    Raises:
        ArgumentError: there are fewer than two modes, or more than there are.
    """
    if modes not in _STEPS:
        raise ArgumentError(f"a hybrid has 2 to {max(_STEPS)} modes, not {modes}")
    steps = _STEPS[modes]
    parts = [each for each in itertools.product(range(steps + 1), repeat=modes - 1) if sum(each) <= steps]
    first = np.array(parts, dtype=np.float64)
    return np.column_stack([first, steps - first.sum(axis=1)]) / steps


def depth_of_metric(metric: str) -> int:
    """The number of documents that a metric looks at, such as 10 of `ndcg_at_10`.

    Raises:
        ArgumentError: its name says none.
    """
    base, _, digits = metric.rpartition("_at_")
    if not base or not digits.isdecimal():
        raise ArgumentError(
            f"weights are fitted to a metric of the first documents, such as ndcg_at_10, not to {metric}"
        )
    return int(digits)


def score_table(
    queries: Sequence[str], found: Sequence[Candidates], name: Callable[[int], str], qrels: Qrels, metric: str,
    grid: Doubles,
) -> Doubles:  # fmt: skip
    """Score of each query with each of the weights, [queries, points].

    Args:
        queries: Ids of queries.
        found: What was found for each.
        name: The id of the document of a row.
        qrels: Judgements.
        metric: A metric of `ranking_metrics` with its depth, such as `ndcg_at_10`.
        grid: Weights [points, modes].

    Raises:
        ArgumentError: the metric has no depth.
    """
    depth = depth_of_metric(metric)
    table = np.zeros((len(queries), len(grid)))
    run: dict[str, dict[str, float]] = {}
    judged: dict[str, Mapping[str, int]] = {}
    places: list[tuple[int, npt.NDArray[np.bool_]]] = []
    for row, (query, own) in enumerate(zip(queries, found, strict=True)):
        if not len(own.rows):
            continue
        scores, rows = own.weighed(grid)
        # Neighbouring weights mostly give the same ranking, which is measured once.
        rankings, which = np.unique(_best(scores, depth), axis=0, return_inverse=True)
        for number, ranking in enumerate(rows[rankings].tolist()):
            key = f"{row} {number}"
            # Ranks as scores: no two are equal.
            run[key] = {name(place): float(depth - rank) for rank, place in enumerate(ranking)}
            judged[key] = qrels[query]
            places.append((row, which.reshape(-1) == number))
    values = ranking_metrics(judged, run, [depth], judged=frozenset())[metric] if run else np.empty(0)
    for value, (row, points) in zip(values, places, strict=True):
        table[row, points] = value
    return table


def _best(scores: Doubles, depth: int) -> npt.NDArray[np.int64]:
    """The places [points, depth] of the highest of scores [points, n], best first; of equal ones the earlier."""
    count = scores.shape[1]
    wanted = min(depth + _MORE, count)
    some = np.sort(np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted], axis=1)
    order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)[:, : min(depth, count)]


def fitted_point(table: Doubles, grid: Doubles) -> int:
    """The point of the grid with the highest mean score over the queries of a table.

    Of several that are equal it is the one in their middle, which other queries are least likely to move.
    """
    return int(_fitted(table.mean(axis=0)[None], grid)[0])


def _fitted(means: Doubles, grid: Doubles) -> npt.NDArray[np.int64]:
    """The best point for each row of means [rows, points]."""
    best = means >= means.max(axis=1, keepdims=True) - _SLACK
    middle = best @ grid / best.sum(axis=1, keepdims=True)
    apart = ((grid[None] - middle[:, None]) ** 2).sum(axis=2)
    return np.where(best, apart, np.inf).argmin(axis=1)


def promising_point(table: Doubles, grid: Doubles, units: Sequence[int | str]) -> int:
    """The point of the grid that may bring most: the mean gain over the better mode and twice its error are highest.

    Whatever the best weights are for other queries, what they bring lies below the upper end of *their* interval in all
    but 2.5 % of cases, and so below the highest of all points' upper ends, however uncertain it is which weights they
    are. Each mode alone is among the points, so this end is never below 0.

    Args:
        table: Scores [queries, points].
        grid: Weights [points, modes].
        units: What stands or falls together, one for each query.
    """
    alone = grid.argmax(axis=0)
    gains = table - table[:, [alone[table[:, alone].mean(axis=0).argmax()]]]
    names, unit = np.unique(np.asarray(units), return_inverse=True)
    member = np.zeros((len(names), len(table)))
    member[unit, np.arange(len(table))] = 1.0
    mean = gains.mean(axis=0)
    spread = member @ gains - member.sum(axis=1, keepdims=True) * mean
    return int((mean + 2 * np.sqrt((spread**2).sum(axis=0)) / len(table)).argmax())


def deal(units: Sequence[int | str], folds: int = FOLDS, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """A fold for each query [n]: those of one unit, which stand or fall together, are in the same.

    Raises:
        ArgumentError: there are fewer units than folds.
    """
    names: dict[int | str, int] = {}
    unit = np.array([names.setdefault(each, len(names)) for each in units])
    if len(names) < folds:
        raise ArgumentError(
            f"weights are fitted on {folds - 1} parts of the queries and scored on another: that takes at least "
            f"{folds} independent queries, and there are {len(names)}"
        )
    return (np.random.default_rng(seed).permutation(len(names)) % folds)[unit]


@dataclass(frozen=True)
class CrossFit:
    """Weights that were fitted without each fold of the queries.

    Attributes:
        points: Point of the grid for each fold [folds].
        values: Score of each query [n], with the weights that were fitted without its fold.
    """

    points: npt.NDArray[np.int64]
    values: Doubles


def cross_fit(table: Doubles, fold: npt.NDArray[np.int64], grid: Doubles) -> CrossFit:
    """Fit weights on all folds but one, and score them on that one, for each.

    Args:
        table: Scores [queries, points].
        fold: Fold of each query.
        grid: Weights [points, modes].
    """
    folds = int(fold.max()) + 1
    member = np.zeros((folds, len(table)))
    member[fold, np.arange(len(table))] = 1.0
    sums = member @ table
    means = (sums.sum(axis=0) - sums) / (len(table) - member.sum(axis=1))[:, None]
    points = _fitted(means, grid)
    return CrossFit(points, table[np.arange(len(table)), points[fold]])
