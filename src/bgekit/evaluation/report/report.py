"""The report of an evaluation: its files for people and programs, as Markdown, and as text for a console."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any, Final

from ...display.pages import render
from ...display.terminal import clipped, columns, middle_clipped, padded, printable, wrapped
from ...files.atomic import OutputFolder
from ...files.remote import is_url
from ...files.transfer import write_files
from ..metrics import metric_name
from ..results import PER_ITEM, RESULTS, ReportContent
from .page import html
from .summary import (
    MISSING,
    View,
    as_text,
    comparison_figures,
    decided,
    difference,
    facts,
    interval,
    number,
    p_value,
    published,
    seconds,
    setting_text,
    small_details,
    task_name,
)

if TYPE_CHECKING:
    from ..results import Comparison
    from .summary import TaskView


class Report(ReportContent):
    """Everything that an evaluation found: results, comparisons, and how it was measured.

    Example:
        >>> report = evaluate(["BAAI/bge-small-en-v1.5"], ["data/nfcorpus"])  # doctest: +SKIP
        >>> report.save("reports/nfcorpus")  # doctest: +SKIP
    """

    def save(self, output: str | os.PathLike[str]) -> list[str]:
        """Write results.json, per_item.jsonl, report.md and report.html into a folder, each whole or not at all.

        Args:
            output: The folder, or its URL.

        Returns:
            Paths or URLs of the files.

        Raises:
            OutputError: the folder cannot be written, or another process writes to it.
        """
        contents = {
            RESULTS: json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n",
            PER_ITEM: "".join(self.item_lines()),
            "report.md": markdown(self),
            "report.html": html(self),
        }
        place = os.fspath(output)
        files = {os.path.join(place, name): text.encode("utf-8", "replace") for name, text in contents.items()}
        if is_url(place):
            write_files([(file, [content]) for file, content in files.items()])
            return list(files)
        with OutputFolder(place) as folder:
            for name, content in zip(contents, files.values(), strict=True):
                with folder.create(name) as file:
                    file.write(content)
            folder.sync()
        return list(files)


def markdown(report: ReportContent) -> str:
    """The report as GitHub's Markdown; texts of documents are escaped."""
    view = View(report)
    compared = [*report.means, *report.comparisons]
    scores = [
        [
            task.name, task.split, task.metric, result.label, number(result.main_score),
            *([published(result), number(difference(result), signed=True)] if view.has_published else []),
            f"{result.count:,}", seconds(result),
        ]
        for task in view.tasks
        for result in task.results
    ]  # fmt: skip
    heads = ["Task", "Split", "Metric", "Model", "Score"]
    heads += [*(["Published", "Difference"] if view.has_published else []), "Items", "Seconds"]
    comparisons = [
        [
            task_name(each), each.split, each.a, each.b, *comparison_figures(each), f"{each.n:,}",
            f"{each.units or each.n:,}",
        ]
        for each in compared
    ]  # fmt: skip
    models = []
    for label in view.labels:
        result = view.first(label)
        about = [("setting", setting_text(result.setting)), ("model", as_text(result.model))]
        about += [(f"{key} fingerprint", value) for key, value in result.fingerprints.items() if key != "data"]
        models.append((label, about, json.dumps(result.card, indent=2, ensure_ascii=True, default=str)))
    return render(
        "evaluation/report/report.md.jinja", view=view, report=report, scores=scores, heads=heads,
        comparisons=comparisons,
        means=[(label, number(mean)) for label, mean in view.means().items()] if len(view.tasks) > 1 else (),
        conclusions=[each.conclusion for each in compared], tasks=list(map(_task, view.tasks)),
        environment=facts(report.environment), models=models,
        data=[
            [task.name, task.split, next((each.fingerprints.get("data", "") for each in task.results), "")]
            for task in view.tasks
        ],
    )  # fmt: skip


def _task(task: TaskView) -> dict[str, Any]:
    metrics = [[metric_name(name), *scores] for name, scores in task.metrics]
    changes = [
        (head, each, [
            (item.id, clipped(printable(item.text), _ITEM), number(item.a), number(item.b),
             "; ".join(f"{key}: {clipped(printable(value), _CELL)}" for key, value in facts(item.detail)))
            for item in items
        ])
        for each in task.comparisons
        for head, items in (
            ("Where a falls most behind b", each.regressions),
            ("Where a is furthest ahead of b", each.improvements),
        )
        if items
    ]  # fmt: skip
    return {
        "view": task,
        "labels": [result.label for result in task.results],
        "metrics": metrics,
        "published": [(name, number(score)) for name, score in task.published.items()],
        "comparable": all(result.comparable for result in task.results),
        "details": [(result.label, details) for result in task.results if (details := small_details(result))],
        "changes": changes,
    }


#: Columns of an item's text and of a detail in a cell; all of both stands in results.json.
_ITEM: Final = 400
_CELL: Final = 120
#: Columns of a screen that are used.
_NARROWEST: Final = 40
_WIDEST: Final = 120
#: Worst regressions shown, and up to how many comparisons: more of them are read in a file.
_REGRESSIONS: Final = 3
_COMPARISONS_WITH_TEXTS: Final = 3


