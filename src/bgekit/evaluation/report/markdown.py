"""A report as markdown, complete: all metrics, all exclusions, comparisons with their texts, how it was measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ...display.text import escape
from .summary import (
    View,
    as_text,
    difference,
    facts,
    interval,
    number,
    p_value,
    published,
    setting_text,
    small_details,
    task_name,
)

if TYPE_CHECKING:
    from ..results import Comparison, ItemChange, ReportContent
    from .summary import TaskView


def markdown(report: ReportContent) -> str:
    """The report as GitHub's markdown; texts of documents are escaped."""
    view = View(report)
    parts = [f"# Evaluation: {escape(view.title)}", *_notes(report), *_scores(view), *_comparisons(view)]
    for task in view.tasks:
        parts += _task(task)
    return "\n\n".join([*parts, *_measured(view)]) + "\n"


def _scores(view: View) -> list[str]:
    if not view.tasks:
        return []
    rows = []
    for task in view.tasks:
        for result in task.results:
            scores = [number(result.main_score), published(result), number(difference(result), signed=True)]
            rows.append([task.name, task.split, task.metric, result.label, *scores, f"{result.count:,}"])
    parts = [
        "## Scores",
        _table(["Task", "Split", "Metric", "Model", "Ours", "Published", "Difference", "Items"], rows, numbers=4),
    ]
    if view.has_incomparable:
        parts.append(r"\* published on other data: not comparable")
    if len(view.tasks) > 1:
        means = [[label, number(mean)] for label, mean in view.means().items()]
        parts.append(_table(["Model", f"Mean over {len(view.tasks)} tasks"], means, numbers=1))
    return parts


def _comparisons(view: View) -> list[str]:
    if not view.report.comparisons:
        return []
    rows = []
    for each in [*view.report.means, *view.report.comparisons]:
        found = [number(each.difference, signed=True), interval(each), p_value(each.p_value), p_value(each.p_adjusted)]
        counts = [f"{count:,}" for count in (each.wins, each.losses, each.ties, each.n, each.units or each.n)]
        rows.append([task_name(each), each.split, each.a, each.b, *found, *counts])
    head = [
        "Task", "Split", "a", "b", "a - b", "95 % interval", "p", "p corrected", "a wins", "b wins", "Ties", "Items",
        "Independent",
    ]  # fmt: skip
    sentences = "\n".join(f"- {escape(each.conclusion)}" for each in [*view.report.means, *view.report.comparisons])
    told = [escape(view.report.correction)] if view.report.correction else []
    return ["## Comparisons", *told, _table(head, rows, numbers=9), sentences]


def _task(task: TaskView) -> list[str]:
    parts = [f"## {escape(task.name)}", escape(", ".join([*task.about, f"main metric {task.metric}"]))]
    names = list(dict.fromkeys(name for result in task.results for name in result.metrics))
    rows = [[name, *(number(result.metrics.get(name)) for result in task.results)] for name in names]
    rows += [["seconds", *(number(result.seconds, digits=1) for result in task.results)]]
    parts.append(_table(["Metric", *(result.label for result in task.results)], rows, numbers=len(task.results)))
    if task.exclusions:
        parts.append("Excluded:\n\n" + "\n".join(f"- {escape(str(each))}" for each in task.exclusions))
    if task.notes:
        parts.append("To be known:\n\n" + "\n".join(f"- {escape(each)}" for each in task.notes))
    others = {name: score for result in task.results for name, score in result.published.items()}
    if others:
        comparable = all(result.comparable for result in task.results)
        rows = [[name, number(score)] for name, score in others.items()]
        parts.append("Published scores" + ("" if comparable else ", of other data (not comparable)") + ":")
        parts.append(_table(["Model", task.metric], rows, numbers=1))
    for result in task.results:
        if details := small_details(result):
            parts.append(f"Details of {escape(result.label)}:\n\n" + _list(details))
    for comparison in task.comparisons:
        parts += _changes(comparison)
    return parts


def _changes(comparison: Comparison) -> list[str]:
    parts = []
    pair = f"a = {escape(comparison.a)}, b = {escape(comparison.b)}"
    for what, items in (
        ("Where a falls most behind b", comparison.regressions),
        ("Where a is furthest ahead of b", comparison.improvements),
    ):
        if items:
            parts += [f"### {what}", f"{escape(comparison.task)}, {pair}", _items_table(items)]
    return parts


def _items_table(items: Sequence[ItemChange]) -> str:
    rows = [[item.id, item.text, number(item.a), number(item.b), _inline(facts(item.detail))] for item in items]
    return _table(["Item", "Text", "a", "b", "Detail"], rows, left=("Item", "Text", "Detail"))


def _measured(view: View) -> list[str]:
    parts = ["## How it was measured", _list(facts(view.report.environment))]
    for label in view.labels:
        result = view.first(label)
        about = [("setting", setting_text(result.setting)), ("model", as_text(result.model))]
        about += [(f"{key} fingerprint", value) for key, value in result.fingerprints.items() if key != "data"]
        parts += [f"### {escape(label)}", _list(about)]
        parts.append(f"```json\n{json.dumps(result.card, indent=2, ensure_ascii=True, default=str)}\n```")
    rows = [
        [task.name, task.split, next((each.fingerprints.get("data", "") for each in task.results), "")]
        for task in view.tasks
    ]
    return [*parts, "### Data", _table(["Task", "Split", "Fingerprint"], rows, numbers=0)]


def _notes(report: ReportContent) -> list[str]:
    return ["## Notes", "\n".join(f"- {escape(each)}" for each in report.notes)] if report.notes else []


def _list(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(key)}: {escape(value)}" for key, value in pairs)


def _inline(pairs: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in pairs)


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0, left: Sequence[str] | None = None
) -> str:
    """A table; the last `numbers` columns, or all but those named in `left`, are aligned to the right."""
    right = [name not in left if left is not None else place >= len(head) - numbers for place, name in enumerate(head)]
    lines = [list(map(escape, head)), ["---:" if each else "---" for each in right]]
    lines += [list(map(escape, row)) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
