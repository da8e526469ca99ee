"""What fitted weights of a hybrid search bring on judged sets, and whether their intervals hold.

    python benchmarks/hybrid_weights.py encode --data ../shared/data --models ../shared/models --work /tmp/hybrid
    python benchmarks/hybrid_weights.py modes --data ../shared/data --work /tmp/hybrid       # dense, BM25 and hybrid
    python benchmarks/hybrid_weights.py scales --data ../shared/data --work /tmp/hybrid      # ways to weigh, and depths
    python benchmarks/hybrid_weights.py coverage --data ../shared/data --work /tmp/hybrid    # 500 draws of the queries
    python benchmarks/hybrid_weights.py coverage --data ../shared/data --made-up             # the same without a model

`encode` keeps the vectors of queries and documents (minutes), so that the others take seconds: these go through the
functions that `bge eval` and `bge calibrate --hybrid` use. Each prints tables in markdown; `--sets` takes some of the
sets. docs/hybrid.md and docs/statistics.md have the figures.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from given import Given
from simulations import shown, wilson

from bgekit import FlagModel
from bgekit.evaluation import Candidate, JudgedModel, Setting, evaluate, read_tasks
from bgekit.evaluation.evidence import contrasts
from bgekit.evaluation.hybrid import (
    Candidates,
    cross_fit,
    deal,
    fitted_point,
    promising_point,
    score_table,
    weight_grid,
)
from bgekit.evaluation.report.summary import p_value
from bgekit.evaluation.tasks.base import Items
from bgekit.evaluation.tasks.retrieval import RetrievalTask
from bgekit.search.fusion import Gain, over_better

Doubles = npt.NDArray[np.float64]
#: Judged sets, and the model that reads their language.
SETS = {
    "SciFact": "bge-small-en-v1.5",
    "CMRC2018Retrieval": "bge-small-zh-v1.5",
    "Cranfield": "bge-small-en-v1.5",
    "MLQuestions": "bge-small-en-v1.5",
}
MODES = ("dense", "bm25")
#: Splits into folds whose results are averaged where ways to weigh are compared: one split alone is a matter of luck.
SPLITS = 10


@dataclass
class Judged:
    """A judged set with the vectors of a model.

    Attributes:
        name: Of the set.
        args: The options.
    """

    name: str
    args: argparse.Namespace

    @cached_property
    def task(self) -> RetrievalTask:
        """Queries, documents, judgements."""
        (task,) = read_tasks(self.args.data / self.name)
        assert isinstance(task, RetrievalTask)
        return task

    @property
    def file(self) -> Path:
        """Vectors: `q` of the queries, `d` of the documents."""
        return self.args.work / f"{self.name}.vectors.npz"

    @property
    def texts(self) -> tuple[list[str], list[str]]:
        """Queries and documents."""
        return [self.task.queries[query] for query in self.task.qrels], [r.text for r in self.task.corpus.read()]

    def encode(self) -> None:
        """Make the vectors, unless they are there."""
        if self.file.exists():
            return
        self.args.work.mkdir(parents=True, exist_ok=True)
        queries, documents = self.texts
        with FlagModel(self.args.models / SETS[self.name]) as model:
            q, d = model.encode_queries(queries, convert_to_numpy=True), model.encode_corpus(documents)
        np.savez(self.file, q=q, d=d)

    @cached_property
    def model(self) -> Given:
        """The model, by its vectors."""
        stored = np.load(self.file)
        queries, documents = self.texts
        table = dict(zip([*documents, *queries], [*stored["d"], *stored["q"]], strict=True))
        name = SETS[self.name]
        return Given(name, stored["q"].shape[1], lambda texts: np.stack([table[text] for text in texts]))

    @cached_property
    def candidates(self) -> list[Candidates]:
        """What both modes find for each query."""
        return self.task.search(JudgedModel(self.model, progress=False)).candidates(MODES)

    @cached_property
    def grid(self) -> Doubles:
        """Weights."""
        return weight_grid(len(MODES))

    @cached_property
    def table(self) -> Doubles:
        """Score of each query at each point of the grid."""
        return self.score(self.candidates)

    def score(self, found: Sequence[Candidates]) -> Doubles:
        """The table of other scores."""
        task = self.task
        ids = list(task.qrels)
        return score_table(ids, found, task.corpus.ids.__getitem__, task.qrels, task.main_metric, self.grid)

    @cached_property
    def words(self) -> Doubles:
        """BM25's scores of all documents [queries, documents]."""
        from bgekit.search.bm25 import Bm25

        queries, documents = self.texts
        index, none = Bm25.of_texts(documents), np.zeros(len(documents), np.float32)
        words = np.stack([none if (own := index.of_rows(query)) is None else own for query in queries])
        return words.astype(np.float64)

    @property
    def units(self) -> list[int] | list[str]:
        """What stands or falls together."""
        return self.task.groups or list(self.task.qrels)


#: What is added to made-up similarities of relevant documents on average, and the deviation of their noise.
_MADE_UP = {"SciFact": (0.13, 0.035), "Cranfield": (0.0, 0.01)}


