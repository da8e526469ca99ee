"""Results of an evaluation as data: scores, comparisons, and the content of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ..data.columns import Exclusion
from .tasks.base import Items

#: Version of the layout of results.json; it changes when a reader would have to.
LAYOUT: Final = 2

#: Between the name of a model that was given before and which time this is: labels tell results apart.
AGAIN: Final = " | time"

RESULTS: Final = "results.json"
PER_ITEM: Final = "per_item.jsonl"


@dataclass(frozen=True)
class Result:
    """Scores of one model in one setting on one task.

    Attributes:
        model: The model as the caller named it.
        setting: What differs from the model's defaults, as plain values.
        label: The model and its setting, to be shown and to tell results apart.
        task: Name of the task.
        kind: Kind of the task.
        split: Split of its data.
        language: Language of its data, "" if unknown.
        main_metric: Name of the metric that counts.
        main_score: Its value x100.
        metrics: All metrics x100.
        count: Items (queries, pairs, texts) that count.
        exclusions: What of the data was left out.
        published: Published scores (x100) of other models on the same data.
        comparable: Whether the data is exactly that of the published scores.
        reference: The published score (x100) of this very model, None if there is none.
        card: The model's card as plain values.
        fingerprints: sha256 of `model` (weights, card, precision, setting) and `data` (content and protocol).
        seconds: Wall time; of the run that computed it, if it came from the cache.
        cached: Whether it came from the cache.
        reused: Whether vectors came from another setting or an earlier run, so that the seconds are not the whole work.
        items: What each item contributed.
        details: Further findings.
        notes: What else decided the score, such as which documents do not count.
        mode: Mode of search; `dense` where nothing is searched.

    Example:
        >>> from bgekit.evaluation import evaluate
        >>> result = evaluate("BAAI/bge-small-en-v1.5", "scifact", progress=False).results[0]
        >>> 0 <= result.main_score <= 100, result.task
        (True, 'scifact')
    """

    model: str
    setting: Mapping[str, Any]
    label: str
    task: str
    kind: str
    split: str
    language: str
    main_metric: str
    main_score: float
    metrics: Mapping[str, float]
    count: int
    exclusions: tuple[Exclusion, ...]
    published: Mapping[str, float]
    comparable: bool
    reference: float | None
    card: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    seconds: float
    cached: bool = False
    reused: bool = False
    items: Items | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    mode: str = "dense"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, without the items and details that only plots need."""
        content = {key: getattr(self, key) for key in self.__dataclass_fields__ if key not in ("items", "details")}
        content["exclusions"] = [asdict(exclusion) for exclusion in self.exclusions]
        content["notes"] = list(self.notes)
        content["details"] = {
            key: value for key, value in self.details.items() if key not in ("top", "scores", "notes")
        }
        return content


@dataclass(frozen=True)
class ItemChange:
    """An item on which two models differ.

    Attributes:
        id: Id of the item.
        text: What to show of it.
        a: Score (x100) of the first model.
        b: Score (x100) of the second.
        detail: More to show, such as what each model found first.
    """

    id: str
    text: str
    a: float
    b: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items of one task.

    Attributes:
        a: Label of the first.
        b: Label of the second.
        task: Name of the task.
        split: Split of its data.
        metric: The main metric.
        difference: Score of a minus score of b, x100.
        ci_low: Lower end of the 95 % interval of the difference, x100; None where none can be given (`doubt`).
        ci_high: Its upper end.
        p_value: Probability of a difference at least as large if the two were alike, two-sided.
        n: Items.
        wins: Items on which a is better.
        losses: Items on which b is better.
        ties: Items on which they are equal.
        statistic: How items become the score.
        units: Items that are independent of each other: those that stand or fall together count as one.
        doubt: Why there is no interval, such as too few items; "" where there is one.
        p_adjusted: `p_value` corrected for all comparisons of the report together.
        together: How many those are.
        over_tasks: How many tasks it is the mean of, whose wins, losses and ties are counted then; 0 on a task.
        conclusion: What can and cannot be concluded, in a sentence.
        regressions: Items on which a falls behind b most.
        improvements: Items on which a is ahead of b most.

    Example:
        >>> from bgekit.evaluation import Setting, evaluate
        >>> report = evaluate("BAAI/bge-small-en-v1.5", "scifact", settings=[Setting(), Setting(instruction=None)],
        ...                   progress=False)
        >>> comparison = report.comparisons[0]
        >>> 0 <= comparison.p_value <= 1
        True
    """

    a: str
    b: str
    task: str
    split: str
    metric: str
    difference: float
    ci_low: float | None
    ci_high: float | None
    p_value: float
    n: int
    wins: int
    losses: int
    ties: int
    statistic: str
    units: int = 0
    doubt: str = ""
    p_adjusted: float = 1.0
    together: int = 1
    over_tasks: int = 0
    conclusion: str = ""
    regressions: tuple[ItemChange, ...] = ()
    improvements: tuple[ItemChange, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain values; `a` and `b` as the caller named the models, with settings that differ."""
        return asdict(self) | {"a": self.a.partition(AGAIN)[0], "b": self.b.partition(AGAIN)[0]}


@dataclass(frozen=True)
class ReportContent:
    """Everything that an evaluation found, as data. `Report` is what can be saved.

    Attributes:
        results: One for each model, setting and task.
        comparisons: One for each pair of models or settings and each task.
        environment: Versions, machine, time, seed, command.
        notes: What else a reader should know, such as tasks that were not found.
        means: The mean over tasks of each pair that was measured on all of several.
    """

    results: list[Result]
    comparisons: list[Comparison] = field(default_factory=list)
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    means: list[Comparison] = field(default_factory=list)

    @property
    def correction(self) -> str:
        """The correction of p values, in a sentence; "" where nothing is compared or one comparison is all."""
        count = max((each.together for each in self.comparisons), default=0)
        if count < 2:
            return ""
        return (
            f"Corrected p values are for all {count:,} comparisons of this report together, pairs of models on tasks"
            f"{' and on the mean over tasks' if self.means else ''} (step-down max T of Westfall and Young): the chance"
            " of any false finding in it is at most 5 %. Intervals are each for one comparison alone."
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of results.json."""
        return {
            "version": LAYOUT,
            "results": [result.to_dict() for result in self.results],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "mean_comparisons": [comparison.to_dict() for comparison in self.means],
            "correction": self.correction,
            "environment": dict(self.environment),
            "notes": self.notes,
        }

    def item_lines(self) -> list[str]:
        """A line of JSON for each result and item."""
        lines = []
        for result in self.results:
            if result.items is None:
                continue
            head = {"model": result.label, "task": result.task, "split": result.split}
            columns = {name: column.tolist() for name, column in result.items.columns.items()}
            for row, item in enumerate(result.items.ids):
                values = {name: column[row] for name, column in columns.items()}
                lines.append(json.dumps(head | {"id": item} | values, ensure_ascii=False) + "\n")
        return lines
