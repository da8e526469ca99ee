"""Do the statistics of a report keep what they promise? Simulations with the functions that reports use.

    python benchmarks/simulations.py                       # everything, 2,000 repetitions: about 25 minutes on 2 cores
    python benchmarks/simulations.py --only pairs --repetitions 200
    python benchmarks/simulations.py --out tables.md

Each section prints tables in markdown. A rate is judged within its own 95 % Monte Carlo interval (Wilson's): a promise
counts as kept ("yes") unless that whole interval lies on the wrong side of it. docs/statistics.md has the tables.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simulate_calibration

from bgekit.evaluation import JudgedModel
from bgekit.evaluation.comparison import compare, compare_all
from bgekit.evaluation.evidence import contrasts
from bgekit.evaluation.results import Comparison, Result
from bgekit.evaluation.tasks.base import Items, Task
from bgekit.evaluation.tasks.classification import ClassificationTask
from bgekit.evaluation.tasks.clustering import ClusteringTask

Doubles = npt.NDArray[np.float64]
#: Two models' items and what their scores differ by in truth.
Pair = tuple[Items, Items, float]
Sampler = Callable[[np.random.Generator, int], Pair]

LEVEL = 0.05
#: Of each comparison. Reports make ten times as many of means and twice as many of statistics; a test with fewer holds
#: its level as well and finds slightly less.
RANDOMISATIONS = 999
#: Repetitions that one process does at a time.
_BATCH = 50


# ---------------------------------------------------------------------------------------------------- distributions


def of_means(a: Doubles, b: Doubles, truth: float, groups: Sequence[int] | None = None) -> Pair:
    """Items whose score is the mean of their values."""
    ids = list(map(str, range(len(a))))
    return Items(ids, "mean", {"value": a}, (), groups), Items(ids, "mean", {"value": b}, (), groups), truth


def continuous(gain: float) -> Sampler:
    """Values with a common part and normal noise of each model."""

    def draw(random: np.random.Generator, n: int) -> Pair:
        base = random.normal(size=n)
        return of_means(base + 0.5 * random.normal(size=n) + gain, base + 0.5 * random.normal(size=n), gain)

    return draw


def skewed(gain: float, spread: float = 0.7) -> Sampler:
    """The same with noise of a log-normal distribution (skewness 2.9; 6.2 at a spread of 1), whose mean is 0."""

    def draw(random: np.random.Generator, n: int) -> Pair:
        noise = np.exp(spread * random.normal(size=n)) - math.exp(spread**2 / 2)
        return of_means(noise + gain, np.zeros(n), gain)

    return draw


#: nDCG@10 of queries with one relevant document at ranks 1, 2, 3, 5 and below 10, and how often each is.
_LEVELS = np.array([1.0, 0.63, 0.5, 0.39, 0.0])
_OFTEN = np.array([0.4, 0.1, 0.1, 0.1, 0.3])


def ndcg(shift: float, changed: float = 0.3) -> Sampler:
    """Few levels of nDCG; a share of the queries is ranked anew by the second model, which misses more of them."""
    other = _OFTEN + shift * np.array([-1, 0, 0, 0, 1])

    def draw(random: np.random.Generator, n: int) -> Pair:
        a = random.choice(_LEVELS, n, p=_OFTEN)
        b = np.where(random.random(n) < changed, random.choice(_LEVELS, n, p=other), a)
        return of_means(a, b, changed * float(_LEVELS @ (_OFTEN - other)))

    return draw


def binary(gains: float, losses: float) -> Sampler:
    """Hits and misses with many ties: shares of items on which one model is right and the other wrong."""

    def draw(random: np.random.Generator, n: int) -> Pair:
        u = random.random(n)
        right = (random.random(n) < 0.7).astype(np.float64)
        a = np.where(u < gains, 1.0, np.where(u < gains + losses, 0.0, right))
        b = np.where(u < gains, 0.0, np.where(u < gains + losses, 1.0, right))
        return of_means(a, b, gains - losses)

    return draw


def paragraphs(gain: float, size: int = 4) -> Sampler:
    """Questions in groups on one paragraph, which they are found by together: n is that of the groups."""

    def draw(random: np.random.Generator, n: int) -> Pair:
        groups = np.repeat(np.arange(n), random.integers(1, 2 * size, n))
        shared = random.normal(size=(2, n))[:, groups]
        a, b = shared + 0.5 * random.normal(size=(2, len(groups)))
        return of_means(a + gain, b, gain, groups.tolist())

    return draw


def similarities(
    random: np.random.Generator, n: int, strength: tuple[float, float]
) -> tuple[Doubles, Doubles, Doubles]:
    """Labels [n] and similarities of two models [n], correlated with them and with each other."""
    label, shared = random.normal(size=(2, n))

    def model(share: float) -> Doubles:
        noise = 0.7 * shared + math.sqrt(0.51) * random.normal(size=n)
        return share * label + math.sqrt(1 - share**2) * noise

    return label, model(strength[0]), model(strength[1])


def of_statistic(statistic: Any, label: Doubles, a: Doubles, b: Doubles, truth: float) -> Pair:
    """Items whose score is computed anew from all of them."""
    ids = list(map(str, range(len(label))))
    columns = [{"predicted": each, "label": label} for each in (a, b)]
    return Items(ids, statistic, columns[0]), Items(ids, statistic, columns[1]), truth


def correlation(first: float, second: float) -> Sampler:
    """Spearman's correlation with ratings of 26 steps; each model's similarities, at its own strength."""

    def labels(hidden: Doubles) -> Doubles:
        return np.floor(np.clip(1.3 * hidden + 2.5, 0, 5) * 5) / 5

    truth = _true_difference("spearman", labels, (first, second))

    def draw(random: np.random.Generator, n: int) -> Pair:
        hidden, a, b = similarities(random, n, (first, second))
        return of_statistic("spearman", labels(hidden), a, b, truth)

    return draw


def precision(first: float, second: float) -> Sampler:
    """Average precision where 31 % of the pairs are related."""

    def labels(hidden: Doubles) -> Doubles:
        return (hidden > 0.5).astype(np.float64)

    truth = _true_difference("average_precision", labels, (first, second))

    def draw(random: np.random.Generator, n: int) -> Pair:
        hidden, a, b = similarities(random, n, (first, second))
        return of_statistic("average_precision", labels(hidden), a, b, truth)

    return draw


def _true_difference(statistic: str, labels: Callable[[Doubles], Doubles], strength: tuple[float, float]) -> float:
    """The difference on a million pairs."""
    from bgekit.evaluation.metrics import MEASURES

    if strength[0] == strength[1]:
        return 0.0
    hidden, a, b = similarities(np.random.default_rng(0), 1_000_000, strength)
    return float(MEASURES[statistic](a, labels(hidden)) - MEASURES[statistic](b, labels(hidden)))


# ------------------------------------------------------------------------------------ tasks whose items share draws


class Vectors(JudgedModel):
    """A model whose vectors are given by text: tasks are scored as they are with a checkpoint."""

    def __init__(self, table: dict[str, npt.NDArray[np.float32]]) -> None:
        self._table = table

    def plain(self, texts: Sequence[str], kind: Any, task: str) -> npt.NDArray[np.float32]:
        """Their vectors."""
        return np.stack([self._table[text] for text in texts])


def noisy_vectors(
    random: np.random.Generator, texts: Sequence[str], labels: Sequence[str], distance: float, dimension: int = 16
) -> Vectors:
    """Vectors around a centre for each label, with noise of their own: two calls are equally good models."""
    centres = {label: np.eye(dimension)[place] * distance for place, label in enumerate(sorted(set(labels)))}
    vectors = np.stack([centres[label] for label in labels]) + random.normal(size=(len(texts), dimension))
    return Vectors(dict(zip(texts, vectors.astype(np.float32), strict=True)))


def classification(
    tests: int, pool: int, *, labels: int = 2, better: float = 0.0, main_metric: str = "accuracy"
) -> Callable[[np.random.Generator], Pair]:
    """The project's own classification task on synthetic vectors: draws of training texts, fitted classifiers.

    Args:
        tests: Texts to classify.
        pool: Texts of each label to draw 8 from.
        labels: How many.
        better: How much further apart the labels of the first model are.
        main_metric: Of the task.
    """
    names = [f"label {number}" for number in range(labels)]
    train = [f"train {number}" for number in range(labels * pool)]
    texts = [f"test {number}" for number in range(tests)]
    train_labels, truth = ([names[n % labels] for n in range(len(each))] for each in (train, texts))
    task = ClassificationTask(
        name="t", train_texts=train, train_labels=train_labels, texts=texts, labels=truth, main_metric=main_metric
    )

    def draw(random: np.random.Generator) -> Pair:
        found = [
            task.score(noisy_vectors(random, [*train, *texts], [*train_labels, *truth], 2.0 + more)).items
            for more in (better, 0.0)
        ]
        return found[0], found[1], 0.0 if not better else math.nan

    return draw


def clustering(problems: int, overlap: bool) -> Callable[[np.random.Generator], Pair]:
    """The project's own clustering task: problems of 60 texts from a pool of their own, or all from the same 120."""

    def draw(random: np.random.Generator) -> Pair:
        pool = [f"text {number}" for number in range(120 if overlap else 60 * problems)]
        labels = [f"label {number % 3}" for number in range(len(pool))]
        chosen = [
            random.choice(len(pool), 60, replace=False) if overlap else np.arange(60 * p, 60 * (p + 1))
            for p in range(problems)
        ]
        sets = [([pool[row] for row in rows], [labels[row] for row in rows]) for rows in chosen]
        task = ClusteringTask(name="t", sets=sets)
        a, b = (task.score(noisy_vectors(random, pool, labels, 3.0)).items for _ in range(2))
        return a, b, 0.0

    return draw


