"""Classification: how well a linear classifier on a few labelled vectors tells the labels of others."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...errors import DataError, import_extra
from ..judged import JudgedModel
from ..task import Items, Kind, Scores, Task, shared_part, together
from .pairs import checked_main, numbered


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(Task):
    """MTEB's protocol: logistic regression on a few texts of each label, mean over several draws.

    Draws are MTEB's: a Mersenne Twister seeded anew for each draw shuffles the order that the draw before left, and the
    first texts of each label are taken.

    Attributes:
        train_texts: Texts to draw from.
        train_labels: Their labels.
        texts: Texts to classify.
        labels: Their labels.
        samples_per_label: Texts drawn of each label.
        experiments: Draws.
        seed: Of the draws and the classifier.
    """

    kind: ClassVar[Kind] = "classification"
    main_metric: str = "accuracy"

    train_texts: Sequence[str]
    train_labels: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[str]
    samples_per_label: int = 8
    experiments: int = 10
    seed: int = 42

    def content(self) -> Iterable[object]:
        """Texts, labels and protocol."""
        yield from zip(self.train_texts, self.train_labels, strict=True)
        yield "test"
        yield from zip(self.texts, self.labels, strict=True)
        yield [self.samples_per_label, self.experiments, self.seed]

    def score(self, model: JudgedModel) -> Scores:
        """Encode, draw, fit and classify."""
        linear: Any = import_extra("sklearn.linear_model", "eval")
        measures: Any = import_extra("sklearn.metrics", "eval")
        if len(set(self.train_labels)) < 2:
            raise DataError(f"{self.name}: the texts to learn from have one label only; a classifier needs two")
        draws = list(self.draws())
        rows = sorted({row for draw in draws for row in draw})
        place = {row: number for number, row in enumerate(rows)}
        learned = model.plain([self.train_texts[row] for row in rows], self.kind, self.name)
        vectors = model.plain(self.texts, self.kind, self.name)
        truth, wanted = np.asarray(self.labels), np.asarray(self.train_labels)
        answers = []
        found: dict[str, list[float]] = defaultdict(list)
        for draw in draws:
            classifier = linear.LogisticRegression(max_iter=100, random_state=self.seed)
            with warnings.catch_warnings():
                # MTEB stops at 100 steps, too, whether or not the solver is done.
                warnings.simplefilter("ignore")
                classifier.fit(learned[[place[row] for row in draw]], wanted[draw])
            answers.append(classifier.predict(vectors))
            for name, value in _measures(measures, truth, answers[-1]).items():
                found[name].append(value)
        metrics = {name: float(np.mean(values)) for name, values in found.items()}
        checked_main(self, metrics)
        right = np.stack([answer == truth for answer in answers], axis=1).astype(np.float64)
        added = right
        if self.main_metric != "accuracy":
            columns = [_added(measures, self.main_metric, truth, answer) for answer in answers]
            added = np.stack(columns, axis=1)
        items = Items(
            numbered(len(truth)), "mean", {"value": right.mean(axis=1), "draws": added}, self.texts,
            together([(text,) for text in self.texts]), shared_part(draws),
        )  # fmt: skip
        deviation = float(np.std(found[self.main_metric]))
        details = {"experiments": found[self.main_metric], "standard_deviation": deviation}
        return Scores(metrics, items, details)

    def draws(self) -> Iterable[list[int]]:
        """Rows of `train_texts` of each draw."""
        order = list(range(len(self.train_labels)))
        for _ in range(self.experiments):
            np.random.RandomState(self.seed).shuffle(order)
            taken: dict[str, int] = defaultdict(int)
            draw = []
            for row in order:
                label = self.train_labels[row]
                if taken[label] < self.samples_per_label:
                    draw.append(row)
                    taken[label] += 1
            yield draw


def _added(sklearn: Any, metric: str, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What each text adds to a metric that is no mean over texts [n]: it is computed anew without the text (jackknife).

    The metrics know a text only by its label and the one it was given, so texts with equal ones add the same.
    """
    n = len(truth)
    _, first, cell, counts = np.unique(
        np.stack([truth, predicted]), axis=1, return_index=True, return_inverse=True, return_counts=True
    )
    whole = _measures(sklearn, truth[first], predicted[first], counts)[metric]
    without = [
        _measures(sklearn, truth[first], predicted[first], counts - (np.arange(len(counts)) == place))[metric]
        for place in range(len(counts))
    ]
    added = ((n - 1) * (whole - np.asarray(without)))[cell.reshape(-1)]
    return whole + added - added.mean()


def _measures(
    sklearn: Any, truth: np.ndarray, predicted: np.ndarray, counts: np.ndarray | None = None
) -> dict[str, float]:
    """All metrics; `counts` says how often each pair of labels is there."""
    values = {"accuracy": float(sklearn.accuracy_score(truth, predicted, sample_weight=counts))}
    for average in ("macro", "weighted"):
        suffix = "" if average == "macro" else "_weighted"
        precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
            truth, predicted, average=average, zero_division=0, sample_weight=counts
        )
        values |= {f"f1{suffix}": float(f1), f"precision{suffix}": float(precision), f"recall{suffix}": float(recall)}
    names = sorted(set(truth.tolist()))
    if len(names) == 2:
        # MTEB ranks by the predicted label itself; the later label counts as the positive one.
        positive = truth == names[1]
        values["ap"] = float(sklearn.average_precision_score(positive, predicted == names[1], sample_weight=counts))
    return values
