"""Ranking metrics against formulas written out here, which share no code with the package."""

import math
import random

import numpy as np
import pytest

from bgekit.evaluation.metrics import metric_name, ranking, ranking_metrics, task_and_metric

DEPTHS = (1, 3, 10, 100)


def brute_force(qrel: dict[str, int], found: dict[str, float], judged: set[str], k: int) -> dict[str, float]:
    ranked = sorted(found, key=lambda document: (found[document], document), reverse=True)
    gains = [max(qrel.get(document, 0), 0) for document in ranked]
    ideal = sorted((max(gain, 0) for gain in qrel.values()), reverse=True)
    relevant = sum(gain > 0 for gain in qrel.values())
    hits = [gain > 0 for gain in gains]
    dcg = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:k]))
    best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal[:k]))
    precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(min(k, len(hits))) if hits[rank]]
    first = hits.index(True) + 1 if True in hits else math.inf
    return {
        "ndcg": dcg / best if best else 0.0,
        "map": sum(precisions) / relevant if relevant else 0.0,
        "recall": sum(hits[:k]) / relevant if relevant else 0.0,
        "precision": sum(hits[:k]) / k,
        "hit_rate": float(any(hits[:k])),
        "mrr": 1 / first if first <= k else 0.0,
        "recall_cap": sum(hits[:k]) / max(min(k, relevant), 1),
        "hole": sum(document not in judged for document in ranked[:k]) / k,
    }


def test_every_metric_equals_its_formula():
    pick = random.Random(0)
    documents = [f"d{number}" for number in range(60)]
    qrels, run = {}, {}
    for query in map(str, range(40)):
        qrels[query] = {document: pick.choice([0, 1, 1, 2]) for document in pick.sample(documents, pick.randint(1, 12))}
        # Few different scores, so that many are equal.
        found = pick.sample(documents, pick.choice([0, 2, 40]))
        run[query] = {document: pick.choice([0.0, 0.25, 0.5, 1.0]) for document in found}
    values = ranking_metrics(qrels, run, DEPTHS)
    judged = {document for judgement in qrels.values() for document in judgement}
    for row, query in enumerate(run):
        for k in DEPTHS:
            for name, expected in brute_force(qrels[query], run[query], judged, k).items():
                assert values[f"{name}_at_{k}"][row] == pytest.approx(expected, abs=1e-12), (name, k, query)


def test_a_perfect_and_a_hopeless_run():
    qrels = {"q": {"a": 2, "b": 1}, "r": {"a": 1}}
    values = ranking_metrics(qrels, {"q": {"a": 2.0, "b": 1.0}, "r": {"z": 1.0}}, [10])
    assert values["ndcg_at_10"].tolist() == [1.0, 0.0]
    assert values["hole_at_10"].tolist() == [0.0, 0.1]


def test_a_query_that_found_nothing_counts_as_zero():
    values = ranking_metrics({"q": {"a": 1}}, {"q": {}}, [10])
    assert values["ndcg_at_10"].tolist() == [0.0]


def test_equal_scores_rank_the_later_id_first():
    assert ranking({"a": 1.0, "c": 1.0, "b": 2.0}, 2) == ["b", "c"]


def test_negative_relevance_is_not_relevant():
    values = ranking_metrics({"q": {"a": -1, "b": 1}}, {"q": {"a": 2.0, "b": 1.0}}, [1, 10])
    assert np.allclose(values["mrr_at_10"], 0.5)
    assert values["recall_cap_at_1"].tolist() == [0.0]


def test_names_of_metrics_and_of_scores_as_people_write_them():
    assert [metric_name(name) for name in ("ndcg_at_10", "map", "recall_at_100", "odd")] == [
        "nDCG@10", "MAP", "Recall@100", "odd",
    ]  # fmt: skip
    assert task_and_metric("a_task_ndcg_at_10") == ("a_task", "nDCG@10")
    assert task_and_metric("some_thing") == ("", "some thing")
