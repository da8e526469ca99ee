"""Weights on a grid, fitted and cross-fitted, against plain loops and trec_eval."""

from __future__ import annotations

import numpy as np
import pytest

from bgekit.errors import ArgumentError
from bgekit.evaluation.hybrid import (
    FOLDS,
    Candidates,
    cross_fit,
    deal,
    fitted_point,
    promising_point,
    score_table,
    weight_grid,
)
from bgekit.evaluation.metrics import ranking_metrics
from bgekit.search.fusion import by_weights


def judged(queries: int, documents: int, seed: int = 0):
    """Queries with scores of three modes, of which the first two know something of what is relevant."""
    random = np.random.default_rng(seed)
    names = [f"q{number}" for number in range(queries)]
    found, qrels = [], {}
    for query in names:
        relevant = random.choice(documents, 3, replace=False)
        scores = random.random((3, documents))
        scores[0, relevant] += 0.3 * random.random(3)
        scores[1, relevant] += 0.5 * random.random(3)
        scores[:, random.random(documents) < 0.2] = 0.25  # Documents that no mode tells apart.
        found.append(Candidates(np.arange(documents), scores / scores.max(axis=1, keepdims=True)))
        qrels[query] = {f"d{row}": int(grade) for row, grade in zip(relevant, (1, 1, 2), strict=True)}
    return names, found, qrels


@pytest.mark.parametrize("modes", [2, 3, 4, 5])
def test_a_grid_has_weights_that_add_up_to_1_and_each_mode_alone(modes):
    grid = weight_grid(modes)
    assert grid.sum(axis=1) == pytest.approx(1.0)
    assert (grid >= 0).all() and len(np.unique(grid, axis=0)) == len(grid)
    assert {tuple(row) for row in np.eye(modes)} <= {tuple(row) for row in grid}


def test_a_grid_of_one_mode_is_refused():
    with pytest.raises(ArgumentError, match="2 to 5 modes"):
        weight_grid(1)


@pytest.mark.parametrize("metric", ["ndcg_at_10", "recall_at_5", "mrr_at_3"])
def test_the_score_at_each_point_is_trec_eval_s_of_what_by_weights_finds(metric):
    names, found, qrels = judged(6, 40)
    grid = weight_grid(3)[::7]
    table = score_table(names, found, lambda row: f"d{row}", qrels, metric, grid)
    modes = ("dense", "bm25", "lexical")
    for point, weights in enumerate(grid):
        run = {}
        for query, each in zip(names, found, strict=True):
            lists = {mode: (own, each.rows) for mode, own in zip(modes, each.scores, strict=True)}
            _, rows = by_weights(lists, dict(zip(modes, weights, strict=True)), top_k=10)
            run[query] = {f"d{row}": 10.0 - rank for rank, row in enumerate(rows.tolist())}
        assert table[:, point] == pytest.approx(ranking_metrics(qrels, run, [3, 5, 10])[metric])


def test_of_passages_the_best_counts_for_its_document():
    scores = np.array([[0.2, 0.9, 0.5, 0.1], [0.1, 0.2, 0.3, 1.0]])
    each = Candidates(np.array([4, 4, 7, 9]), scores, np.array([0, 2, 3]))
    sums, rows = each.weighed(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert rows.tolist() == [4, 7, 9]
    assert sums.tolist() == [[0.9, 0.5, 0.1], [0.2, 0.3, 1.0]]
    table = score_table(["q"], [each], str, {"q": {"4": 1}}, "mrr_at_3", np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert table.tolist() == [[1.0, pytest.approx(1 / 3)]]


def test_a_query_of_which_nothing_is_found_scores_0():
    nothing = Candidates(np.empty(0, np.int64), np.empty((2, 0)))
    table = score_table(["q"], [nothing], str, {"q": {"4": 1}}, "ndcg_at_10", weight_grid(2))
    assert not table.any()


def test_a_metric_without_a_depth_is_refused():
    with pytest.raises(ArgumentError, match="such as ndcg_at_10, not to map"):
        score_table([], [], str, {}, "map", weight_grid(2))


def test_of_points_that_are_equally_good_the_middle_one_is_taken():
    grid = weight_grid(2)
    table = np.zeros((3, len(grid)))
    table[:, 40:61] = 0.5
    assert grid[fitted_point(table, grid)].tolist() == [0.5, 0.5]
    table[0, 45] = 0.6
    assert fitted_point(table, grid) == 45


def test_cross_fitting_is_fitting_without_each_fold():
    names, found, qrels = judged(60, 30)
    grid = weight_grid(3)
    table = score_table(names, found, lambda row: f"d{row}", qrels, "ndcg_at_10", grid)
    fold = deal(names)
    crossed = cross_fit(table, fold, grid)
    for number in range(FOLDS):
        point = fitted_point(table[fold != number], grid)
        assert crossed.points[number] == point
        assert crossed.values[fold == number].tolist() == table[fold == number, point].tolist()


def test_queries_that_stand_or_fall_together_share_a_fold():
    units = [number // 3 for number in range(45)]
    fold = deal(units)
    assert all(len({*fold[3 * unit : 3 * unit + 3]}) == 1 for unit in range(15))
    assert sorted(np.bincount(fold)) == [9, 9, 9, 9, 9]
    assert deal(units).tolist() == fold.tolist()


def test_fewer_independent_queries_than_folds_are_refused():
    with pytest.raises(ArgumentError, match="at least 5 independent queries, and there are 4"):
        deal([0, 0, 1, 1, 2, 3])


@pytest.mark.parametrize("units", [list(range(60)), [number // 3 for number in range(60)]])
def test_the_most_that_weights_may_bring_is_the_highest_upper_end_of_all_points(units):
    names, found, qrels = judged(60, 30)
    grid = weight_grid(3)
    table = score_table(names, found, lambda row: f"d{row}", qrels, "ndcg_at_10", grid)
    alone = [int(np.flatnonzero(grid[:, mode] == 1)[0]) for mode in range(3)]
    better = max(alone, key=lambda point: table[:, point].mean())
    ends = []
    for point in range(len(grid)):
        gain = table[:, point] - table[:, better]
        apart = gain - gain.mean()
        together = [sum(apart[row] for row, unit in enumerate(units) if unit == each) for each in set(units)]
        ends.append(gain.mean() + 2 * np.sqrt(np.square(together).sum()) / len(gain))
    most = promising_point(table, grid, units)
    assert ends[most] == pytest.approx(max(ends)) and max(ends) >= 0


def test_weights_that_change_nothing_promise_nothing():
    grid = weight_grid(2)
    table = np.repeat(np.random.default_rng(0).random((20, 1)), len(grid), axis=1)
    table[:, :100] -= 0.1 * np.random.default_rng(1).random((20, 1))
    assert promising_point(table, grid, list(range(20))) == 100  # The better mode alone.