# -------------------------------------------------------------------------------------------------------- measuring


def result(label: str, items: Items, task: str = "t") -> Result:
    """A result as an evaluation makes it."""
    return Result(
        model=label, setting={}, label=label, task=task, kind="retrieval", split="test", language="",
        main_metric="score", main_score=0.0, metrics={}, count=len(items.ids), exclusions=(), published={},
        comparable=True, reference=None, card={}, fingerprints={"model": label}, seconds=0.0, items=items,
    )  # fmt: skip


def compared(pair: Pair, seed: int) -> Comparison:
    """What a report says of two models on one task."""
    return compare(result("a", pair[0]), result("b", pair[1]), seed=seed, count=RANDOMISATIONS)


@dataclass
class Outcome:
    """What came of a repetition: what `count` counts."""

    given: bool
    covered: bool
    rejected: bool
    t_rejected: bool = False


def judged(pair: Pair, seed: int) -> Outcome:
    """Whether an interval was given, held the truth, and whether a difference was found; beside the paired t test."""
    found, truth = compared(pair, seed), 100 * pair[2]
    given = found.ci_low is not None and found.ci_high is not None
    covered = given and found.ci_low - 1e-9 <= truth <= found.ci_high + 1e-9
    return Outcome(given, covered, found.p_value < LEVEL, paired_t(pair[0], pair[1]) < LEVEL)


