"""Reports as an evaluation makes them, of numbers that are made up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bgekit.data.columns import Exclusion
from bgekit.evaluation.report.report import Report
from bgekit.evaluation.results import Comparison, ItemChange, Result
from bgekit.evaluation.tasks.base import Items

KINDS = ("retrieval", "sts", "pair_classification", "reranking", "classification")
METRICS = {
    "retrieval": ("ndcg_at_10", ("ndcg_at_10", "map_at_100", "mrr_at_10", "recall_at_100", "recall_cap_at_100")),
    "sts": ("cosine_spearman", ("cosine_spearman", "cosine_pearson", "euclidean_spearman")),
    "pair_classification": ("max_ap", ("max_ap", "cosine_ap", "cosine_accuracy")),
    "reranking": ("map", ("map", "mrr_at_10")),
    "classification": ("accuracy", ("accuracy", "f1")),
}
TEXTS = (
    "0-dimensional biomaterials show inductive properties.",
    "花呗更改绑定银行卡需要什么条件，怎么才能修改成功？" * 3,
    "<script>alert('x')</script> & \"quotes\" | pipes `code` *stars* \x1b[31mred\x00 \u202eturned",
    "A claim that is longer than any line on any terminal, which happens often in real data sets. " * 4,
)


def make_items(kind: str, count: int, random: np.random.Generator, level: float) -> Items:
    ids, texts = [f"q{place}" for place in range(count)], [TEXTS[place % len(TEXTS)] for place in range(count)]
    if kind in ("sts", "pair_classification"):
        label = random.integers(0, 2, count).astype(float) if kind != "sts" else random.uniform(0, 5, count)
        predicted = np.clip(0.55 + 0.3 * label / label.max() * level + random.normal(0, 0.1, count), -1, 1)
        statistic = "spearman" if kind == "sts" else "average_precision"
        return Items(ids, statistic, {"predicted": predicted, "label": label}, texts)
    value = random.choice([0, 0.39, 0.5, 0.63, 1], count, p=[0.9 - 0.7 * level, 0.1, 0.1, 0.1, 0.7 * level - 0.2])
    return Items(ids, "mean", {"value": value.astype(float)}, texts)


def make_result(
    label: str, task: str, kind: str, *, model: str | None = None, setting: dict[str, Any] | None = None,
    seed: int = 0, count: int = 300, **changed: Any,
) -> Result:  # fmt: skip
    random = np.random.default_rng(seed)
    level = 0.6 + 0.1 * float(np.random.default_rng(len(label) * 7 + seed).uniform())
    main, names = METRICS[kind]
    metrics = {name: float(100 * level - 3 * place) for place, name in enumerate(names)}
    details: dict[str, Any] = {}
    if kind == "retrieval":
        depths = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000]
        recall = (1 - (1 - level) * np.asarray(depths) ** -0.35).tolist()
        details = {
            "recall_curve": {"k": [float(depth) for depth in depths], "recall": recall},
            "scores": {
                "relevant": random.normal(0.78, 0.07, 800).clip(-1, 1).tolist(),
                "other": random.normal(0.5, 0.06, 1000).clip(-1, 1).tolist(),
            },
            "top": {"q0": ["d1", "d2"]},
        }
    elif kind in ("sts", "pair_classification"):
        names_of = ("all",) if kind == "sts" else ("related", "unrelated")
        details = {
            "scores": {name: random.normal(0.75 - 0.1 * n, 0.1, 500).tolist() for n, name in enumerate(names_of)}
        }
    elif kind == "classification":
        details = {"experiments": [61.5, 62.25, 63.0]}
    fields: dict[str, Any] = {
        "model": model or label, "setting": setting or {}, "label": label, "task": task, "kind": kind, "split": "test",
        "language": "en", "main_metric": main, "main_score": metrics[main], "metrics": metrics, "count": count,
        "exclusions": (Exclusion("queries without a relevant document", 2, ("q301", "q<302>")),),
        "published": {"bge-base-en-v1.5": 74.34, "all-MiniLM-L6-v2": 64.51}, "comparable": True,
        "reference": round(metrics[main] + 0.4, 2),
        "card": {
            "name": model or label, "pooling": "cls", "normalize": True, "max_length": 512, "dimension": 384,
            "prompts": {"query": ["Represent this sentence for searching relevant passages: ", ""]},
            "sources": {"pooling": "1_Pooling/config.json"},
        },
        "fingerprints": {"model": hashlib.sha256(label.encode("utf-8", "replace")).hexdigest(), "data": "ab" * 32},
        "seconds": 12.345, "items": make_items(kind, count, random, level), "details": details,
    }  # fmt: skip
    return Result(**{**fields, **changed})


def compare(a: Result, b: Result) -> Comparison:
    difference = a.main_score - b.main_score
    low, high = difference - 1.25, difference + 1.25
    decided = low > 0 or high < 0
    change = [
        ItemChange(f"q{place}", text, 12.5 * place, 100 - 12.5 * place, {"a found": "d<1>", "b found": "文档二"})
        for place, text in enumerate(TEXTS)
    ]
    verdict = "is better than" if difference > 0 else "is worse than"
    conclusion = (
        f"{a.label} {verdict} {b.label} on {a.task}." if decided else f"Nothing can be concluded from {a.task}."
    )
    p, adjusted = (0.0123, 0.0369) if decided else (0.21, 0.63)
    return Comparison(
        a=a.label, b=b.label, task=a.task, split=a.split, metric=a.main_metric, difference=difference, ci_low=low,
        ci_high=high, p_value=p, n=a.count, wins=101, losses=97, ties=a.count - 198,
        statistic=a.items.statistic if a.items else "mean", p_adjusted=adjusted, conclusion=conclusion,
        regressions=tuple(change), improvements=tuple(change[::-1]),
    )  # fmt: skip


def build(labels: Sequence[str], tasks: Sequence[str], **changed: Any) -> Report:
    results, comparisons = [], []
    for place, task in enumerate(tasks):
        kind = KINDS[place % len(KINDS)]
        own = [make_result(label, task, kind, seed=place + 17 * n, **changed) for n, label in enumerate(labels)]
        results += own
        comparisons += [compare(a, b) for n, a in enumerate(own) for b in own[n + 1 :]]
    environment = {
        "versions": {"bgekit": "0.1.0", "torch": "2.8.0", "transformers": "5.3.0"},
        "machine": {"processor": "Some CPU", "cores": 8, "devices": ["cpu"]},
        "time": "2026-11-25T01:20:00+00:00", "seed": 0, "command": "bge eval --data '<data>'", "seconds": 99.5,
    }  # fmt: skip
    return Report(results, comparisons, environment, ["task Missing was not found in <data>"])


@pytest.fixture(scope="session")
def make_report() -> Callable[..., Report]:
    """`make_report(labels, tasks)`: every model on every task, every pair compared."""
    return build


@pytest.fixture(scope="session")
def make_one_result() -> Callable[..., Result]:
    """`make_one_result(label, task, kind, **fields)`."""
    return make_result
