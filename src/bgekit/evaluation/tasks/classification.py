"""Classification: how well a linear classifier on a few labelled vectors tells the labels of others."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from ...errors import DataError, import_extra
from ..judged_model import JudgedModel, Kind
from .base import Items, Scores, Task, shared_part, together
from .pairs import checked_main, numbered

#: MTEB's numbers of texts and draws, where a task has none of its own.
_SAMPLES: Final = 8
_EXPERIMENTS: Final = 10


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(Task):
    """MTEB's protocol: logistic regression on a few texts of each label, mean over several draws.

    Draws are MTEB's: a Mersenne Twister seeded again for each draw shuffles the order of the draw before, and the
    first texts of each label are taken.

    Attributes:
        train_texts: Texts to draw from.
        train_labels: Their labels.
        texts: Texts to classify.
        labels: Their labels.
        samples_per_label: Texts drawn of each label.
        experiments: Draws.
        seed: Random seed for the draws and the classifier.
    """

    kind: ClassVar[Kind] = "classification"
    packages: ClassVar[tuple[str, ...]] = ("sklearn",)
    main_metric: str = "accuracy"

    train_texts: Sequence[str]
    train_labels: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[str]
    samples_per_label: int = _SAMPLES
    experiments: int = _EXPERIMENTS
    seed: int = 42

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how the draws differ from those of other tasks."""
        if (self.samples_per_label, self.experiments) == (_SAMPLES, _EXPERIMENTS):
            return self.remarks
        return (*self.remarks, f"{self.samples_per_label} texts of each label are drawn, {self.experiments} times")

    def content(self) -> Iterable[object]:
        """Texts, labels and protocol."""
        yield from zip(self.train_texts, self.train_labels, strict=True)
        yield "test"
        yield from zip(self.texts, self.labels, strict=True)
        yield [self.samples_per_label, self.experiments, self.seed]

    def score(self, model: JudgedModel) -> Scores:
        """Encode, draw, fit and classify."""
        linear: Any = import_extra("sklearn.linear_model", "eval")
        if len(set(self.train_labels)) < 2:
            raise DataError(f"{self.name}: the texts to learn from have one label only; a classifier needs two")
        draws = list(self.draws())
        rows = sorted({row for draw in draws for row in draw})
        place = {row: number for number, row in enumerate(rows)}
        learned = model.plain([self.train_texts[row] for row in rows], self.kind, self.name)
        vectors = model.plain(self.texts, self.kind, self.name)
        truth, wanted = np.asarray(self.labels), np.asarray(self.train_labels)
        names = np.unique([*self.labels, *self.train_labels])
        answers = []
        found: dict[str, list[float]] = defaultdict(list)
        for draw in draws:
            classifier = linear.LogisticRegression(max_iter=100, random_state=self.seed)
            with warnings.catch_warnings():
                # MTEB stops at 100 steps, too, whether or not the solver is done.
                warnings.simplefilter("ignore")
                classifier.fit(learned[[place[row] for row in draw]], wanted[draw])
            answers.append(classifier.predict(vectors))
            for name, value in _measures(_answered(truth, answers[-1], names)).items():
                found[name].append(value)
        metrics = {name: float(np.mean(values)) for name, values in found.items()}
        checked_main(self, metrics)
        right = np.stack([answer == truth for answer in answers], axis=1).astype(np.float64)
        added = right
        if self.main_metric != "accuracy":
            columns = [_added(self.main_metric, truth, answer, names) for answer in answers]
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


def _answered(truth: np.ndarray, predicted: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Number of texts of each label (row) that were given each label (column) [labels, labels]."""
    table = np.zeros((len(names), len(names)))
    np.add.at(table, (np.searchsorted(names, truth), np.searchsorted(names, predicted)), 1)
    return table


def _added(metric: str, truth: np.ndarray, predicted: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Contribution of each text to a metric that is not a mean over texts [n]: computed again without it (jackknife).

    The metrics know a text only by its label and the one it was given, so texts with equal ones add the same.
    """
    table = _answered(truth, predicted, names)
    added = np.zeros_like(table)
    for row, column in np.argwhere(table):
        table[row, column] -= 1
        added[row, column] = -(len(truth) - 1) * _measures(table)[metric]
        table[row, column] += 1
    each = added[np.searchsorted(names, truth), np.searchsorted(names, predicted)]
    return _measures(table)[metric] + each - each.mean()


def _measures(table: np.ndarray) -> dict[str, float]:
    """All metrics, as scikit-learn computes them, of a table of labels and answers [labels, labels].

    Labels that are neither there nor were given have no part in means over labels.
    """
    right, asked, given, total = np.diag(table), table.sum(axis=1), table.sum(axis=0), table.sum()
    known, weight = (asked + given) > 0, asked / max(total, 1)
    of_labels = {
        "precision": right / np.maximum(given, 1), "recall": right / np.maximum(asked, 1),
        "f1": 2 * right / np.maximum(asked + given, 1),
    }  # fmt: skip
    values = {"accuracy": float(right.sum() / max(total, 1))}
    for name, column in of_labels.items():
        values |= {name: float(column[known].mean()), f"{name}_weighted": float(weight @ column)}
    there = np.flatnonzero(asked)
    if len(there) == 2:
        # MTEB ranks by the predicted label itself; the later label counts as the positive one.
        positive = there[1]
        recall, share = of_labels["recall"][positive], weight[positive]
        values["ap"] = float(recall * of_labels["precision"][positive] + (1 - recall) * share)
    return values