def console(report: ReportContent, width: int | None = None) -> str:
    """The report for a screen.

    Args:
        report: What was found.
        width: Columns of the screen; by default those of the terminal, 80 without one.
    """
    width = min(max(width or shutil.get_terminal_size((80, 24)).columns, _NARROWEST), _WIDEST)
    view = View(report)
    lines = [line for task in view.tasks for line in [*_scores(task, width, with_published=view.has_published), ""]]
    if len(view.tasks) > 1:
        lines += [*_means(view, width), ""]
    if report.comparisons:
        lines += ["Comparisons", ""]
        if report.correction:
            lines += [*wrapped(report.correction, width), ""]
        lines += [line for each in report.means for line in [*_comparison(each, width, False), ""]]
        with_texts = len(report.comparisons) <= _COMPARISONS_WITH_TEXTS
        lines += [line for each in report.comparisons for line in [*_comparison(each, width, with_texts), ""]]
    if report.notes:
        lines += ["Notes", ""]
        lines += [line for each in report.notes for line in _item("- ", printable(each), width)]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def in_short(report: ReportContent) -> str:
    """What was found, in a sentence: the score of one model, or what can be concluded of several."""
    view = View(report)
    compared = report.means or report.comparisons
    if len(compared) == 1:
        return printable(compared[0].conclusion).rstrip(".")
    if compared:
        better = sum(map(decided, compared))
        return f"{better} of {len(compared)} differences between {view.counted} are significant"
    shown = [printable(label) for label in view.labels]
    if len(view.tasks) == 1:
        task = view.tasks[0]
        scores = [number(result.main_score) if result else MISSING for result in map(task.result, view.labels)]
        what = f"{printable(task.name)} {task.metric}"
    else:
        scores, what = list(map(number, view.means().values())), f"mean over {len(view.tasks)} tasks"
    return f"{what} {', '.join(f'{score} ({label})' for score, label in zip(scores, shown, strict=True))}"


def _scores(task: TaskView, width: int, *, with_published: bool) -> list[str]:
    head = (f"{'ours':>8}" + f"{'published':>11}{'diff':>8}") if with_published else f"{'score':>8}"
    name = clipped(printable(f"{task.name}: {task.metric}"), width - len(head) - 1)
    lines = [padded(name, width - len(head)) + head]
    lines += wrapped(printable(", ".join(task.about)), width, indent="  ")
    for result in task.results:
        row = f"{number(result.main_score):>8}"
        if with_published:
            row += f"{published(result):>11}{number(difference(result), signed=True):>8}"
        lines += _named(printable(result.label), row, width)
    if not task.comparable and with_published:
        lines += _item("  * ", "published on other data: not comparable", width)
    for exclusion in task.exclusions:
        lines += _item("  excluded: ", printable(str(exclusion)), width)
    for note in task.notes:
        lines += _item("  note: ", printable(note), width)
    return lines


def _means(view: View, width: int) -> list[str]:
    lines = [padded(f"Mean over {len(view.tasks)} tasks", width - 8) + f"{'score':>8}"]
    for label, mean in view.means().items():
        lines += _named(printable(label), f"{number(mean):>8}", width)
    if any(mean is None for mean in view.means().values()):
        lines += _item(f"  {MISSING} ", "not measured on every task", width)
    return lines


def _comparison(comparison: Comparison, width: int, with_texts: bool) -> list[str]:
    metric = metric_name(comparison.metric)
    about = ", ".join(part for part in (task_name(comparison), comparison.split, metric) if part)
    lines = wrapped(printable(about), width)
    lines += _item("  a  ", printable(comparison.a), width) + _item("  b  ", printable(comparison.b), width)
    several = comparison.p_adjusted > comparison.p_value
    adjusted = f" ({p_value(comparison.p_adjusted)} corrected)" if several else ""
    found = (
        f"a - b = {number(comparison.difference, signed=True)} {interval(comparison)},"
        f" p {_equals(p_value(comparison.p_value))}{adjusted}; of {_counted(comparison)}: {comparison.wins:,} won,"
        f" {comparison.losses:,} lost, {comparison.ties:,} tied"
    )
    lines += wrapped(found, width, indent="  ")
    lines += wrapped(printable(comparison.conclusion), width, indent="  ")
    if with_texts and comparison.regressions:
        lines.append(f"  Where a falls most behind b:{'':>{max(width - 46, 1)}}{'a':>8}{'b':>8}")
        for item in comparison.regressions[:_REGRESSIONS]:
            row = f"{number(item.a):>8}{number(item.b):>8}"
            text = clipped(printable(item.text or item.id), width - len(row) - 5)
            lines.append(padded(f"    {text}", width - len(row)) + row)
    return lines


def _counted(comparison: Comparison) -> str:
    """The number of items or tasks that are won and lost."""
    if comparison.over_tasks:
        return f"{comparison.over_tasks} tasks"
    return f"{comparison.n:,}" + (f" ({comparison.units:,} independent)" if 0 < comparison.units < comparison.n else "")


def _named(name: str, row: str, width: int) -> list[str]:
    """A row of numbers after its name, or below a name that is too long beside them."""
    if columns(name) + 3 + len(row) <= width:
        return [padded(f"  {name}", width - len(row)) + row]
    return [f"  {middle_clipped(name, width - 2)}", " " * (width - len(row)) + row]


def _item(mark: str, text: str, width: int) -> list[str]:
    """A text after a mark, its further lines below its first."""
    first, *rest = wrapped(text, width, indent=" " * len(mark)) or [mark]
    return [mark + first[len(mark) :], *rest]


def _equals(value: str) -> str:
    return value if value.startswith("<") else f"= {value}"