class MadeUp(Judged):
    """A judged set with similarities that no model gave: latent semantic indexing, noise, and a part of the truth."""

    @cached_property
    def candidates(self) -> list[Candidates]:
        """What BM25 and the similarities find for each query."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.preprocessing import normalize

        queries, documents = self.texts
        random, (more, noise) = np.random.default_rng(1), _MADE_UP[self.name]
        found = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2).fit(documents)
        sides = [found.transform(texts) for texts in (documents, queries)]
        reduced = TruncatedSVD(200, random_state=0).fit(sides[0])
        right, left = (normalize(reduced.transform(side)) for side in sides)
        dense = 0.5 + 0.35 * (left @ right.T) + noise * random.normal(size=(len(queries), len(documents)))
        place = {name: row for row, name in enumerate(self.task.corpus.ids)}
        for row, judged in enumerate(self.task.qrels.values()):
            for name in (name for name, grade in judged.items() if grade > 0):
                dense[row, place[name]] += more * random.gamma(2.0) / 2
        return [_listed(d, w, 100, True, "by the highest") for d, w in zip(dense, self.words, strict=True)]


def _sets(args: argparse.Namespace) -> Iterator[Judged]:
    if args.made_up:
        return (MadeUp(name, args) for name in args.sets if name in _MADE_UP)
    return (Judged(name, args) for name in args.sets)


def encode(args: argparse.Namespace) -> None:
    """Keep the vectors of all sets."""
    for each in _sets(args):
        each.encode()
        print(
            each.name, each.task.split, len(each.task.qrels), "queries", len(each.task.corpus), "documents", flush=True
        )


def modes(args: argparse.Namespace) -> None:
    """Dense, BM25 and their hybrid, by the house's own comparison."""
    print("| set | queries | dense | BM25 | hybrid | weights (dense, BM25) | hybrid - better part | p |")
    print("|---|--:|--:|--:|--:|---|---|--:|")
    settings = [Setting(mode="hybrid"), Setting(), Setting(mode="bm25")]
    for each in _sets(args):
        report = evaluate(Candidate("m", each.model, settings=settings), each.task, progress=False, log_scores=False)
        found = {result.mode: result for result in report.results}
        hybrid = found["hybrid"]
        against = [one for one in report.comparisons if one.a == hybrid.label]
        gain = over_better([Gain(one.difference, one.ci_low, one.ci_high) for one in against])
        best = max(MODES, key=lambda mode: found[mode].main_score)
        p = next(one.p_adjusted for one in against if one.b == found[best].label)
        weights = ", ".join(f"{weight:.2f}" for weight in hybrid.details["weights"].values())
        numbers = " | ".join(f"{found[mode].main_score:.2f}" for mode in (*MODES, "hybrid"))
        between = "none" if gain.low is None else f"{gain.difference:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})"
        print(f"| {each.name} | {hybrid.count:,} | {numbers} | {weights} | {between} | {p_value(p)} |", flush=True)


def scales(args: argparse.Namespace) -> None:
    """Ways to make scores comparable between queries, and depths, by what is left after cross-fitting."""
    print("| set | depth | missing scores | scale | at 0.5 | best | at dense | cross-fitted | within 0.5 of the best |")
    print("|---|--:|---|---|--:|--:|--:|--:|---|")
    for each in _sets(args):
        dense, words = _all_scores(each)
        for depth, whole, scale in itertools.product((1000, 100), (True, False), _SCALES):
            table = each.score([_listed(d, w, depth, whole, scale) for d, w in zip(dense, words, strict=True)])
            mean = 100 * table.mean(axis=0)
            crossed = [
                100 * cross_fit(table, deal(each.units, seed=seed), each.grid).values.mean() for seed in range(SPLITS)
            ]
            near = each.grid[mean > mean.max() - 0.5][:, 0]
            best = each.grid[fitted_point(table, each.grid)][0]
            print(
                f"| {each.name} | {depth:,} | {'computed' if whole else '0'} | {scale} | {mean[len(mean) // 2]:.2f} | "
                f"{mean.max():.2f} | {best:.2f} | {np.mean(crossed):.2f} | {near.min():.2f} to {near.max():.2f} |",
                flush=True,
            )


def _as_they_are(scores: Doubles) -> Doubles:
    return scores


def _by_highest(scores: Doubles) -> Doubles:
    return scores / scores.max() if scores.max(initial=0.0) > 0 else scores


def _by_range(scores: Doubles) -> Doubles:
    reach = np.ptp(scores) if len(scores) else 0.0
    return (scores - scores.min()) / reach if reach else np.zeros_like(scores)


def _by_deviation(scores: Doubles) -> Doubles:
    return (scores - scores.mean()) / max(float(scores.std()), 1e-9) if len(scores) else scores


#: How scores of dense and of BM25 are made comparable.
_SCALES: dict[str, tuple[Any, Any]] = {
    "fixed": (_as_they_are, lambda scores: scores / 30),
    "by the highest": (_by_highest, _by_highest),
    "by the range": (_by_range, _by_range),
    "by the deviation": (_by_deviation, _by_deviation),
}