def paired_t(a: Items, b: Items) -> float:
    """P value of the t test over items as if they were independent; 1 where the score is no mean."""
    from scipy.stats import t

    if a.statistic != "mean":
        return 1.0
    gain = a.columns["value"] - b.columns["value"]
    spread = gain.std(ddof=1)
    return float(2 * t.sf(abs(gain.mean()) / spread * math.sqrt(len(gain)), len(gain) - 1)) if spread else 1.0


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate."""
    if not count:
        return 0.0, 1.0
    z, rate = 1.959964, hits / count
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def at_most(hits: int, count: int, limit: float) -> str:
    """Whether a rate keeps below a limit, as far as so many repetitions can tell."""
    return "yes" if wilson(hits, count)[0] <= limit else "**no**"


def at_least(hits: int, count: int, limit: float) -> str:
    """Whether a rate reaches a limit."""
    return "yes" if wilson(hits, count)[1] >= limit else "**no**"


def shown(hits: int, count: int) -> str:
    """A rate with its interval, in per cent."""
    low, high = wilson(hits, count)
    return f"{100 * hits / count:.1f} ({100 * low:.1f} to {100 * high:.1f})" if count else "-"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In markdown; all columns but the first are aligned to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def repeated(case: Callable[[np.random.Generator, int], Any], count: int, workers: int) -> list[Any]:
    """A case as often as asked, each time with a seed of its own, on several processes."""
    starts = range(0, count, _BATCH)
    if workers < 2:
        return [each for start in starts for each in _batch(case, start, count)]
    # Forked, so that the cases need not be pickled: they are closures.
    import multiprocessing

    _CASES.append(case)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(_batch_of_last, starts, [count] * len(starts)))
    _CASES.pop()
    return [each for batch in found for each in batch]


_CASES: list[Callable[[np.random.Generator, int], Any]] = []


def _batch_of_last(start: int, count: int) -> list[Any]:
    return _batch(_CASES[-1], start, count)


def _batch(case: Callable[[np.random.Generator, int], Any], start: int, count: int) -> list[Any]:
    return [case(np.random.default_rng([17, seed]), seed) for seed in range(start, min(start + _BATCH, count))]


# --------------------------------------------------------------------------------------------------------- sections


def pairs(repetitions: int, workers: int) -> Iterator[str]:
    """Two models on one task: false findings without a difference, power with one, and what intervals hold."""
    null: list[tuple[str, Sampler, int]] = [
        ("continuous, normal", continuous(0.0), 50), ("continuous, normal", continuous(0.0), 300),
        ("nDCG, few levels", ndcg(0.0, 0.4), 50), ("nDCG, few levels", ndcg(0.0), 300),
        ("binary, 80 % ties", binary(0.1, 0.1), 50), ("binary, 90 % ties", binary(0.05, 0.05), 300),
        ("Spearman, 0.8", correlation(0.8, 0.8), 50), ("Spearman, 0.5", correlation(0.5, 0.5), 100),
        ("average precision", precision(0.7, 0.7), 170), ("groups of 1 to 7 questions", paragraphs(0.0), 75),
    ]  # fmt: skip
    alternative: list[tuple[str, Sampler, int]] = [
        ("continuous, normal", continuous(0.3), 50), ("continuous, normal", continuous(0.12), 300),
        ("continuous, log-normal", skewed(0.3), 50), ("continuous, log-normal", skewed(0.15), 300),
        ("nDCG, few levels", ndcg(0.2, 0.5), 50), ("nDCG, few levels", ndcg(0.2), 300),
        ("binary, 25 % gains, 5 % losses", binary(0.25, 0.05), 50), ("binary, 30 % gains", binary(0.3, 0.0), 50),
        ("binary, 10 % gains, 4 % losses", binary(0.1, 0.04), 300),
        ("Spearman, 0.80, 0.65", correlation(0.8, 0.65), 50),
        ("Spearman, 0.85, 0.50", correlation(0.85, 0.5), 100), ("average precision", precision(0.8, 0.6), 170),
        ("groups of 1 to 7 questions", paragraphs(0.4), 75),
    ]  # fmt: skip
    for title, cases, power in (("Two equal models", null, False), ("Two models that differ", alternative, True)):
        rows = []
        for name, sampler, n in cases:
            found = repeated(lambda r, s, d=sampler, n=n: judged(d(r, n), s), repetitions, workers)
            count, given, held = len(found), sum(each.given for each in found), sum(each.covered for each in found)
            hits, other = sum(each.rejected for each in found), sum(each.t_rejected for each in found)
            mean = sampler(np.random.default_rng(0), 10)[0].statistic == "mean"
            rows.append([
                name, f"{n}", shown(hits, count), *([] if power else [at_most(hits, count, LEVEL)]),
                f"{100 * other / count:.1f}" if mean else "-", f"{100 * given / count:.1f}", shown(held, given),
                at_least(held, given, 1 - LEVEL),
            ])  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
        head = ["distribution", "items", "p < 0.05, %", *([] if power else ["at most 5 %"]), "paired t test, %"]
        head += ["interval given, %", "holds, % of those", "at least 95 %"]
        yield f"### {title}\n\n" + table(head, rows)


def few(repetitions: int, workers: int) -> Iterator[str]:
    """What intervals would hold that reports do not give: those from few items."""
    cases = [
        ("continuous, normal", continuous(0.3)), ("continuous, log-normal, skewness 2.9", skewed(0.3)),
        ("continuous, log-normal, skewness 6.2", skewed(0.3, 1.0)),
        ("nDCG, few levels, half changed", ndcg(0.2, 0.5)), ("binary, 30 % gains", binary(0.3, 0.0)),
        ("binary, 10 % gains, 10 % losses", binary(0.1, 0.1)), ("Spearman, 0.85, 0.50", correlation(0.85, 0.5)),
        ("average precision (n are the related pairs)", precision(0.8, 0.6)),
    ]  # fmt: skip

    def held(pair: Pair, seed: int) -> tuple[bool, bool]:
        (found,) = contrasts([pair[:2]], 1, np.random.default_rng(seed))
        low, high = percentiles(pair[0], pair[1], np.random.default_rng(seed))
        return found.low - 1e-9 <= pair[2] <= found.high + 1e-9, low - 1e-9 <= pair[2] <= high + 1e-9

    ours, others = [], []
    for name, sampler in cases:
        rows = [name], [name]
        for n in (10, 20, 30, 50):
            # 31 % of the pairs are related.
            items = round(n / 0.31) if "related" in name else n
            found = repeated(lambda r, s, d=sampler, n=items: held(d(r, n), s), repetitions, workers)
            for place, row in enumerate(rows):
                row.append(f"{100 * sum(each[place] for each in found) / len(found):.1f}")
        ours.append(rows[0])
        if sampler(np.random.default_rng(0), 10)[0].statistic == "mean":
            others.append(rows[1])
        print(*rows, file=sys.stderr, flush=True)
    head = ["distribution", "10", "20", "30", "50"]
    yield "### Intervals from few items hold, in %\n\n" + table(head, ours)
    yield "### Percentile bootstrap intervals, to compare with, hold, in %\n\n" + table(head, others)


def percentiles(a: Items, b: Items, random: np.random.Generator) -> tuple[float, float]:
    """The usual bootstrap interval of a difference of means; nothing where the score is no mean."""
    if a.statistic != "mean":
        return math.nan, math.nan
    gain = a.columns["value"] - b.columns["value"]
    means = gain[random.integers(0, len(gain), (RANDOMISATIONS, len(gain)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def rare(repetitions: int, workers: int) -> Iterator[str]:
    """Where gains are rare: how often an interval is given and does not hold."""
    cases = [
        ("2 % gains", binary(0.02, 0.0)), ("2 % gains, 2 % losses", binary(0.02, 0.02)),
        ("5 % gains", binary(0.05, 0.0)), ("10 % gains", binary(0.1, 0.0)),
        ("8 % gains, 2 % losses", binary(0.08, 0.02)), ("nDCG, 5 % changed", ndcg(0.2, 0.05)),
        ("nDCG, 10 % changed", ndcg(0.2, 0.1)), ("nDCG, 20 % changed", ndcg(0.2, 0.2)),
    ]  # fmt: skip
    rows = []
    for name, sampler in cases:
        for n in (50, 100, 300):
            found = repeated(lambda r, s, d=sampler, n=n: judged(d(r, n), s), repetitions, workers)
            given = sum(each.given for each in found)
            wrong = given - sum(each.covered for each in found)
            rows.append(
                [name, f"{n}", shown(given, len(found)), shown(wrong, len(found)), at_most(wrong, len(found), 0.05)]
            )
            print(rows[-1], file=sys.stderr, flush=True)
    yield "### Rare gains\n\n" + table(
        ["distribution", "items", "an interval is given, %", "given and wrong, %", "at most 5 %"], rows
    )


def draws(repetitions: int, workers: int) -> Iterator[str]:
    """Tasks whose items share draws, through the project's own tasks: two models of one distribution."""
    cases: list[tuple[str, Callable[[np.random.Generator], Pair]]] = [
        ("classification, 100 texts, 100 a label to draw from", classification(100, 100)),
        ("classification, 500 texts, 100 a label to draw from", classification(500, 100)),
        ("classification, 500 texts, 16 a label to draw from", classification(500, 16)),
        ("classification, macro F1, 300 texts, 3 labels, 50 each", classification(300, 50, labels=3, main_metric="f1")),
        ("clustering, 8 problems of their own texts", clustering(8, overlap=False)),
        ("clustering, 8 problems of the same 120 texts", clustering(8, overlap=True)),
    ]
    rows = []
    for name, draw in cases:
        found = repeated(lambda r, s, d=draw: judged(d(r), s), repetitions, workers)
        n, given, held = len(found), sum(each.given for each in found), sum(each.covered for each in found)
        hits, other = sum(each.rejected for each in found), sum(each.t_rejected for each in found)
        rows.append([
            name, shown(hits, n), at_most(hits, n, 0.05), shown(other, n), shown(held, given),
            at_least(held, given, 0.95) if given else "too few items",
        ])  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    yield "### Items that share draws: equal models\n\n" + table(
        ["task", "p < 0.05, %", "at most 5 %", "t test over items, %", "intervals hold, %", "at least 95 %"], rows
    )
    rows = []
    for better in (0.4,):
        draw = classification(300, 100, better=better)
        found = repeated(lambda r, s, d=draw: judged(d(r), s), repetitions, workers)
        rows.append(
            [
                f"classification, 300 texts, labels {better} further apart",
                shown(sum(e.rejected for e in found), len(found)),
            ]
        )
        print(rows[-1], file=sys.stderr, flush=True)
    yield "### Items that share draws: power\n\n" + table(["task", "p < 0.05, %"], rows)


