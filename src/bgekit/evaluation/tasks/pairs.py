"""Pairs of texts: how alike they are (STS), and whether they belong together (pair classification)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...errors import ArgumentError, import_extra
from ..judged_model import Floats, JudgedModel, Kind
from .base import Items, Scores, Task, together

Doubles = npt.NDArray[np.float64]


def pair_similarities(
    model: JudgedModel, task: Task, first: Sequence[str], second: Sequence[str]
) -> dict[str, Doubles]:
    """Similarity [n] of each pair, higher is more alike: the model's own, cosine, dot product, negative distances."""
    # In one call, so that a text that stands in many pairs is encoded once.
    vectors = model.plain([*first, *second], task.kind, task.name)
    a, b = vectors[: len(first)].astype(np.float64), vectors[len(first) :].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dot = np.einsum("nd,nd->n", a, b)
    return {
        "similarity": model.similarity(vectors[: len(first)], vectors[len(first) :]),
        "cosine": dot / np.maximum(lengths, 1e-12),
        "dot": dot,
        "euclidean": -np.linalg.norm(a - b, axis=1),
        "manhattan": -np.abs(a - b).sum(axis=1),
    }


@dataclass(frozen=True, kw_only=True)
class StsTask(Task):
    """MTEB's protocol: rank correlation of similarity and human score over all pairs.

    Attributes:
        first: One text of each pair.
        second: The other.
        scores: How alike people find them, on any scale.
    """

    kind: ClassVar[Kind] = "sts"
    packages: ClassVar[tuple[str, ...]] = ("scipy",)
    main_metric: str = "cosine_spearman"

    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]

    def content(self) -> Iterable[object]:
        """The pairs."""
        return zip(self.first, self.second, self.scores, strict=True)

    def score(self, model: JudgedModel) -> Scores:
        """Encode and correlate."""
        stats: Any = import_extra("scipy.stats", "eval")
        label = np.asarray(self.scores, dtype=np.float64)
        predicted = pair_similarities(model, self, self.first, self.second)
        del predicted["dot"]  # MTEB reports none for STS.
        metrics = {}
        with warnings.catch_warnings():
            # Without any difference there is no correlation: not a number, which the caller makes an error of.
            warnings.simplefilter("ignore")
            for name, values in predicted.items():
                prefix = "" if name == "similarity" else f"{name}_"
                metrics[f"{prefix}spearman"] = float(stats.spearmanr(values, label).statistic)
                metrics[f"{prefix}pearson"] = float(stats.pearsonr(values, label).statistic)
        checked_main(self, metrics)
        name, _, statistic = self.main_metric.rpartition("_")
        columns = {"predicted": predicted[name or "similarity"], "label": label}
        items = Items(
            numbered(len(label)), "pearson" if statistic == "pearson" else "spearman", columns,
            pair_texts(self.first, self.second), together(list(zip(self.first, self.second, strict=True))),
        )  # fmt: skip
        return Scores(metrics, items, {"scores": {"all": shortened(predicted["cosine"])}})


@dataclass(frozen=True, kw_only=True)
class PairClassificationTask(Task):
    """MTEB's protocol: average precision of pairs ranked by similarity; the best over similarity functions is `max_ap`.

    `*_accuracy` and `*_f1` are those at the best threshold, which is found on the same pairs.

    Attributes:
        first: One text of each pair.
        second: The other.
        labels: 1 where they belong together, else 0.
    """

    kind: ClassVar[Kind] = "pair_classification"
    packages: ClassVar[tuple[str, ...]] = ("sklearn",)
    main_metric: str = "max_ap"

    first: Sequence[str]
    second: Sequence[str]
    labels: Sequence[int]

    def content(self) -> Iterable[object]:
        """The pairs."""
        return zip(self.first, self.second, self.labels, strict=True)

    def score(self, model: JudgedModel) -> Scores:
        """Encode and rank."""
        sklearn: Any = import_extra("sklearn.metrics", "eval")
        if self.main_metric.partition("_")[2] not in ("ap", "accuracy"):
            raise ArgumentError(
                f"{self.name}: {self.main_metric!r} cannot be a main metric here; take max_ap or max_accuracy"
            )
        label = np.asarray(self.labels, dtype=np.int64)
        predicted = pair_similarities(model, self, self.first, self.second)
        metrics: dict[str, float] = {}
        for name, values in predicted.items():
            metrics[f"{name}_ap"] = float(sklearn.average_precision_score(label, values))
            metrics |= {f"{name}_{key}": value for key, value in best_thresholds(label, values).items()}
        for key in ("ap", "accuracy", "f1", "precision", "recall"):
            metrics[f"max_{key}"] = max(metrics[f"{name}_{key}"] for name in predicted)
        checked_main(self, metrics)
        name, _, what = self.main_metric.partition("_")
        if name == "max":
            name = max(predicted, key=lambda each: metrics[f"{each}_{what}"])
        texts = pair_texts(self.first, self.second)
        details = {
            "scores": {
                "related": shortened(predicted["cosine"][label == 1]),
                "unrelated": shortened(predicted["cosine"][label == 0]),
            },
            "chosen": name,
        }
        groups = together(list(zip(self.first, self.second, strict=True)))
        if what == "ap":
            columns = {"predicted": predicted[name], "label": label.astype(np.float64)}
            return Scores(metrics, Items(numbered(len(label)), "average_precision", columns, texts, groups), details)
        right = (predicted[name] >= metrics[f"{name}_accuracy_threshold"]) == (label == 1)
        columns = {"value": right.astype(np.float64)}
        return Scores(metrics, Items(numbered(len(label)), "mean", columns, texts, groups), details)


def best_thresholds(label: npt.NDArray[np.int64], scores: Doubles) -> dict[str, float]:
    """Accuracy and F1 at the threshold that is best for each; a pair at the threshold counts as related.

    Args:
        label: [n], 1 for related pairs.
        scores: [n], higher is more alike.

    Returns:
        `accuracy`, `f1`, `precision` and `recall` (those at the best F1), and the two thresholds.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, found = scores[order], np.cumsum(label[order])
    # Only where the next score is another one: no threshold separates equal scores.
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    taken, right, related = ends + 1, found[ends], int(label.sum())
    accuracy = (right + (len(label) - related) - (taken - right)) / len(label)
    precision, recall = right / taken, right / max(related, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best, best_f1 = int(accuracy.argmax()), int(f1.argmax())
    return {
        "accuracy": float(accuracy[best]), "accuracy_threshold": float(ordered[ends[best]]),
        "f1": float(f1[best_f1]), "f1_threshold": float(ordered[ends[best_f1]]),
        "precision": float(precision[best_f1]), "recall": float(recall[best_f1]),
    }  # fmt: skip


def checked_main(task: Task, metrics: Mapping[str, float]) -> None:
    """Raise ArgumentError unless the main metric of a task is among those it has."""
    if task.main_metric not in metrics:
        raise ArgumentError(
            f"{task.name}: {task.main_metric!r} is not a metric of {task.kind}; there are {', '.join(metrics)}"
        )


def numbered(count: int) -> list[str]:
    """Ids for items that have none: their number, from 0."""
    return list(map(str, range(count)))


def pair_texts(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """A text to show for each pair."""
    return [f"{a} | {b}" for a, b in zip(first, second, strict=True)]


def shortened(scores: Doubles | Floats | Sequence[float], count: int = 1000) -> list[float]:
    """Values for histograms: at most so many of them, evenly spread, rounded."""
    values = np.asarray(scores, dtype=np.float64)
    chosen: list[float] = values[:: max(1, -(-len(values) // count))].round(4).tolist()
    return chosen
