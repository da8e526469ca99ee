"""A report in the order in which people read it, and its numbers as text: what all its forms share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...display.terminal import printable
from ..comparison import LEVEL, item_values
from ..evidence import FEWEST_ITEMS
from ..judged_model import ITEMS, TITLES
from ..metrics import metric_name

if TYPE_CHECKING:
    from ...data.columns import Exclusion
    from ..results import Comparison, ReportContent, Result

MISSING: Final = "–"
#: Details that plots show, that explain single items, or that stand elsewhere.
_PLOTTED: Final = ("recall_curve", "scores", "top", "notes")


@dataclass(frozen=True)
class TaskView:
    """One split of one task with its results.

    Attributes:
        results: One for each model that was measured on it, in the order of the report.
        comparisons: Comparisons of those results.
    """

    name: str
    split: str
    results: list[Result]
    comparisons: list[Comparison]

    @property
    def metric(self) -> str:
        """The main metric as people write it."""
        return metric_name(self.results[0].main_metric)

    @property
    def about(self) -> list[str]:
        """Split, kind, language, size."""
        first = self.results[0]
        size = f"{first.count:,} {ITEMS.get(first.kind, 'items')}"
        return [each for each in (self.split, TITLES.get(first.kind, first.kind), first.language, size) if each]

    @property
    def exclusions(self) -> list[Exclusion]:
        """Exclusions, each once: they are the same for every model unless a model caused one."""
        return list({str(each): each for result in self.results for each in result.exclusions}.values())

    @property
    def notes(self) -> list[str]:
        """Notes on what else decided the scores, each once."""
        return list(dict.fromkeys(note for result in self.results for note in result.notes))

    @property
    def published(self) -> dict[str, float]:
        """Published scores of other models by their names."""
        return {name: score for result in self.results for name, score in result.published.items()}

    @property
    def metrics(self) -> list[tuple[str, list[str]]]:
        """Every metric with its score under each result."""
        names = dict.fromkeys(name for result in self.results for name in result.metrics)
        return [(name, [number(result.metrics.get(name)) for result in self.results]) for name in names]

    @property
    def comparable(self) -> bool:
        """Whether the data is that of the published scores, as far as those are known for a model."""
        return all(result.comparable for result in self.results if result.reference is not None)

    @property
    def best(self) -> str | None:
        """The model that is significantly better than every other one, None if there is none."""
        won: dict[str, set[str]] = {}
        for each in self.comparisons:
            if decided(each):
                better, worse = (each.a, each.b) if each.difference > 0 else (each.b, each.a)
                won.setdefault(better, set()).add(worse)
        others = len(self.results) - 1
        return next((label for label, worse in won.items() if len(worse) == others), None)

    def result(self, label: str) -> Result | None:
        """The result of a model."""
        return next((each for each in self.results if each.label == label), None)


class View:
    """A report by task and by model.

    Attributes:
        report: The report.
    """

    def __init__(self, report: ReportContent) -> None:
        self.report = report

    @cached_property
    def labels(self) -> list[str]:
        """The models in their settings, in the order of the report."""
        return list(dict.fromkeys(result.label for result in self.report.results))

    @cached_property
    def tasks(self) -> list[TaskView]:
        """The tasks, in the order of the report."""
        found: dict[tuple[str, str], TaskView] = {}
        for result in self.report.results:
            key = (result.task, result.split)
            found.setdefault(key, TaskView(*key, [], [])).results.append(result)
        for comparison in self.report.comparisons:
            if task := found.get((comparison.task, comparison.split)):
                task.comparisons.append(comparison)
        return list(found.values())

    @property
    def pairs(self) -> dict[tuple[str, str], list[Comparison]]:
        """The comparisons of every two models."""
        found: dict[tuple[str, str], list[Comparison]] = {}
        for each in self.report.comparisons:
            found.setdefault((each.a, each.b), []).append(each)
        return found

    @property
    def has_published(self) -> bool:
        """Whether a published score of a measured model is known."""
        return any(result.reference is not None for result in self.report.results)

    @property
    def has_incomparable(self) -> bool:
        """Whether such a score is of other data."""
        return any(result.reference is not None and not result.comparable for result in self.report.results)

    @property
    def title(self) -> str:
        """The heading, such as "2 models on SciFact" or "3 modes of my-model on SciFact"."""
        tasks = self.tasks[0].name if len(self.tasks) == 1 else f"{len(self.tasks)} tasks"
        compared = printable(self.labels[0]) if len(self.labels) == 1 else self.counted
        models = {result.model for result in self.report.results}
        if len(self.labels) > len(models) == 1:
            compared += f" of {printable(*models)}"
        return f"{compared} on {printable(tasks)}" if self.tasks else "No result"

    @property
    def counted(self) -> str:
        """How many rows there are, and what they are: models, modes or settings of one, or both."""
        results = [self.first(label) for label in self.labels]
        models, modes = ({getattr(result, name) for result in results} for name in ("model", "mode"))
        if len(models) == len(results):
            what = "model" if len(results) == 1 else "models"
        elif len(models) == 1:
            what = "modes" if len(modes) == len(results) else "settings"
        else:
            what = "models or settings"
        return f"{len(results):,} {what}"

    def first(self, label: str) -> Result:
        """A result of a model, for what is the same in all of them."""
        return next(result for result in self.report.results if result.label == label)

    def means(self) -> dict[str, float | None]:
        """Mean of the main scores over the tasks of each model, None for one that lacks a task."""
        found: dict[str, float | None] = {}
        for label in self.labels:
            scores = [result.main_score for task in self.tasks if (result := task.result(label))]
            found[label] = sum(scores) / len(scores) if len(scores) == len(self.tasks) else None
        return found


def number(value: float | None, *, signed: bool = False, digits: int = 2) -> str:
    """A score or a difference (x100)."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}"  # + 0.0: no "-0.00"