def whole_report(
    random: np.random.Generator, seed: int, models: Sequence[float], tasks: Sequence[str], n: int
) -> list[Comparison]:
    """A report on models of which each has a gain, on tasks of several kinds."""
    results, known = [], {}
    for place, kind in enumerate(tasks):
        name = f"task {place}"
        known[name, "test"] = _NoTask(name=name, main_metric="score")
        base, right = random.normal(size=n), random.random(n)
        label = random.normal(size=n)
        for number, gain in enumerate(models):
            if kind == "continuous":
                columns = {"value": base + 0.5 * random.normal(size=n) + gain}
            elif kind == "binary":
                own = np.where(random.random(n) < 0.2, random.random(n), right)
                columns = {"value": (own < 0.7 + 0.3 * gain).astype(np.float64)}
            else:
                columns = {"predicted": (1 + gain) * label + base + 0.5 * random.normal(size=n), "label": label}
            statistic: Any = "spearman" if kind == "spearman" else "mean"
            results.append(result(f"model {number}", Items(list(map(str, range(n))), statistic, columns), name))
    return compare_all(results, known, seed=seed, count=RANDOMISATIONS)


class _NoTask(Task):
    """What a report has to know of a task."""

    def score(self, model: JudgedModel) -> Any:
        raise NotImplementedError

    def content(self) -> Iterable[object]:
        return ()


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number alone (Holm 1979), to compare with."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def reports(repetitions: int, workers: int) -> Iterator[str]:
    """False findings of a whole report, what it finds beside Holm's correction, and the mean over tasks."""
    mixed = ("continuous", "binary", "spearman")
    equal = [
        ("3 equal models, 1 task", [0.0] * 3, mixed[:1], 100), ("6 equal models, 1 task", [0.0] * 6, mixed[:1], 100),
        ("6 equal models, 1 task, binary", [0.0] * 6, mixed[1:2], 100),
        ("3 equal models, 3 tasks and their mean", [0.0] * 3, mixed, 60),
        ("6 models, one better by far, 1 task", [0.0] * 5 + [1.0], mixed[:1], 100),
        ("2 equal models, 8 tasks and their mean", [0.0] * 2, mixed[:2] * 4, 60),
    ]  # fmt: skip
    rows = []
    for name, models, tasks, n in equal:

        def case(
            random: np.random.Generator, seed: int, m: Any = models, t: Any = tasks, n: int = n
        ) -> tuple[bool, bool]:
            found = whole_report(random, seed, m, t, n)
            same = [each for each in found if m[int(each.a[6:])] == m[int(each.b[6:])]]
            return any(each.p_adjusted < LEVEL for each in same), any(each.p_value < LEVEL for each in same)

        outcomes = repeated(case, repetitions, workers)
        hits, bare = sum(each[0] for each in outcomes), sum(each[1] for each in outcomes)
        rows.append([name, shown(hits, len(outcomes)), at_most(hits, len(outcomes), 0.05), shown(bare, len(outcomes))])
        print(rows[-1], file=sys.stderr, flush=True)
    yield "### Any false finding in a whole report\n\n" + table(
        ["report", "any false finding, %", "at most 5 %", "without correction, %"], rows
    )
    rows = []
    for name, models, tasks, n in [
        ("6 models, gains 0 to 0.4, 1 task", [0.0, 0.08, 0.16, 0.24, 0.32, 0.4], mixed[:1], 100),
        ("3 models, gains 0, 0.2, 0.4, 3 tasks", [0.0, 0.2, 0.4], mixed, 60),
    ]:

        def shares(
            random: np.random.Generator, seed: int, m: Any = models, t: Any = tasks, n: int = n
        ) -> tuple[float, float]:
            found = whole_report(random, seed, m, t, n)
            other = holm([each.p_value for each in found])
            return float(np.mean([each.p_adjusted < LEVEL for each in found])), float(np.mean(np.array(other) < LEVEL))

        outcomes = repeated(shares, repetitions // 2, workers)
        rows.append([name, *(f"{100 * np.mean([each[place] for each in outcomes]):.1f}" for place in (0, 1))])
        print(rows[-1], file=sys.stderr, flush=True)
    yield "### Differences found, of all that there are\n\n" + table(["report", "ours, %", "Holm, %"], rows)
    rows = []
    for name, tasks, n, gain in [
        ("3 tasks of 60 items", ("continuous", "binary", "binary"), 60, 0.1),
        ("8 tasks of 20 items", ("continuous", "binary") * 4, 20, 0.1),
        ("8 tasks of 20 items, no gain", ("continuous", "binary") * 4, 20, 0.0),
    ]:
        # Of binary items the second model has 0.3 times the gain more right.
        truth = 100 * float(np.mean([gain if kind == "continuous" else 0.3 * gain for kind in tasks]))

        def mean(
            random: np.random.Generator, seed: int, t: Any = tasks, n: int = n, g: float = gain, truth: float = truth
        ) -> Outcome:
            last = whole_report(random, seed, [g, 0.0], t, n)[-1]
            given = last.ci_low is not None and last.ci_high is not None
            return Outcome(given, given and last.ci_low <= truth <= last.ci_high, last.p_value < LEVEL)

        found = repeated(mean, repetitions, workers)
        given, held = sum(each.given for each in found), sum(each.covered for each in found)
        hits = sum(each.rejected for each in found)
        rows.append(
            [
                name,
                f"{100 * given / len(found):.1f}",
                shown(held, given),
                at_least(held, given, 0.95),
                shown(hits, len(found)),
            ]
        )
        print(rows[-1], file=sys.stderr, flush=True)
    yield "### The mean over tasks\n\n" + table(
        ["report", "interval given, %", "hold, % of those given", "at least 95 %", "p < 0.05, %"], rows
    )


#: By name; each yields tables in markdown. A further section is a function with the same arguments.
def thresholds(repetitions: int, workers: int) -> Iterator[str]:
    """How often the thresholds of `bge calibrate` keep their promise."""
    yield "### Thresholds of `bge calibrate`"
    yield "\n".join(simulate_calibration.table(repetitions, workers))


SECTIONS: dict[str, Callable[[int, int], Iterator[str]]] = {
    "pairs": pairs, "few": few, "rare": rare, "draws": draws, "reports": reports,
    "thresholds": thresholds,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run sections and print their tables; 1 if a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="sections")
    parser.add_argument("--repetitions", type=int, default=2000, help="of each case (default 2000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a CPU)")
    parser.add_argument("--out", type=Path, help="file for the tables, too")
    args = parser.parse_args(arguments)
    parts = []
    for name in args.only:
        start = time.perf_counter()
        parts += list(SECTIONS[name](args.repetitions, args.workers))
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    text = "\n\n".join(parts) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return int("**no**" in text)


if __name__ == "__main__":
    sys.exit(main())
