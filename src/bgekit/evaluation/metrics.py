"""Metrics of rankings: those of trec_eval through pytrec_eval, and the ones it lacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import import_extra

#: Relevance of documents by query and document.
Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
#: Scores of retrieved documents by query and document.
Run: TypeAlias = Mapping[str, Mapping[str, float]]
PerQuery: TypeAlias = dict[str, npt.NDArray[np.float64]]
#: Depths that MTEB reports.
DEPTHS: Final = (1, 3, 5, 10, 20, 100, 1000)
#: Metrics that pytrec_eval computes: by its name, the one that MTEB reports.
TREC_NAMES: Final = {"ndcg_cut": "ndcg", "map_cut": "map", "recall": "recall", "P": "precision", "success": "hit_rate"}

#: Metrics as people write them, by their names without the depth.
_METRICS: Final = {
    "ndcg": "nDCG", "map": "MAP", "mrr": "MRR", "recall": "Recall", "precision": "Precision", "hit_rate": "Hit rate",
    "recall_cap": "Capped recall", "hole": "Holes", "accuracy": "Accuracy", "f1": "F1", "v_measure": "V-measure",
    "cosine_spearman": "Spearman", "cosine_pearson": "Pearson", "max_ap": "Average precision",
    "cosine_ap": "Average precision",
}  # fmt: skip


def ranking_metrics(
    qrels: Qrels, run: Run, depths: Sequence[int] = DEPTHS, *, judged: AbstractSet[str] | None = None
) -> PerQuery:
    """Metrics of each query of a run, in the order of the run.

    `ndcg_at_k` (gain = relevance, discount log2(rank + 1)), `map_at_k`, `recall_at_k`, `precision_at_k` and
    `hit_rate_at_k` are trec_eval's. Added are `mrr_at_k` (reciprocal rank of the first relevant document, 0 below k),
    `recall_cap_at_k` (relevant ones among the first k, divided by min(k, relevant ones): BEIR's for TREC-COVID) and
    `hole_at_k` (share of the first k that nobody judged for any query: BEIR's). Documents of equal score are ranked by
    id, the later in string order first, as trec_eval does.

    Args:
        qrels: Judgements; 0 or less means not relevant.
        run: Retrieved documents with their scores; each query must be in `qrels`.
        depths: The k.
        judged: Documents with a judgement, over all queries; by default those of `qrels`.

    Returns:
        An array [queries] for each metric.

    Raises:
        MissingExtraError: pytrec_eval is not installed.
    """
    pytrec_eval: Any = import_extra("pytrec_eval", "eval")
    cuts = ",".join(map(str, depths))
    wanted = {f"{name}.{cuts}" for name in TREC_NAMES}
    judgements = {query: dict(qrels[query]) for query in run}
    evaluated = pytrec_eval.RelevanceEvaluator(judgements, wanted).evaluate(
        {q: dict(found) for q, found in run.items()}
    )
    values: PerQuery = {}
    for trec, name in TREC_NAMES.items():
        for depth in depths:
            # A query without any retrieved document is missing from pytrec_eval's answer: it scores 0.
            column = [evaluated.get(query, {}).get(f"{trec}_{depth}", 0.0) for query in run]
            values[f"{name}_at_{depth}"] = np.asarray(column, dtype=np.float64)
    if judged is None:
        judged = {document for judgement in qrels.values() for document in judgement}
    rankings = {query: ranking(found, max(depths)) for query, found in run.items()}
    for depth in depths:
        values |= {f"{name}_at_{depth}": np.zeros(len(run)) for name in ("mrr", "recall_cap", "hole")}
    for row, (query, ranked) in enumerate(rankings.items()):
        relevant = {document for document, relevance in qrels[query].items() if relevance > 0}
        hits = np.asarray([document in relevant for document in ranked], dtype=bool)
        holes = np.asarray([document not in judged for document in ranked], dtype=bool)
        first = int(hits.argmax()) + 1 if hits.any() else 0
        for depth in depths:
            values[f"mrr_at_{depth}"][row] = 1 / first if 0 < first <= depth else 0.0
            values[f"recall_cap_at_{depth}"][row] = hits[:depth].sum() / max(min(depth, len(relevant)), 1)
            values[f"hole_at_{depth}"][row] = holes[:depth].sum() / depth
    return values


def ranking(found: Mapping[str, float], depth: int) -> list[str]:
    """The best documents of one query, best first; equal scores by id, the later first, as in trec_eval."""
    return sorted(found, key=lambda document: (found[document], document), reverse=True)[:depth]


Doubles: TypeAlias = npt.NDArray[np.float64]


def ranks(values: Doubles) -> Doubles:
    """Ranks along the last axis as fractions in (0, 1); equal values share theirs."""
    stats: Any = import_extra("scipy.stats", "eval")
    return (stats.rankdata(values, axis=-1) - 0.5) / max(values.shape[-1], 1)


def standardised(values: Doubles) -> Doubles:
    """Values brought to mean 0 and deviation 1, which a Pearson correlation does not see."""
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
    """scikit-learn's average precision, along the last axis: equal scores count together; NaN where nothing is related.

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


def metric_name(name: str) -> str:
    """A metric as people write it, such as nDCG@10; unknown ones as they are."""
    base, _, depth = name.partition("_at_")
    known = _METRICS.get(base, base if re.fullmatch(r"\d+", depth) else None)
    return name if known is None else f"{known}@{depth}" if depth else known


def task_and_metric(name: str) -> tuple[str, str]:
    """A score's task and its metric as people write it: "SciFact" and "nDCG@10" of `SciFact_ndcg_at_10`.

    Of a name without a known metric the task is "" and the metric the name with spaces.
    """
    starts = [each for each, letter in enumerate(name) if letter == "_"]
    # Known metrics first: a task's name may have underscores, too.
    for known in (True, False):
        for start in starts:
            task, metric = name[:start], name[start + 1 :]
            if metric.partition("_at_")[0] in _METRICS if known else metric_name(metric) != metric:
                return task, metric_name(metric)
    return "", name.replace("_", " ")