def interval(comparison: Comparison) -> str:
    """The confidence interval of a difference; without one, that items are too few (the conclusion says more)."""
    if comparison.ci_low is None or comparison.ci_high is None:
        return "too few items" if comparison.doubt.startswith("too few items") else MISSING
    return f"[{number(comparison.ci_low, signed=True)}, {number(comparison.ci_high, signed=True)}]"


def task_name(comparison: Comparison) -> str:
    """The task of a comparison in lists of them."""
    return f"Mean over {comparison.over_tasks} tasks" if comparison.over_tasks else comparison.task


def comparison_figures(comparison: Comparison) -> list[str]:
    """Difference, interval, p, corrected p, wins of a, wins of b, ties."""
    tests = [p_value(comparison.p_value), p_value(comparison.p_adjusted)]
    counts = [f"{count:,}" for count in (comparison.wins, comparison.losses, comparison.ties)]
    return [number(comparison.difference, signed=True), interval(comparison), *tests, *counts]


def p_value(value: float) -> str:
    """A p value with as many digits as say something."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def published(result: Result) -> str:
    """The published score of the same model; a star says that it is of other data."""
    return number(result.reference) + ("*" if result.reference is not None and not result.comparable else "")


def seconds(result: Result) -> str:
    """The time that a score took, with what it leaves out."""
    said = " (earlier run)" if result.cached else " (vectors reused)" if result.reused else ""
    return number(result.seconds, digits=1) + said


def score_interval(result: Result) -> tuple[float, float] | None:
    """The 95 % interval of a score by itself, x100, where the score is a mean over items or a rank correlation."""
    items = result.items
    if items is None or not math.isfinite(result.main_score) or items.overlap or "draws" in items.columns:
        return None
    # Items that stand or fall together, such as pairs with a common text, count as one.
    numbers: dict[int | str, int] = {}
    keys = items.ids if items.groups is None else items.groups
    units = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
    count = len(numbers)
    if count < FEWEST_ITEMS:
        return None
    score = result.main_score / 100
    if items.statistic == "mean":
        apart = np.bincount(units, item_values(items) - score)
        reach = 1.96 * math.sqrt(float(apart @ apart) * count / (count - 1)) / len(items.ids)
        return 100 * max(score - reach, 0.0), 100 * min(score + reach, 1.0)
    if items.statistic == "spearman" and abs(score) < 1:
        # Fisher's transformation with the variance of Bonett and Wright (2000).
        reach = 1.96 * math.sqrt((1 + score**2 / 2) / (count - 3))
        return 100 * math.tanh(math.atanh(score) - reach), 100 * math.tanh(math.atanh(score) + reach)
    return None


def difference(result: Result) -> float | None:
    """Ours minus the published score of the same model; None where the data differs from the published one's."""
    return result.main_score - result.reference if result.reference is not None and result.comparable else None


def decided(comparison: Comparison) -> bool:
    """Whether one of the two counts as better."""
    return comparison.p_adjusted < LEVEL


def as_text(value: Any) -> str:
    """A value of settings, cards or versions."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return printable(value) or '""'
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return printable(", ".join(value)) or "none"
    return printable(json.dumps(value, ensure_ascii=False, default=str))


def facts(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested mappings as a list of names and values."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from facts(value, f"{prefix}{key}: ")
        else:
            yield printable(f"{prefix}{key}"), as_text({} if isinstance(value, Mapping) else value)


def setting_text(setting: Mapping[str, Any]) -> str:
    """A setting's differences from the model's defaults."""
    return "; ".join(f"{key}: {value}" for key, value in facts(setting)) or "as its card says"


def small_details(result: Result) -> list[tuple[str, str]]:
    """Findings beside the metrics that are short enough to read; the longer ones feed the plots."""
    return [
        (key, value)
        for key, value in facts({key: value for key, value in result.details.items() if key not in _PLOTTED})
        if len(value) <= 200
    ][:20]