def _all_scores(each: Judged) -> tuple[Doubles, Doubles]:
    """Scores of all documents for all queries, by vectors and by words."""
    stored = np.load(each.file)
    return (stored["q"] @ stored["d"].T).astype(np.float64), each.words


def _listed(dense: Doubles, words: Doubles, depth: int, whole: bool, scale: str) -> Candidates:
    """The candidates of one query: of so many of each mode, with scores of the others, or 0 for these."""
    tops = [np.argsort(-own, kind="stable")[:depth] for own in (dense, words)]
    tops[1] = tops[1][words[tops[1]] > 0]
    rows = np.unique(np.concatenate(tops))
    scores = np.zeros((2, len(rows)))
    for mode, (own, top, change) in enumerate(zip((dense, words), tops, _SCALES[scale], strict=True)):
        if whole:
            scores[mode] = change(own[rows])
        elif len(top):
            scores[mode, np.searchsorted(rows, top)] = change(own[top])
    return Candidates(rows, scores)


def coverage(args: argparse.Namespace) -> None:
    """How often the interval of hybrid minus the better part holds the truth, with a set as the population.

    Two truths: what the weights that were fitted on a draw bring on the whole set, and what those of the set do.
    """
    print("| set | what is drawn | gain of the set's weights | of the draws' | mean found | interval given, % | "
          "mean width | holds the draw's own gain, % | holds that of the set's weights, % |")  # fmt: skip
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    broken = False
    for each in _sets(args):
        parts = [int(np.flatnonzero(each.grid[:, mode] == 1)[0]) for mode in range(len(MODES))]
        population = each.table.mean(axis=0)
        own_best = population[fitted_point(each.table, each.grid)] - population[parts].max()
        groups = np.unique(each.units, return_inverse=True)[1]
        for what in ["queries", *(["groups"] if groups.max() + 1 < len(groups) else [])]:
            given, holds, found, truths, widths = 0, [0, 0], [], [], []
            for draw in range(args.draws):
                random = np.random.default_rng([args.seed, draw])
                rows, units = _drawn(groups, what, random)
                table = each.table[rows]
                values = cross_fit(table, deal(units.tolist(), seed=draw), each.grid).values
                most = table[:, promising_point(table, each.grid, units.tolist())]
                gain = _gain(values, most, table, parts, units, random)
                fitted = population[fitted_point(table, each.grid)] - population[parts].max()
                found.append(gain.difference)
                truths.append(fitted)
                if gain.low is None or gain.high is None:
                    continue
                given += 1
                widths.append(gain.high - gain.low)
                for place, truth in enumerate((fitted, own_best)):
                    holds[place] += gain.low <= truth + 1e-12 and truth - 1e-12 <= gain.high
            rates = " | ".join(shown(hits, given) for hits in holds)
            broken |= given > 0 and any(wilson(hits, given)[1] < 0.95 for hits in holds)
            print(
                f"| {each.name} | {what} | {100 * own_best:+.2f} | {100 * np.mean(truths):+.2f} | "
                f"{100 * np.mean(found):+.2f} | {100 * given / args.draws:.1f} | "
                f"{100 * np.mean(widths) if widths else 0:.2f} | {rates} |",
                flush=True,
            )
    if broken:
        sys.exit("an interval holds less often than it says")


def _drawn(
    groups: npt.NDArray[np.int64], what: str, random: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of queries drawn with replacement, alone or by groups, and what stands or falls together among them."""
    if what == "queries":
        rows = random.integers(0, len(groups), len(groups))
        return rows, np.arange(len(rows))
    order = np.argsort(groups, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(groups))])
    chosen = random.integers(0, len(ends) - 1, len(ends) - 1)
    rows = [order[ends[group] : ends[group + 1]] for group in chosen]
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), list(map(len, rows)))


def _gain(
    values: Doubles, most: Doubles, table: Doubles, parts: Sequence[int], units: npt.NDArray[np.int64],
    random: np.random.Generator,
) -> Gain:  # fmt: skip
    """Hybrid minus the better part, as `bge calibrate --hybrid` says it; as fractions."""
    ids, groups = list(map(str, range(len(values)))), units.tolist()
    hybrid = Items(ids, "mean", {"value": values, "most": most}, (), groups)
    pairs = [(hybrid, Items(ids, "mean", {"value": table[:, part]}, (), groups)) for part in parts]
    return over_better([
        Gain(each.difference, *((None, None) if each.doubt or math.isnan(each.low) else (each.low, each.high)))
        for each in contrasts(pairs, 1, random)
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {each.__name__: each for each in (encode, modes, scales, coverage)}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--data", type=Path, required=True, help="folder of the judged sets")
    parser.add_argument("--models", type=Path, help="folder of the models, for encode")
    parser.add_argument("--work", type=Path, help="where vectors are kept")
    parser.add_argument("--made-up", action="store_true", help="coverage with similarities that no model gave")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "encode" and args.models is None:
        parser.error("encode needs --models")
    if args.made_up != (args.work is None) or (args.made_up and args.command != "coverage"):
        parser.error("give --work, or coverage with --made-up")
    commands[args.command](args)


if __name__ == "__main__":
    main()
