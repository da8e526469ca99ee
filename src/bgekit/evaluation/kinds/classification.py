"""Classification: how well a linear classifier on a few labelled vectors tells the labels of others."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from ...errors import DataError, import_extra
from ..judged import JudgedModel
from ..task import Items, Kind, Scores, Task
from .pairs import checked_main, numbered

#: MTEB's numbers of texts and draws, where a task has none of its own.
_SAMPLES: Final = 8
_EXPERIMENTS: Final = 10


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
        """How the draws differ from those of other tasks."""
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
        measures: Any = import_extra("sklearn.metrics", "eval")
        if len(set(self.train_labels)) < 2:
            raise DataError(f"{self.name}: the texts to learn from have one label only; a classifier needs two")
        draws = list(self.draws())
        rows = sorted({row for draw in draws for row in draw})
        place = {row: number for number, row in enumerate(rows)}
        learned = model.plain([self.train_texts[row] for row in rows], self.kind, self.name)
        vectors = model.plain(self.texts, self.kind, self.name)
        truth, wanted = np.asarray(self.labels), np.asarray(self.train_labels)
        right = np.zeros(len(truth))
        found: dict[str, list[float]] = defaultdict(list)
        for draw in draws:
            classifier = linear.LogisticRegression(max_iter=100, random_state=self.seed)
            with warnings.catch_warnings():
                # MTEB stops at 100 steps, too, whether or not the solver is done.
                warnings.simplefilter("ignore")
                classifier.fit(learned[[place[row] for row in draw]], wanted[draw])
            predicted = classifier.predict(vectors)
            right += predicted == truth
            for name, value in _measures(measures, truth, predicted).items():
                found[name].append(value)
        metrics = {name: float(np.mean(values)) for name, values in found.items()}
        checked_main(self, metrics)
        items = Items(numbered(len(truth)), "mean", {"value": right / len(draws)}, self.texts)
        if self.main_metric != "accuracy":  # No mean over texts: what it has is a value for each draw.
            column = np.asarray(found[self.main_metric])
            items = Items(numbered(len(draws)), "mean", {"value": column}, [f"draw {n + 1}" for n in range(len(draws))])
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


def _measures(sklearn: Any, truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    values = {"accuracy": float(sklearn.accuracy_score(truth, predicted))}
    for average in ("macro", "weighted"):
        suffix = "" if average == "macro" else "_weighted"
        precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
            truth, predicted, average=average, zero_division=0
        )
        values |= {f"f1{suffix}": float(f1), f"precision{suffix}": float(precision), f"recall{suffix}": float(recall)}
    names = sorted(set(truth.tolist()))
    if len(names) == 2:
        # MTEB ranks by the predicted label itself; the later label counts as the positive one.
        values["ap"] = float(sklearn.average_precision_score(truth == names[1], predicted == names[1]))
    return values
